"""When a run saves, and how it resumes with bit-identical results."""

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from pathlib import Path

import torch
from torch import nn

from utils.console import say
from utils.distributed import Processes
from utils.errors import UserError, joined_lines
from utils.metrics import Score, sum_over_processes
from utils.runs import checkpoint, tensor_file
from utils.runs.folder import BEST, LAST, PREVIOUS
from utils.runs.interrupt import defer_signals
from utils.runs.log import RunLog


@dataclass
class Position:
    """How far training has come: epochs done, steps done of the next epoch, and this process's score in those steps.

    ended: training is complete and the model is final.
    """

    epoch: int = 0
    step: int = 0
    score: Score = field(default_factory=Score)
    ended: bool = False


def resume(
    state: dict | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    log: RunLog,
    processes: Processes,
) -> Position:
    """Load a checkpoint's state into the model, optimizer and log of a run of `epochs`; returns its position.

    Without a checkpoint (None) returns the start. Raises UserError if the checkpoint holds no training to continue.
    """
    if state is None:
        return Position()
    checkpoint.restore(model, state, LAST)
    try:
        position = _resume_training(state["epoch"], state["training"], optimizer, epochs, log)
    except Exception as error:  # the file may contain anything
        reason = joined_lines(error, 160)
        raise UserError(
            f"{LAST}: holds no training to continue ({reason}); to start from its weights set model.weights"
        ) from None
    if log.best is not None and processes.is_main and not (log.folder / BEST).is_file():
        say(f"{log.folder / BEST} is missing: the best of the remaining epochs will replace it")
        log.best = None
    log.best = processes.broadcast_object(log.best)
    return position if processes.is_main else Position(position.epoch, position.step, ended=position.ended)


def _resume_training(
    epoch: int, training: dict, optimizer: torch.optim.Optimizer, epochs: int, log: RunLog
) -> Position:
    """Load the optimizer's and the log's state. The run has ended if the checkpoint has no optimizer."""
    log.restore(training["log"])
    if epoch == epochs and "optimizer" not in training:
        return Position(epoch, ended=True)
    optimizer.load_state_dict(training["optimizer"])
    step = int(training["step"])
    place = f"in epoch {epoch + 1}" + (f", step {step}" if step else "")
    say("all epochs are done: continuing after them" if epoch == epochs else f"continuing {place}")
    images, correct1, correct5, loss_sum = training["score"]
    return Position(epoch, step, Score(int(images), int(correct1), int(correct5), float(loss_sum)))


class CheckpointSaver:
    """Saves last.pt and best.pt in `folder`, from the first process.

    pack(model, epochs done, training): makes the contents of a checkpoint. minutes: between two saves within an epoch.
    resume_hint: tells the user how to continue the run.
    """

    def __init__(
        self,
        folder: Path,
        pack: Callable[[nn.Module, int, dict], dict],
        minutes: float,
        resume_hint: str,
        processes: Processes,
    ):
        self.folder, self.pack, self.seconds, self.processes = folder, pack, 60 * minutes, processes
        self.resume_hint = resume_hint
        self.last_save = time.monotonic()
        self.unsaved: dict | None = None
        """The contents of last.pt, if the latest attempt to save it failed."""

    def is_due(self) -> bool:
        return self.processes.is_main and time.monotonic() - self.last_save >= self.seconds

    def save(self, position: Position, model: nn.Module, optimizer: torch.optim.Optimizer, log: RunLog) -> str:
        """Save last.pt and keep the one before as last.prev.pt. Every process must call it.

        Returns the message for a user who stops the run here.
        """
        total = sum_over_processes(position.score, self.processes)
        if self.processes.is_main:
            training = {"optimizer": optimizer.state_dict(), "step": position.step, "score": [*astuple(total)]}
            state = self.pack(model, position.epoch, training | {"log": log.state()})
            self.unsaved = None if self._write(LAST, state, self.folder / PREVIOUS) else state
        lost = " (which is not on disk)" if self.unsaved else ""
        return f"stopped after step {position.step} of epoch {position.epoch + 1}{lost}; {self.resume_hint}"

    def save_unsaved(self) -> None:
        """Save last.pt if the latest attempt failed. Raises OSError if it fails again."""
        if self.unsaved is not None:
            tensor_file.save(self.folder / LAST, self.unsaved, self.folder / PREVIOUS)

    def save_best(self, epoch: int, model: nn.Module, log: RunLog) -> bool:
        """Save best.pt; returns whether it is on disk.

        Call it before `save`: a run that is killed between the two then still finds the best of its epochs.
        """
        return not self.processes.is_main or self._write(BEST, self.pack(model, epoch, {"log": log.state()}))

    def load_best(self, model: nn.Module) -> None:
        """Load the weights of best.pt into the model. Every process must call it."""
        path = str(self.folder / BEST)
        checkpoint.restore(model, self.processes.from_main(lambda: checkpoint.load(path)), path)

    def _write(self, name: str, state: dict, keep: Path | None = None) -> bool:
        """Whether the file was written. A full disk does not end the run; the earlier file stays."""
        try:
            with defer_signals():
                tensor_file.save(self.folder / name, state, keep)
        except OSError as error:
            say(f"{self.folder / name} could not be saved ({error.strerror}); the run goes on, the last one stays")
            return False
        finally:
            self.last_save = time.monotonic()
        return True
