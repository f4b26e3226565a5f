"""The training loop: float epochs, then quantized ones, from any position. (Whole runs: tests/test_resume.py.)"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from utils.distributed import Processes
from utils.errors import UserError
from utils.runs.checkpointing import Position
from utils.runs.log import RunLog
from utils.seed import Noise
from utils.training.trainer import Trainer

CPU = torch.device("cpu")
EPOCHS, STEPS = 3, 4


class Batches:
    """The same random images in every epoch."""

    batch_size = 8

    def __init__(self):
        self.images, self.labels = torch.randn(STEPS * 8, 6), torch.randint(0, 3, (STEPS * 8,))

    def __len__(self) -> int:
        return STEPS

    def epoch(self, epoch: int, first: int = 0):
        yield from zip(self.images.split(8)[first:], self.labels.split(8)[first:], strict=True)


class Saver:
    """Notes what it is asked to save."""

    def __init__(self):
        self.saved, self.finished = [], False

    def is_due(self) -> bool:
        return False

    def save(self, at: Position, *_) -> str:
        self.saved.append((at.epoch, at.step))
        return ""

    def save_unsaved(self) -> None:
        self.finished = True


def trainer(folder, **changes) -> Trainer:
    model = nn.Linear(6, 3)
    given = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=1.0),
        "train_batches": Batches(),
        "val_batches": None,
        "rate": lambda done: 0.5 / (1 + done),
        "loss_of": lambda images, logits, labels: nn.functional.cross_entropy(logits, labels),
        "clip_norm": None,
        "bf16": False,
        "epochs": EPOCHS,
        "quantize_from": EPOCHS,
        "quantize": lambda model: pytest.fail("it ends in float"),
        "method": "lsq",
        "average": None,
        "reestimate_batch_norm": lambda model: pytest.fail("it was not asked for"),
        "noise": Noise(0, 0, CPU),
        "processes": Processes(0, 1, CPU),
        "log": RunLog(folder, EPOCHS),
        "saver": Saver(),
    }
    return Trainer(**given | changes)


def test_every_epoch_is_saved_and_the_loss_falls(tmp_path):
    losses = []

    def loss_of(images, logits, labels):
        losses.append(nn.functional.cross_entropy(logits, labels))
        return losses[-1]

    run = trainer(tmp_path, loss_of=loss_of)
    run.run(Position(0))
    assert run.saver.saved == [(1, 0), (2, 0), (3, 0)]
    assert run.saver.finished
    assert len(losses) == EPOCHS * STEPS
    assert sum(losses[-STEPS:]) < sum(losses[:STEPS])


def test_the_rate_follows_the_position(tmp_path):
    asked = []
    trainer(tmp_path, rate=lambda done: asked.append(done) or 0.1).run(Position(1))
    assert asked == [epoch + step / STEPS for epoch in (1, 2) for step in range(STEPS)]


def test_the_model_is_quantized_before_its_first_quantized_epoch(tmp_path):
    seen = []

    def quantize(model: nn.Module) -> nn.Module:
        seen.append(run.done)
        return model

    run = trainer(tmp_path, quantize_from=1, quantize=quantize)
    run.run(Position(0))
    assert seen == [1 - 1 / STEPS], "after the last step of the float epoch, once"
    assert run.quantized
    assert run.progress == pytest.approx((EPOCHS - 1 / STEPS - 1) / (EPOCHS - 1))


def test_gradients_are_clipped_to_a_total_norm(tmp_path):
    run = trainer(tmp_path, clip_norm=1e-3)
    norms = []
    run.optimizer.step = lambda: norms.append(torch.stack([p.grad.norm() for p in run.model.parameters()]).norm())
    run.run(Position(EPOCHS - 1))
    assert len(norms) == STEPS
    assert all(norm <= 1.001e-3 for norm in norms)


def test_a_loss_that_is_nan_ends_the_run_before_the_optimizer_steps(tmp_path):
    run = trainer(tmp_path, loss_of=lambda images, logits, labels: logits.sum() * float("nan"))
    before = run.model.weight.clone()
    with pytest.raises(UserError, match=r"the loss became nan in epoch 1, step 1 of 4"):
        run.run(Position(0))
    assert torch.equal(run.model.weight, before)
    assert run.saver.saved == []


def test_a_loss_that_is_nan_is_found_when_it_is_read_next(tmp_path):
    steps = iter(range(EPOCHS * STEPS))

    def loss_of(images, logits, labels):
        return logits.sum() * (float("nan") if next(steps) == 1 else 1.0)

    run = trainer(tmp_path, loss_of=loss_of, read_every=3)
    with pytest.raises(UserError, match=r"became nan in epoch 1, step 2 of 4; the first layer .* not known"):
        run.run(Position(0))
    assert next(steps) == 3, "after the third step"


@pytest.mark.parametrize("read_every", [1, 3, 100])
def test_what_is_read_later_is_the_same(tmp_path, read_every):
    torch.manual_seed(0)
    run = trainer(tmp_path, model=nn.Linear(6, 3), train_batches=Batches(), read_every=read_every)
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=1.0)
    run.run(Position(0))
    torch.manual_seed(0)
    once = trainer(tmp_path, model=nn.Linear(6, 3), train_batches=Batches())
    once.optimizer = torch.optim.SGD(once.model.parameters(), lr=1.0)
    once.run(Position(0))
    untimed = [[value for key, value in row.items() if "second" not in key] for row in run.log.rows]
    assert untimed == [[value for key, value in row.items() if "second" not in key] for row in once.log.rows]
    assert torch.equal(run.model.weight, once.model.weight)


def test_one_process_saves_at_once_what_is_due(tmp_path):
    run, due = trainer(tmp_path, read_every=100), iter([False, True, *[False] * 2 * EPOCHS * STEPS])
    run.saver.is_due = lambda: next(due)
    run.run(Position(EPOCHS - 1))
    assert run.saver.saved == [(2, 2), (3, 0)]


def test_finishing_takes_the_average_and_measures_batch_norm_again(tmp_path):
    calls = []
    average = SimpleNamespace(swap=lambda: calls.append("swap"))
    trainer(tmp_path, average=average, reestimate_batch_norm=lambda model: calls.append("norm")).finish(False)
    trainer(tmp_path, reestimate_batch_norm=lambda model: calls.append("asked")).finish(True)
    trainer(tmp_path).finish(False)
    assert calls == ["swap", "norm", "asked"]


def test_finishing_loads_the_best_epoch(tmp_path):
    run, loaded = trainer(tmp_path), []
    run.saver.load_best, run.log.best = loaded.append, 90.0
    run.finish(False)
    assert loaded == [run.model]
