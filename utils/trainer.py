"""Training from one position of a run to its end: epochs in float, then quantized ones, under one optimizer."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from utils import interrupt, loop, metrics, optim
from utils.average import Average
from utils.distill import Loss
from utils.keeper import Keeper, Position
from utils.metrics import Score
from utils.ranks import Ranks
from utils.runlog import RunLog
from utils.seed import Noise


@dataclass(kw_only=True)
class Trainer:
    """What trains `model`, and with `run` does it.

    training, held_out: batches as of data/batches.py; held_out is None where there are no validation images, else the
    best of the epochs that count (the quantized ones; all, of a run that ends in float) is kept.
    rate(epochs done): the learning rate. loss_of, clip_norm, bf16: as in utils/loop.py.
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
    ranks: Ranks
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
            self.spread = self.spread or self.ranks.spread(self.model)
            optim.check_covers(self.optimizer, self.model)
            with interrupt.listening():  # and answering after the step, or once the epoch is saved
                self._conclude(epoch, self._train(epoch, at))
            at = Position(epoch + 1)
        self.saves.settle()

    def finish(self, renorm: bool) -> None:
        """Leave the best epoch's model; without validation images the last, or the average of the weights.

        renorm: find batch norm's statistics anew, which an average needs in any case.
        """
        self.log.best = self.ranks.share(self.log.best)
        if self.log.best is not None:
            self.saves.load_best(self.model)
        elif self.average:
            self.average.swap()
        if self.average or renorm:
            self.renorm(self.model)

    def _train(self, epoch: int, at: Position) -> Score:
        steps = range(at.step, len(self.training))
        with self.log.epoch(len(self.training.images), at.step * self.training.batch_size) as progress:
            return loop.train_epoch(
                self.spread,
                self.training.epoch(epoch, at.step),
                steps,
                epoch,
                self.optimizer,
                lambda step: self._before(epoch, step),
                at.score,
                self.loss_of,
                self.clip_norm,
                self.bf16,
                self.ranks,
                progress,
                self.saves.due,
                lambda step, score: self._keep(Position(epoch, step, score)),
            )

    def _before(self, epoch: int, step: int) -> None:
        self.noise.at(epoch, step)
        self.done = epoch + step / len(self.training)
        optim.set_rate(self.optimizer, self.rate(self.done))

    def _conclude(self, epoch: int, score: Score) -> None:
        """Judge the epoch, say so, and save."""
        self.ranks.agree(self.model.buffers())
        total, best = metrics.of_all(score, self.ranks), self.log.best
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
        return metrics.of_all(metrics.score(self.model.eval(), self.held_out, self.ranks.device), self.ranks)

    def _keep(self, at: Position) -> str:
        return self.saves.keep(at, self.model, self.optimizer, self.log)
