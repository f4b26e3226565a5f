"""Files of tensors and plain values in torch's format, with a checksum. Loading one never runs code from it."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError, first_line, nearest
from utils.files import write_atomically

CHECKSUM = "checksum"


def save(path: Path, value: dict, keep: Path | None = None) -> None:
    """Write plain tensors and JSON-able values in torch's format, with a checksum. keep: as in files.write_atomically.

    Raises OSError if the disk is full; the earlier file is then unchanged.
    """
    buffer = io.BytesIO()  # so that a full disk raises OSError rather than an error of torch's
    torch.save(value | {CHECKSUM: checksum(value)}, buffer)
    write_atomically(path, lambda part: part.write_bytes(buffer.getbuffer()), keep)


def checksum(value: Any) -> str:
    """SHA-256 of nested dicts and lists: names, shapes, dtypes and bytes of all tensors, and all plain values."""
    digest = hashlib.sha256()
    for leaf in _leaves(value):
        digest.update(leaf)
    return digest.hexdigest()


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Tensor):
        yield f"{value.dtype}{tuple(value.shape)};".encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    elif isinstance(value, dict):
        yield f"dict{len(value)};".encode()
        for key, item in value.items():
            yield f"{key!r}:".encode()
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        yield f"list{len(value)};".encode()
        for item in value:
            yield from _leaves(item)
    else:
        yield f"{value!r};".encode()


def check_exists(path: str) -> None:
    """Raise UserError if there is no such checkpoint; the message suggests the file with the nearest name."""
    if not Path(path).is_file():
        hint = nearest(path, map(str, Path(path).parent.glob("*.pt")))
        raise UserError(f"{path}: no such checkpoint" + (f", did you mean {hint}?" if hint else ""))


def load(path: str) -> dict:
    """Read what `save` wrote, or a plain state dict. Never runs code from the file.

    Raises UserError if it cannot be read or does not match its checksum.
    """
    check_exists(path)
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a corrupt file makes the unpickler raise anything
        raise UserError(f"{path}: not a readable checkpoint ({first_line(error, 100)})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a checkpoint: holds a {type(value).__name__}")
    _check_sizes(path, value)
    written = value.pop(CHECKSUM, None)
    if written is not None and written != checksum(value):
        raise UserError(f"{path}: damaged: its contents are not those that were written (checksum)")
    return value


def _check_sizes(path: str, value: Any) -> None:
    """Refuse tensors that claim more bytes than the file contains: a small file could claim a terabyte."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.nbytes > value.untyped_storage().nbytes():
            raise UserError(f"{path}: not a checkpoint: a tensor of {tuple(value.shape)} in too few bytes")
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            _check_sizes(path, item)


def megabytes(value: dict) -> float:
    """Size of `value` as torch.save writes it, in decimal megabytes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.tell() / 1e6
