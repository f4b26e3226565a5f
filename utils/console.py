"""What the user is told: on the terminal, and in the run's own run.log."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

EVERY = 30.0
"""Seconds between the lines of long work where no terminal shows a bar."""


class _Terminal(logging.Handler):
    """Above the progress bars, on whatever stdout is now."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(record.getMessage())


_log = logging.getLogger("quantized_image_classification")
_log.setLevel(logging.INFO)
_log.propagate = False
_log.addHandler(_Terminal())


def say(text: str) -> None:
    _log.info(text)


def quiet() -> None:
    """Say nothing from now on: where another process speaks for all."""
    _log.setLevel(logging.CRITICAL)


@contextlib.contextmanager
def kept_in(path: Path) -> Iterator[None]:
    """Add every line that is said to a file, with the time, and why it ended early; go on where the disk is full."""
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s"))
    handler.handleError = lambda record: None
    _log.addHandler(handler)
    try:
        yield
    except (Exception, KeyboardInterrupt) as ended:
        handler.handle(logging.makeLogRecord({"msg": f"ended: {ended or type(ended).__name__}"}))
        raise
    finally:
        _log.removeHandler(handler)
        handler.close()


class Progress:
    """A bar with the time left in a terminal; elsewhere a line every 30 seconds. done: before this began."""

    def __init__(self, total: int, what: str, units: str, done: int = 0):
        hidden = _log.level > logging.INFO or None
        self.bar = tqdm(total=total, initial=done, desc=what, unit=f" {units}", leave=False, disable=hidden)
        self.total, self.what, self.units, self.done, self.before = total, what, units, done, done
        self.began = self.said = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def add(self, count: int, note: Callable[[], str] = lambda: "") -> None:
        """So many more are done. note(): what to say beside the count, asked only when it is shown."""
        self.done += count
        if not self.bar.disable:
            self.bar.set_postfix_str(note(), refresh=False)
            self.bar.update(count)
        elif (now := time.monotonic()) - self.said >= EVERY:
            self.said = now
            left = (now - self.began) / (self.done - self.before) * (self.total - self.done)
            more = f"; {note()}" if note() else ""
            say(f"{self.what}: {self.done:,} of {self.total:,} {self.units}, {_duration(left)} left{more}")


def tracked(items: Iterable, total: int, what: str, units: str) -> Iterator:
    """The items, with progress."""
    with Progress(total, what, units) as progress:
        for item in items:
            yield item
            progress.add(1)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
