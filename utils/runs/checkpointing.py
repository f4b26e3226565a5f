"""When a run saves, and what a checkpoint holds beside the model so that it goes on from there to the bit."""

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from pathlib import Path

import torch
from torch import nn

from utils.runs import checkpoint
from utils.runs import interrupt
from utils.runs import tensor_file
from utils.errors import UserError
from utils.metrics import Score, of_all
from utils.distributed import Processes
from utils.runs.folder import BEST, LAST, PREVIOUS
from utils.runs.log import RunLog
from utils.console import say


@dataclass
class Position:
    """Epochs done, steps done of the next one, and what this process has counted in them.

    ended: the model is what the run ends with, and nothing is left to do with it.
    """

    epoch: int = 0
    step: int = 0
    score: Score = field(default_factory=Score)
    ended: bool = False


def restored(
    state: dict | None, model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int, log: RunLog, processes: Processes
) -> Position:
    """Put the state of a checkpoint of a run of so many epochs back, and return its position; without one, the
    beginning."""
    if state is None:
        return Position()
    checkpoint.restore(model, state, LAST)
    try:
        at = _restored(state["epoch"], state["training"], optimizer, epochs, log)
    except Exception as error:  # whatever else than a training may be in the file
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{LAST}: holds no training to go on with ({reason}); model.weights takes weights") from None
    if log.best is not None and processes.is_main and not (log.folder / BEST).is_file():
        say(f"{log.folder / BEST} is not there any more: the best of the epochs to come will be")
        log.best = None
    log.best = processes.broadcast_object(log.best)
    return at if processes.is_main else Position(at.epoch, at.step, ended=at.ended)


def _restored(epoch: int, training: dict, optimizer: torch.optim.Optimizer, epochs: int, log: RunLog) -> Position:
    log.restore(training["log"])
    if epoch == epochs and "optimizer" not in training:
        return Position(epoch, ended=True)
    optimizer.load_state_dict(training["optimizer"])
    step = int(training["step"])
    at = f"in epoch {epoch + 1}" + (f", step {step}" if step else "")
    say("all epochs are done: going on after them" if epoch == epochs else f"going on {at}")
    images, correct1, correct5, loss_sum = training["score"]
    return Position(epoch, step, Score(int(images), int(correct1), int(correct5), float(loss_sum)))


class Keeper:
    """Saves last.pt and best.pt in `folder`, in the first process.

    pack(model, epochs done, training): the checkpoint; minutes: between two within an epoch; how: to go on with it.
    """

    def __init__(
        self, folder: Path, pack: Callable[[nn.Module, int, dict], dict], minutes: float, how: str, processes: Processes
    ):
        self.folder, self.pack, self.seconds, self.how, self.processes = folder, pack, 60 * minutes, how, processes
        self.saved = time.monotonic()
        self.owed: dict | None = None

    def due(self) -> bool:
        return self.processes.is_main and time.monotonic() - self.saved >= self.seconds

    def keep(self, at: Position, model: nn.Module, optimizer: torch.optim.Optimizer, log: RunLog) -> str:
        """Save last.pt, its predecessor as last.prev.pt; to be called in all processes. Returns how to go on."""
        total = of_all(at.score, self.processes)
        if self.processes.is_main:
            training = {"optimizer": optimizer.state_dict(), "step": at.step, "score": [*astuple(total)]}
            state = self.pack(model, at.epoch, training | {"log": log.state()})
            self.owed = None if self._save(LAST, state, self.folder / PREVIOUS) else state
        lost = " (which is not on disk)" if self.owed else ""
        return f"stopped after step {at.step} of epoch {at.epoch + 1}{lost}; {self.how}"

    def settle(self) -> None:
        """Save the last epoch's last.pt, if that failed. Raises OSError if it cannot be saved now, either."""
        if self.owed is not None:
            tensor_file.save(self.folder / LAST, self.owed, self.folder / PREVIOUS)

    def keep_best(self, epoch: int, model: nn.Module, log: RunLog) -> bool:
        """Save best.pt: before last.pt, so that a run that is killed in between finds the best of its epochs."""
        return not self.processes.is_main or self._save(BEST, self.pack(model, epoch, {"log": log.state()}))

    def load_best(self, model: nn.Module) -> None:
        """Give the model the weights of best.pt; to be called in all processes."""
        path = str(self.folder / BEST)
        checkpoint.restore(model, self.processes.broadcast_object(checkpoint.load(path)[0] if self.processes.is_main else None), path)

    def _save(self, name: str, state: dict, keep: Path | None = None) -> bool:
        """Whether it is on disk. A full disk does not end the run; the files of before stay."""
        try:
            with interrupt.listening():
                tensor_file.save(self.folder / name, state, keep)
        except OSError as error:
            say(f"{self.folder / name} could not be saved ({error.strerror}); the run goes on, the last one stays")
            return False
        finally:
            self.saved = time.monotonic()
        return True
