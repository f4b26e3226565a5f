"""Files and folders that survive crashes and other programs: atomic writes, a lock on a folder, making a folder."""

import contextlib
import csv
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.names import printable


def write_atomically(path: Path, write: Callable[[Path], object], keep: Path | None = None) -> None:
    """Call `write` with a temporary file in the folder of `path`, sync it to disk, then rename it to `path`.

    keep: if given, the previous `path` is first renamed to `keep`. At every moment, `path` or `keep` is complete.
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
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder against other train.py processes. Raises UserError if one of them has locked it.

    The operating system releases the lock when the process ends, even if it is killed. Does nothing on Windows.
    """
    try:
        import fcntl  # not on Windows
    except ImportError:
        yield
        return
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, not inherited by data workers
        except OSError:
            raise UserError(f"run.name: another train.py is writing to {folder}; choose another name") from None
        yield


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
