"""Messages to the user: on the terminal and, during a run, also in its run.log."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from utils.names import printable

PROGRESS_SECONDS = 30.0
"""Seconds between progress messages if there is no terminal to show a progress bar."""


class _Terminal(logging.Handler):
    """Writes to the current sys.stdout, above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(record.getMessage())


_log = logging.getLogger("quantized_image_classification")
_log.setLevel(logging.INFO)
_log.propagate = False
_log.addHandler(_Terminal())


def say(text: str) -> None:
    """Print a message; within `log_to`, also append it to the log file.

    Nothing that names in it hold reaches a terminal as a command. Its lines are its own: a name that may hold an end of
    a line is to be made printable before it becomes part of a message, as UserError does.
    """
    _log.info(printable(text, keep="\n"))


def quiet() -> None:
    """Print nothing from now on. Called in all processes but the first."""
    _log.setLevel(logging.CRITICAL)


class _MessageFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore a full disk."""


class _Memory(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextlib.contextmanager
def captured_messages() -> Iterator[list[logging.LogRecord]]:
    """Yield a list to which every message is also added: for `log_to`, where the file cannot be opened yet."""
    handler = _Memory()
    _log.addHandler(handler)
    try:
        yield handler.records
    finally:
        _log.removeHandler(handler)


@contextlib.contextmanager
def log_to(path: Path, earlier: Sequence[logging.LogRecord] = ()) -> Iterator[None]:
    """Also append every message to this file, with the time. If an exception ends the block, append its message.

    earlier: messages before the block, which come first. Errors in writing, such as a full disk, are ignored.
    """
    handler = _MessageFile(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s"))
    _log.addHandler(handler)
    for record in earlier:
        handler.handle(record)
    try:
        yield
    except (Exception, KeyboardInterrupt) as ended:
        reason = printable(str(ended)) or type(ended).__name__
        handler.handle(logging.makeLogRecord({"msg": f"ended: {reason}"}))
        raise
    finally:
        _log.removeHandler(handler)
        handler.close()


class Progress:
    """A progress bar with the time left; without a terminal, a message every 30 seconds.

    total: the number of units. what: the name of the work. units: their name in the plural. done: how many are already
    done at the start. later: how many of other bars follow, which count in the time left.
    """

    def __init__(self, total: int, what: str, units: str, done: int = 0, later: int = 0):
        hidden = _log.level > logging.INFO or None
        shape = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
        self.bar = tqdm(
            total=total, initial=done, desc=what, leave=False, disable=hidden, bar_format=shape, dynamic_ncols=True
        )
        self.later = later
        self.total, self.what, self.units, self.done, self.done_before = total, what, units, done, done
        self.started = self.last_line = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def add(self, count: int, note: Callable[[], str] = lambda: "") -> None:
        """Report that `count` more are done. note(): text next to the count, called only when it is shown."""
        self.done += count
        if not self.bar.disable:
            self.bar.set_postfix_str(", ".join(filter(None, [note(), f"{self._left()} left"])), refresh=False)
            self.bar.update(count)
        elif (now := time.monotonic()) - self.last_line >= PROGRESS_SECONDS:
            self.last_line = now
            more = f"; {note()}" if note() else ""
            say(f"{self.what}: {self.done:,} of {self.total:,} {self.units}, {self._left()} left{more}")

    def _left(self) -> str:
        each = (time.monotonic() - self.started) / (self.done - self.done_before)
        return duration(each * (self.total - self.done + self.later))


def tracked(items: Iterable, total: int, what: str, units: str) -> Iterator:
    """Iterate over the items and show progress."""
    with Progress(total, what, units) as progress:
        for item in items:
            yield item
            progress.add(1)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
