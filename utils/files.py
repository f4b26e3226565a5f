"""Files and folders that survive crashes, full disks and other programs: atomic writes, locks, making a folder."""

import contextlib
import csv
import functools
import io
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from utils.console import say
from utils.errors import UserError, first_line
from utils.names import printable


def write_atomically(path: Path, write: Callable[[Path], object], keep: Path | None = None) -> None:
    """Call `write` with a temporary file in the folder of `path`, sync it to disk, then rename it to `path`.

    keep: if given, the previous `path` is first renamed to `keep`. At every moment, `path` or `keep` is complete.
    An OSError names `path`: writing to a full disk raises one that names no file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Sync a renaming to disk. Does nothing if folders cannot be opened (Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_temporary_files(folder: Path) -> None:
    """Remove temporary files that killed processes left in a folder."""
    for path in folder.glob(".*.*.*"):
        if re.fullmatch(r"\..+\.\d+\.\w+", path.name):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path, patience: float = 0) -> Iterator[None]:
    """Lock a folder against other train.py processes, under each of its names. Raises UserError if one has locked it.

    patience: seconds to wait for that one first. The operating system releases the lock when the process ends, even if
    it is killed. Does nothing on Windows.
    """
    try:
        import fcntl  # not on Windows
    except ImportError:
        yield
        return
    with contextlib.ExitStack() as stack:
        # where a link leads, too, so that two names of one folder are one; and the link, which may be renamed
        for name in {folder.resolve(), folder.parent.resolve() / folder.name}:
            file = stack.enter_context(_lock_file(name.with_name(f".{name.name}.lock")))
            # unlike flock, not inherited
            lock = functools.partial(fcntl.lockf, file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _succeeds(lock, patience):
                raise UserError(f"run.name: another train.py is writing to {folder}; choose another name")
        yield


def _succeeds(attempt: Callable[[], object], patience: float) -> bool:
    """Whether the attempt ends without an OSError within so many seconds; it is made once at least."""
    deadline = time.monotonic() + patience
    while True:
        with contextlib.suppress(OSError):
            attempt()
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)


def _lock_file(path: Path) -> IO[bytes]:
    """The file, opened to be locked: never a link's target, never emptied. Raises UserError for what is no file."""
    try:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe would wait for a reader
        file = os.fdopen(os.open(path, flags, 0o666), "ab")
    except OSError as error:
        raise UserError(f"run.name: cannot lock the folder with {path} ({error.strerror})") from None
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise UserError(f"run.name: cannot lock the folder with {path} (not a file)")


@contextlib.contextmanager
def if_possible(path: Path) -> Iterator[None]:
    """Do without a file that cannot be written because the disk is full, say: a line says so, and what follows runs."""
    try:
        yield
    except OSError as error:
        say(f"{path} could not be written ({error.strerror or first_line(error)}); going on without it")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8. What cannot be written so, such as a file name's bytes that are not, becomes an escape."""
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows as CSV. The header has the keys of all rows; a missing value is left empty.

    Text is made printable. If a spreadsheet would compute it, an apostrophe goes before it, so that it is shown.
    """
    buffer = io.StringIO()
    header = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(_cell, header))
    writer.writerows([_cell(row.get(key, "")) for key in header] for row in rows)
    write_text(path, buffer.getvalue())


def _cell(value: Any) -> Any:
    """A value of a table as it is written: numbers as they are, also those that are text."""
    if not isinstance(value, str):
        return value
    with contextlib.suppress(ValueError):
        float(value)
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def make_folder(path: Path, key: str) -> Path:
    """Create a folder if it does not exist and return it. Raises UserError if it cannot be created or written to.

    key: the key of the setting that names the folder, for the message.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise UserError(f"{key}: {path} is not a folder that can be written to ({error.strerror})") from None
