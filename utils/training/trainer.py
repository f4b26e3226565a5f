"""Training from one position of a run to its end: epochs in float, then quantized ones, under one optimizer."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from signal import SIGTERM
from typing import Any

import torch
from torch import Tensor, nn

from utils import metrics
from utils.distributed import Processes
from utils.errors import UserError
from utils.metrics import Score
from utils.runs import interrupt
from utils.runs.checkpointing import Keeper, Position
from utils.runs.log import RunLog
from utils.seed import Noise
from utils.training import optim
from utils.training.average import Average
from utils.training.distill import Loss
from utils.training.finite import first_not_finite


@dataclass(kw_only=True)
class Trainer:
    """What trains `model`, and with `run` does it.

    training, held_out: batches as of data/batches.py; held_out is None where there are no validation images, else the
    best of the epochs that count (the quantized ones; all, of a run that ends in float) is kept.
    rate(epochs done): the learning rate. loss_of: the mean over the images of a process (utils/training/distill.py).
    quantize_from: the epoch before which the model becomes quantize(model), whose epochs are told as of `method`.
    average: of the weights, where wanted; renorm(model) finds batch norm's statistics anew.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    training: Any
    held_out: Any
    rate: Callable[[float], float]
    loss_of: Loss
    clip_norm: float | None
    bf16: bool
    epochs: int
    quantize_from: int
    quantize: Callable[[nn.Module], nn.Module]
    method: str
    average: Average | None
    renorm: Callable[[nn.Module], None]
    noise: Noise
    processes: Processes
    log: RunLog
    saves: Keeper
    quantized: bool = False
    done: float = 0.0
    """Epochs of the run, whole ones and a part."""
    spread: nn.Module | None = None
    """The model with its gradients averaged over all processes."""

    @property
    def progress(self) -> float:
        """How far the quantized epochs have come, in [0, 1]."""
        return (self.done - self.quantize_from) / (self.epochs - self.quantize_from)

    def to_quantized(self) -> None:
        self.spread = None  # with its hooks on the parameters
        self.model, self.quantized = self.quantize(self.model), True

    def run(self, at: Position) -> None:
        """Train from `at` to the end of the last epoch, which is on disk then. Raises OSError if it cannot be saved."""
        for epoch in range(at.epoch, self.epochs):
            if epoch == self.quantize_from and not self.quantized:
                self.to_quantized()
            self.spread = self.spread or self.processes.ddp(self.model)
            optim.check_covers(self.optimizer, self.model)
            with interrupt.listening():  # and answering after the step, or once the epoch is saved
                self._conclude(epoch, self._train(epoch, at))
            at = Position(epoch + 1)
        self.saves.settle()

    def finish(self, renorm: bool) -> None:
        """Leave the best epoch's model; without validation images the last, or the average of the weights.

        renorm: find batch norm's statistics anew, which an average needs in any case.
        """
        self.log.best = self.processes.broadcast_object(self.log.best)
        if self.log.best is not None:
            self.saves.load_best(self.model)
        elif self.average:
            self.average.swap()
        if self.average or renorm:
            self.renorm(self.model)

    def _train(self, epoch: int, at: Position) -> Score:
        """The steps of an epoch from `at` on; saved between them where that is due in any process.

        Raises UserError at a loss that is not finite, before the step is taken, and Interrupted where somebody asks for
        an end.
        """
        self.spread.train()
        batches, score, device = self.training, at.score, self.processes.device
        steps = zip(range(at.step, len(batches)), batches.epoch(epoch, at.step), strict=True)
        seen = at.step * batches.batch_size
        with self.log.epoch(len(batches.images), seen) as progress, interrupt.listening() as request:
            for step, (images, labels) in steps:
                self._before(epoch, step)
                images, labels = images.to(device), labels.to(device)
                logits, loss = self._forward(images, labels)
                flags = bool(request.number), self.saves.due(), not torch.isfinite(loss)
                (stop, save, lost), images_of_all = self.processes.any_flag_and_sum(flags, len(labels))
                if lost:
                    raise self._lost(loss, images, epoch, step)
                self._step(loss * (len(labels) * self.processes.world_size / images_of_all))
                score.add(logits.detach(), labels)
                progress(score, images_of_all)
                if stop or save:
                    message = self._keep(Position(epoch, step + 1, score))
                if stop:
                    raise interrupt.Interrupted(request.number or SIGTERM, message)
        return score

    def _forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and loss. bf16 runs convolutions in bfloat16; quantizers leave autocast by themselves."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.spread(images)
        return logits, self.loss_of(images, logits.float(), labels)

    def _step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()

    def _lost(self, loss: Tensor, images: Tensor, epoch: int, step: int) -> UserError:
        where = first_not_finite(self.model, images)
        became = "of another process is not finite" if torch.isfinite(loss) else f"became {loss.item()}"
        return UserError(
            f"the loss {became} in epoch {epoch + 1}, step {step + 1} of {len(self.training)}; the first "
            f"layer whose output is not finite: {where}; last.pt is of before: take it up under another run.name, as "
            "model.weights and with a smaller optim.lr"
        )

    def _before(self, epoch: int, step: int) -> None:
        self.noise.at(epoch, step)
        self.done = epoch + step / len(self.training)
        optim.set_rate(self.optimizer, self.rate(self.done))

    def _conclude(self, epoch: int, score: Score) -> None:
        """Judge the epoch, say so, and save."""
        self.processes.broadcast_buffers(self.model.buffers())
        total, best = metrics.of_all(score, self.processes), self.log.best
        counts = self.quantized or self.quantize_from >= self.epochs
        stage, lr = self.method if self.quantized else "float", self.optimizer.param_groups[0]["lr"]
        with self._at_rest():
            better = self.log.record(stage, total, self._score_held_out(), lr, counts)
            if better and not self.saves.keep_best(epoch + 1, self.model, self.log):
                self.log.best = best
        self._keep(Position(epoch + 1))

    @contextlib.contextmanager
    def _at_rest(self) -> Iterator[None]:
        """The model as it would be if training ended here."""
        if self.average is None or self.held_out is None:
            yield
            return
        with self.average.in_place(self.model):
            self.renorm(self.model)
            yield

    def _score_held_out(self) -> Score | None:
        if self.held_out is None:
            return None
        return metrics.of_all(metrics.score(self.model.eval(), self.held_out, self.processes.device), self.processes)

    def _keep(self, at: Position) -> str:
        return self.saves.keep(at, self.model, self.optimizer, self.log)
