"""The training loop: float epochs, then quantized ones, with one optimizer, from any position to the end."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from signal import SIGTERM
from typing import Any

import torch
from torch import Tensor, nn

from utils import metrics
from utils.distributed import Processes
from utils.errors import UserError
from utils.metrics import Score, Unread
from utils.runs.checkpointing import CheckpointSaver, Position
from utils.runs.interrupt import Interrupted, defer_signals
from utils.runs.log import RunLog
from utils.seed import Noise
from utils.training import optim
from utils.training.average import Average
from utils.training.distill import Loss
from utils.training.finite import first_not_finite


@dataclass(kw_only=True)
class Trainer:
    """Trains `model`: `run` does the epochs, `finish` leaves the final model.

    train_batches, val_batches: batches of data/batches.py. val_batches is None without validation images; with them,
        the best epoch is kept, of the quantized epochs, or of all epochs if the run ends in float.
    rate: learning rate as a function of the epochs done, which need not be a whole number.
    loss_of: loss of (images, logits, labels), the mean over the images of this process (utils/training/distill.py).
    clip_norm: limit of the gradients' total norm, or None. bf16: run convolutions in bfloat16.
    quantize_from: index of the first quantized epoch, before which the model becomes quantize(model).
    method: the name of quantized epochs in the log.
    average: the moving average of the weights, or None.
    reestimate_batch_norm: measures a model's batch norm statistics again.
    read_every: after how many steps losses and scores are read from the device. Reading waits for the device. A signal
        ends a run of several processes, and a loss that is not finite any run, only then.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    train_batches: Any
    val_batches: Any
    rate: Callable[[float], float]
    loss_of: Loss
    clip_norm: float | None
    bf16: bool
    epochs: int
    quantize_from: int
    quantize: Callable[[nn.Module], nn.Module]
    method: str
    average: Average | None
    reestimate_batch_norm: Callable[[nn.Module], None]
    noise: Noise
    processes: Processes
    log: RunLog
    saver: CheckpointSaver
    read_every: int = 1
    quantized: bool = False
    done: float = 0.0
    """Epochs done so far; not necessarily a whole number."""
    lr: float = 0.0
    """The learning rate of the last step."""
    ddp_model: nn.Module | None = None
    """What `wrapped` made for the model as it is now, or None."""

    @property
    def progress(self) -> float:
        """The share of the quantized epochs that is done, in [0, 1]."""
        return (self.done - self.quantize_from) / (self.epochs - self.quantize_from)

    def to_quantized(self) -> None:
        self.ddp_model = None  # its hooks are on the float model's parameters
        self.model, self.quantized = self.quantize(self.model), True

    def wrapped(self, images: Tensor) -> nn.Module:
        """The model that trains: one that averages gradients over all processes, made for the first images."""
        if self.ddp_model is None:
            self.ddp_model = self.processes.ddp(self.model, images)
        return self.ddp_model

    def run(self, at: Position) -> None:
        """Train from `at` to the end of the last epoch and save it. Raises OSError if it cannot be saved."""
        for epoch in range(at.epoch, self.epochs):
            if epoch == self.quantize_from and not self.quantized:
                self.to_quantized()
            optim.check_covers(self.optimizer, self.model)
            with defer_signals():  # a signal ends the run after a step, or once the epoch is saved
                self._finish_epoch(epoch, self._train(epoch, at))
            at = Position(epoch + 1)
        self.saver.save_unsaved()

    def finish(self, reestimate: bool) -> None:
        """Set `model` to the best epoch's; without validation images, to the last or the average of the weights.

        reestimate: measure batch norm's statistics again. An average always needs it.
        """
        self.log.best = self.processes.broadcast_object(self.log.best)
        if self.log.best is not None:
            self.saver.load_best(self.model)
        elif self.average:
            self.average.swap()
        if self.average or reestimate:
            self.reestimate_batch_norm(self.model)

    def _train(self, epoch: int, at: Position) -> Score:
        """Do the steps of an epoch from `at` on; save between steps when that is due in any process.

        Raises UserError if the loss is NaN or infinite, before the optimizer steps where numbers are read
        at every step, and Interrupted after a signal.
        """
        self.model.train()
        batches, score, unread, device = self.train_batches, at.score, Unread(), self.processes.device
        done = at.step * batches.batch_size
        with (
            contextlib.closing(batches.epoch(epoch, at.step)) as loaded,
            self.log.epoch(len(batches.images), done) as progress,
            self.processes.as_one(self.model) as start_step,
            defer_signals() as request,
        ):
            for step, (images, labels) in zip(range(at.step, len(batches)), loaded, strict=True):
                images, labels = images.to(device), labels.to(device)
                start_step(self.noise.seed_of_first(epoch, step), len(images))
                self.wrapped(images)
                self._before_step(epoch, step)
                logits, loss = self._forward(images, labels)
                unread.add(logits.detach(), labels, loss)
                asked = bool(request.number), self.saver.is_due()
                images_of_all: int | Tensor
                share = len(labels) * self.processes.world_size
                if self._reads_after(step, any(asked)):
                    losses = unread.read(score)
                    flags = *asked, not all(map(math.isfinite, losses))
                    (stop, save, not_finite), images_of_all = self.processes.any_flag_and_sum(flags, len(labels))
                    if not_finite:
                        raise self._loss_error(losses, images, epoch, step)
                else:
                    stop, save, images_of_all = False, False, self.processes.total(len(labels))
                self._step(loss * (share / images_of_all))
                progress(score, images_of_all if isinstance(images_of_all, int) else share)
                if stop or save:
                    message = self._save(Position(epoch, step + 1, score))
                if stop:
                    raise Interrupted(request.number or SIGTERM, message)
        return score

    def _reads_after(self, step: int, asked: bool) -> bool:
        """Whether this step ends with a read. asked: for something that other processes do not know of."""
        at_once = asked and self.processes.world_size == 1
        return at_once or (step + 1) % self.read_every == 0 or step + 1 == len(self.train_batches)

    def _forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and loss. Under bf16 convolutions run in bfloat16; quantizers turn autocast off for themselves."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.wrapped(images)(images)
        return logits, self.loss_of(images, logits.float(), labels)

    def _step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()

    def _loss_error(self, losses: list[float], images: Tensor, epoch: int, step: int) -> UserError:
        """losses: of the steps since the last read, of which this step is the last, with these images."""
        at = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
        ago = 0 if at is None else len(losses) - 1 - at
        became = "of another process is not finite" if at is None else f"became {losses[at]}"
        layer = "not known, since the weights have changed since" if ago else first_not_finite(self.model, images)
        return UserError(
            f"the loss {became} in epoch {epoch + 1}, step {step + 1 - ago} of {len(self.train_batches)}; the first "
            f"layer whose output is not finite: {layer}; last.pt is from before: use it as model.weights of a run with "
            "another run.name and a smaller optim.lr"
        )

    def _before_step(self, epoch: int, step: int) -> None:
        self.noise.at(epoch, step)
        self.done = epoch + step / len(self.train_batches)
        self.lr = self.rate(self.done)
        optim.set_rate(self.optimizer, self.lr)

    def _finish_epoch(self, epoch: int, score: Score) -> None:
        """Score the epoch on the validation images, log it and save it."""
        self.processes.broadcast_buffers(self.model.buffers())
        total, best = metrics.sum_over_processes(score, self.processes), self.log.best
        counts = self.quantized or self.quantize_from >= self.epochs
        stage, lr = self.method if self.quantized else "float", self.lr
        with self._final_weights():
            better = self.log.record(stage, total, self._val_score(), lr, counts)
            if better and not self.saver.save_best(epoch + 1, self.model, self.log):
                self.log.best = best
        self._save(Position(epoch + 1))

    @contextlib.contextmanager
    def _final_weights(self) -> Iterator[None]:
        """Give the model the weights that it would have if training ended here."""
        if self.average is None or self.val_batches is None:
            yield
            return
        with self.average.applied_to(self.model):
            self.reestimate_batch_norm(self.model)
            yield

    def _val_score(self) -> Score | None:
        if self.val_batches is None:
            return None
        return metrics.sum_over_processes(
            metrics.score(self.model.eval(), self.val_batches, self.processes.device), self.processes
        )

    def _save(self, at: Position) -> str:
        return self.saver.save(at, self.model, self.optimizer, self.log)
