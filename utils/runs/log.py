"""What a run reports while it trains: a progress bar or lines, a line an epoch, metrics.csv and TensorBoard events."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from utils.console import Progress, duration, say
from utils.errors import UserError
from utils.files import write_csv
from utils.metrics import Score

LEVELS = (50, 60, 70, 80, 85, 90, 92, 94, 95)
"""Accuracies on the validation images, in percent, for which `time_to_accuracy` reports the training time."""


class RunLog:
    """The rows of metrics.csv in `folder`, one an epoch, and the best validation accuracy so far (None without any).

    writes: whether this process writes files (only the first of several does). tensorboard: also write an event file.
    """

    def __init__(self, folder: Path, epochs: int, writes: bool = True, tensorboard: bool = False):
        self.folder, self.epochs, self.writes = folder, epochs, writes
        self.rows: list[dict] = []
        self.best: tuple[float, float] | None = None
        """Top-1 in percent and the negative loss, which counts among epochs of the same top-1."""
        self.epoch_seconds, self.earlier_seconds = 0.0, 0.0
        """Time spent on the current epoch before `epoch_started`, and on the run before this process started."""
        self.started = self.epoch_started = time.monotonic()
        self.events = _event_writer(folder) if tensorboard and writes else None

    def state(self) -> dict:
        """What a checkpoint stores of the log."""
        in_epoch = self.epoch_seconds + time.monotonic() - self.epoch_started
        return {
            "rows": self.rows,
            "best": self.best and [*self.best],
            "seconds": in_epoch,
            "run_seconds": self.run_seconds(),
        }

    def restore(self, state: dict) -> None:
        self.rows, best, self.epoch_seconds = list(state["rows"]), state["best"], state["seconds"]
        self.best = (best, math.inf) if isinstance(best, float | int) else best and tuple(best)  # earlier: top-1 alone
        self.earlier_seconds = state["run_seconds"]

    def run_seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.started

    @contextlib.contextmanager
    def epoch(self, images: int, done: int) -> Iterator[Callable[[Score, int], None]]:
        """Show progress over an epoch of `images`, of which `done` were processed before the run was resumed.

        Yields progress(score so far, images of this step).
        """
        if not done:
            self.epoch_seconds = 0.0
        self.epoch_started = time.monotonic()
        number = len(self.rows) + 1
        later = images * (self.epochs - number)
        with Progress(images, f"epoch {number}/{self.epochs}", "images", done, later) as bar:
            yield lambda score, count: bar.add(count, lambda: _short(score))

    def record(self, stage: str, score: Score, val_score: Score | None, lr: float, candidate: bool) -> bool:
        """Store and print an epoch. Returns whether it is a candidate and the best so far on the validation images."""
        self.epoch_seconds += time.monotonic() - self.epoch_started
        row: dict[str, Any] = {"epoch": len(self.rows) + 1, "stage": stage}
        row |= {f"train_{key}": value for key, value in score.summary().items()}
        row |= {f"val_{key}": value for key, value in val_score.summary().items()} if val_score else {}
        row |= {"lr": lr, "seconds": self.epoch_seconds, "images_per_second": score.images / self.epoch_seconds}
        self.rows.append(row)
        if self.writes:
            self._write(row)
        say(_line(row, self.epochs))
        found = (row["val_top1"], -row["val_loss"]) if candidate and val_score else None
        better = found is not None and (self.best is None or found > self.best)
        if better:
            self.best = found
        return better

    def best_epoch(self) -> int | None:
        """The number of the best epoch; None without validation images."""
        found = (row for row in self.rows if self.best == (row.get("val_top1"), -row.get("val_loss", math.nan)))
        return next((row["epoch"] for row in found), None)

    def _write(self, row: dict) -> None:
        try:
            write_csv(self.folder / "metrics.csv", self.rows)
            if self.events is None:
                return
            for key, value in row.items():
                if key not in ("epoch", "stage"):
                    self.events.add_scalar(key.replace("_", "/", 1), value, row["epoch"])
        except OSError as error:
            say(f"metrics.csv could not be written ({error.strerror}); the run goes on")


def time_to_accuracy(rows: list[dict]) -> str:
    """After how much training each level was first reached: '70 % after 1.2 min, 80 % after 2.5 min'; or ''."""
    found: dict[int, float] = {}
    seconds = 0.0
    for row in rows:
        seconds += row["seconds"]
        for level in LEVELS:
            if row.get("val_top1", 0.0) >= level:
                found.setdefault(level, seconds / 60)
    highest = {minutes: level for level, minutes in sorted(found.items())}  # of those reached at the same time
    return ", ".join(f"{level} % after {minutes:.1f} min" for minutes, level in highest.items())


def _line(row: dict, epochs: int) -> str:
    """'epoch  3/20  statassist  loss 0.848  train top-1  88.19 %  val  90.00 %  64.3 s', of at most 80 characters."""
    number = f"epoch {row['epoch']:{len(str(epochs))}}/{epochs}"
    val = f"  val {row['val_top1']:6.2f} %" if "val_top1" in row else ""
    seconds = f"{row['seconds']:.1f} s" if row["seconds"] < 100 else duration(row["seconds"])
    train = f"loss {row['train_loss']:.3f}  train top-1 {row['train_top1']:6.2f} %"
    return f"{number} {row['stage']:10}  {train}{val}  {seconds}"


def _short(score: Score) -> str:
    if not score.images:
        return ""
    now = score.summary()
    return f"loss {now['loss']:.3f}, train top-1 {now['top1']:.2f} %"


def check_tensorboard() -> None:
    """Raise UserError if event files cannot be written."""
    try:
        import tensorboard  # noqa: F401, an optional package
    except ImportError:
        raise UserError("run.tensorboard: tensorboard is not installed; pip install tensorboard") from None


def _event_writer(folder: Path):
    from torch.utils.tensorboard import SummaryWriter  # here: seconds to import, and optional

    return SummaryWriter(str(folder / "tensorboard"))
