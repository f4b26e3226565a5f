"""Files that are either the old ones or the new ones, never half of each."""

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


def write_whole(path: Path, write: Callable[[Path], object], keep: Path | None = None) -> None:
    """Let `write` fill a temporary file beside `path`, bring it to disk, then rename it to `path`.

    keep: the name under which the file that was `path` stays; at every moment `path` or `keep` is whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        part.replace(path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Bring the renaming itself to disk, where folders can be opened (not on Windows)."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def remove_parts(folder: Path) -> None:
    """Remove the temporary files that killed processes have left."""
    for part in folder.glob(".*.*.*"):
        if re.fullmatch(r"\..+\.\d+\.\w+", part.name):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other programs out of a folder while this one writes there. Raises UserError if one is at it.

    The system gives the lock back when the process ends, however it ends. Where there are no such locks: no check.
    """
    try:
        import fcntl  # not on Windows
    except ImportError:
        yield
        return
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not handed on to data workers
        except OSError:
            raise UserError(f"run.name: another train.py is at work in {folder}; give this one another") from None
        yield


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_csv(path: Path, rows: list[dict]) -> None:
    """Rows by their keys, which are the header; a row may lack some."""
    buffer = io.StringIO()
    header = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(buffer, fieldnames=header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def make_folder(path: Path, key: str) -> Path:
    """The folder that the setting has under `key`, made if need be. Raises UserError where there can be none, or where
    nobody can write into it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be a folder to write in ({error.strerror})") from None
