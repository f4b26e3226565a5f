"""What a run says while it trains: a bar or lines, a line an epoch, metrics.csv, TensorBoard's events."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from utils.errors import UserError
from utils.files import write_csv
from utils.metrics import Score
from utils.console import Progress, say

LEVELS = (50, 60, 70, 80, 85, 90, 92, 94, 95)
"""Percent of the held-out images, of which a run says when it got there."""


class RunLog:
    """Rows of metrics.csv in `folder`, one an epoch, and the best validation accuracy so far (None without any).

    seconds: of this epoch, before: of the run, in processes that were interrupted.
    writes: whether this process does (the first of several). tensorboard: also as an event file.
    """

    def __init__(self, folder: Path, epochs: int, writes: bool = True, tensorboard: bool = False):
        self.folder, self.epochs, self.writes = folder, epochs, writes
        self.rows: list[dict] = []
        self.best: float | None = None
        self.seconds, self.before = 0.0, 0.0
        self.started = self.began = time.monotonic()
        self.events = _event_writer(folder) if tensorboard and writes else None

    def state(self) -> dict:
        """What a checkpoint keeps of it."""
        in_epoch = self.seconds + time.monotonic() - self.began
        return {"rows": self.rows, "best": self.best, "seconds": in_epoch, "run_seconds": self.run_seconds()}

    def restore(self, state: dict) -> None:
        self.rows, self.best, self.seconds = list(state["rows"]), state["best"], state["seconds"]
        self.before = state["run_seconds"]

    def run_seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    @contextlib.contextmanager
    def epoch(self, images: int, seen: int) -> Iterator[Callable[[Score, int], None]]:
        """Progress over one epoch's images, some of them seen before; yields progress(score, images of a step)."""
        if not seen:
            self.seconds = 0.0
        self.began = time.monotonic()
        with Progress(images, f"epoch {len(self.rows) + 1}", "images", seen) as bar:
            yield lambda score, count: bar.add(count, lambda: _short(score))

    def record(self, stage: str, score: Score, held_out: Score | None, lr: float, candidate: bool) -> bool:
        """Keep an epoch and say its line. True if it is a candidate and the best so far on the held-out images."""
        self.seconds += time.monotonic() - self.began
        row = {"epoch": len(self.rows) + 1, "stage": stage}
        row |= {f"train_{key}": value for key, value in score.summary().items()}
        row |= {f"val_{key}": value for key, value in held_out.summary().items()} if held_out else {}
        row |= {"lr": lr, "seconds": self.seconds, "images_per_second": score.images / self.seconds}
        self.rows.append(row)
        if self.writes:
            self._write(row)
        held = f"  val top-1 {row['val_top1']:6.2f} %" if held_out else ""
        say(
            f"epoch {row['epoch']:3}/{self.epochs}  {stage:10}  loss {row['train_loss']:.4f}  top-1 "
            f"{row['train_top1']:6.2f} %{held}  {self.seconds:6.1f} s  {row['images_per_second']:6.0f} images/s"
        )
        better = bool(candidate and held_out and (self.best is None or row["val_top1"] > self.best))
        if better:
            self.best = row["val_top1"]
        return better

    def _write(self, row: dict) -> None:
        try:
            write_csv(self.folder / "metrics.csv", self.rows)
            for key, value in row.items() if self.events else ():
                if key not in ("epoch", "stage"):
                    self.events.add_scalar(key.replace("_", "/", 1), value, row["epoch"])
        except OSError as error:
            say(f"metrics.csv could not be written ({error.strerror}); the run goes on")


def time_to_accuracy(rows: list[dict]) -> str:
    """When the held-out images were first classified so well: '70 % after 1.2 min, 80 % after 2.5 min'; or nothing."""
    found, seconds = {}, 0.0
    for row in rows:
        seconds += row["seconds"]
        for level in LEVELS:
            if row.get("val_top1", 0.0) >= level:
                found.setdefault(level, seconds / 60)
    return ", ".join(f"{level} % after {minutes:.1f} min" for level, minutes in found.items())


def _short(score: Score) -> str:
    now = score.summary()
    return f"loss {now['loss']:.3f}, top-1 {now['top1']:.2f} %"


def check_tensorboard() -> None:
    """Raise UserError if event files cannot be written."""
    try:
        import tensorboard  # noqa: F401, an optional package
    except ImportError:
        raise UserError("run.tensorboard: tensorboard is not installed; pip install tensorboard") from None


def _event_writer(folder: Path):
    from torch.utils.tensorboard import SummaryWriter  # here: seconds to import, and optional

    return SummaryWriter(str(folder / "tensorboard"))
