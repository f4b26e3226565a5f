"""Files that are either the old ones or the new ones, never half of each."""

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError, nearest


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, bring it to disk, then rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


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


def save_tensors(path: Path, value: dict) -> None:
    """Write plain tensors and JSON-able values in torch's format."""
    write_whole(path, lambda part: torch.save(value, part))


def make_folder(path: Path, key: str) -> Path:
    """The folder that the setting has under `key`, made if need be. Raises UserError where there can be none."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be a folder ({error.strerror})") from None
    return path


def check_exists(path: str) -> None:
    """Raise UserError, with the nearest name beside it, if there is no such checkpoint."""
    if not Path(path).is_file():
        hint = nearest(path, map(str, Path(path).parent.glob("*.pt")))
        raise UserError(f"{path}: no such checkpoint" + (f", did you mean {hint}?" if hint else ""))


def load_tensors(path: str) -> dict:
    """Read what save_tensors wrote. Never runs code from the file; raises UserError when it cannot be read."""
    check_exists(path)
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # rubbish makes the unpickler raise all sorts
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not a readable checkpoint ({reason[:100]})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a checkpoint: holds a {type(value).__name__}")
    return value


def saved_megabytes(value: dict) -> float:
    """Decimal megabytes that torch.save of `value` takes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.tell() / 1e6
