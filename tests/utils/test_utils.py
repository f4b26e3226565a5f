"""Schedules, scores, optimizers, files and tables do what they say."""

import math

import pytest
import torch
from torch import nn

from utils import files, metrics
from utils.config import OptimSettings
from utils.errors import UserError
from utils.runs import tensor_file
from utils.table import text_table
from utils.training import optim, schedule


def test_warm_up_starts_at_zero_and_ends_at_one():
    assert schedule.factor("cosine", 0.0, 10, 2) == 0
    assert schedule.factor("cosine", 1.0, 10, 2) == pytest.approx(0.5)
    assert schedule.factor("cosine", 2.0, 10, 2) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "middle", "end"), [("cosine", 0.5, 0.0), ("linear", 0.5, 0.0), ("step", 0.1, 0.01), ("constant", 1.0, 1.0)]
)
def test_schedules_by_definition(name, middle, end):
    assert schedule.factor(name, 6, 10, 2, [0.5, 0.75]) == pytest.approx(middle)
    assert schedule.factor(name, 10, 10, 2, [0.5, 0.75]) == pytest.approx(end, abs=1e-12)


def test_cosine_quarter():
    assert schedule.factor("cosine", 2.5, 10, 0) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_score_is_a_total_not_a_mean_of_batches():
    logits = torch.eye(10) * 5
    score = metrics.Score()
    score.add(logits[:9], torch.arange(9))
    score.add(logits[9:], torch.tensor([0]))
    found = score.summary()
    assert found["top1"] == pytest.approx(90.0)
    assert found["loss"] == pytest.approx(
        float(nn.functional.cross_entropy(logits, torch.tensor([*range(9), 0]))), rel=1e-6
    )


def test_top5_with_fewer_than_five_classes():
    score = metrics.Score()
    score.add(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))
    assert score.summary()["top5"] == 100.0


@pytest.mark.parametrize("name", list(optim.OPTIMIZERS))
def test_optimizers_learn_and_decay_weights_alone(name):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = optim.build(name, model, 0.01, 0.9, True, 0.1)
    optim.check_covers(optimizer, model)
    assert {p.ndim for p in optimizer.param_groups[0]["params"]} == {2}
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
    assert optimizer.param_groups[1]["weight_decay"] == 0.0
    x, y = torch.randn(64, 4), torch.randint(0, 2, (64,))
    y = (x[:, 0] > 0).long()
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_a_parameter_replaced_after_the_optimizer_was_built_is_noticed():
    model = nn.Linear(3, 2)
    optimizer = optim.build("sgd", model, 0.1, 0.9, True, 0.0)
    model.bias = nn.Parameter(torch.zeros(2))
    with pytest.raises(RuntimeError, match=r"not trained: \['bias'\]"):
        optim.check_covers(optimizer, model)


def test_what_quantizers_learn_gets_groups_of_its_own():
    model = nn.Linear(3, 2)
    optimizer = optim.build("sgd", model, 0.1, 0.9, True, 0.5)
    model.step = nn.Parameter(torch.ones(()))
    optim.add_learned(optimizer, [([model.step], 4e-4)], 0.1)
    optim.check_covers(optimizer, model)
    optim.set_rate(optimizer, 0.2)
    assert optimizer.param_groups[2]["weight_decay"] == 4e-4
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.2, 0.02])


def test_the_reference_decays_by_shape():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.Linear(8, 2))
    optimizer = optim.build("sgd", model, 0.1, 0.9, True, 1e-2, "statassist")
    optim.check_covers(optimizer, model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(model[0].weight)] == 0
    assert decay[id(model[1].weight)] == 1e-2
    assert all(decay[id(p)] == pytest.approx(1e-4) for p in [*model[2].parameters(), *model[3].parameters()])


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})

    def fail(part):
        part.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_whole(path, fail)
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


class Payload:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_checkpoints_never_run_code(tmp_path, capsys):
    torch.save({"a": Payload()}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=r"bad.pt: not a readable checkpoint"):
        tensor_file.load(str(tmp_path / "bad.pt"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"rubbish", b"PK\x03\x04 half a zip"])
def test_corrupt_checkpoints_are_named(tmp_path, content):
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad.pt: not a readable checkpoint"):
        tensor_file.load(str(path))


def test_tables_align():
    assert text_table(["", "n"], [["a", "1"], ["long", "22"]]) == "       n\n--------\na      1\nlong  22"


def test_gradboosts_keys_are_refused_where_nothing_reads_them():
    optim.check(OptimSettings(name="qadam", mode="reference", clip_by=0.1))
    with pytest.raises(UserError, match=r"optim.mode: sgd has no such option; optim.name=qsgd has"):
        optim.check(OptimSettings(name="sgd", mode="reference"))
