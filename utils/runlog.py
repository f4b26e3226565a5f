"""What a run says while it trains: a bar, a line an epoch, metrics.csv."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from utils.files import write_csv
from utils.metrics import Score


class RunLog:
    """Rows of metrics.csv in `folder`, one an epoch, and the best validation accuracy so far (None without any)."""

    def __init__(self, folder: Path, epochs: int):
        self.folder, self.epochs = folder, epochs
        self.rows: list[dict] = []
        self.best: float | None = None
        self.seconds = 0.0

    @contextlib.contextmanager
    def bar(self, images: int) -> Iterator[Callable[[Score, int], None]]:
        """A progress bar over one epoch's images; yields progress(score so far, images of this step)."""
        began = time.time()
        with tqdm(total=images, desc=f"epoch {len(self.rows) + 1}", unit="image", leave=False, disable=None) as bar:

            def progress(score: Score, count: int) -> None:
                if not bar.disable:
                    now = score.summary()
                    bar.set_postfix_str(f"loss {now['loss']:.3f}, top-1 {now['top1']:.2f} %", refresh=False)
                bar.update(count)

            yield progress
        self.seconds = time.time() - began

    def epoch(self, stage: str, score: Score, held_out: Score | None, lr: float, candidate: bool) -> bool:
        """Record an epoch and print its line. True if it is a candidate and the best so far on the held-out images."""
        row = {"epoch": len(self.rows) + 1, "stage": stage}
        row |= {f"train_{key}": value for key, value in score.summary().items()}
        row |= {f"val_{key}": value for key, value in held_out.summary().items()} if held_out else {}
        row |= {"lr": lr, "seconds": self.seconds, "images_per_second": score.images / self.seconds}
        self.rows.append(row)
        write_csv(self.folder / "metrics.csv", self.rows)
        held = f"  val top-1 {row['val_top1']:6.2f} %" if held_out else ""
        print(
            f"epoch {row['epoch']:3}/{self.epochs}  {stage:10}  loss {row['train_loss']:.4f}  top-1 "
            f"{row['train_top1']:6.2f} %{held}  {self.seconds:6.1f} s  {row['images_per_second']:6.0f} images/s",
            flush=True,
        )
        better = bool(candidate and held_out and (self.best is None or row["val_top1"] > self.best))
        if better:
            self.best = row["val_top1"]
        return better
