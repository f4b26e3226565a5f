"""Files of tensors and plain values in torch's format, with a checksum, and those of others, safetensors among them.

Loading one never runs code from it.
"""

import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError, first_line, nearest
from utils.files import write_atomically
from utils.runs.plain_values import ALLOWED, plain
from utils.runs.unpacking import check_archive, check_depth

CHECKSUM = "checksum"
SAFETENSORS = ".safetensors"
SUFFIXES = (".pt", ".pth", ".tar", ".bin", ".ckpt", SAFETENSORS)
"""Of files whose names may have been meant."""
OTHER_FILES = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: git lfs pull",
    b"<": "a web page, not the file that was to be downloaded",
    b"\x89HDF": "a file of HDF5 (Keras), not of torch",
    b"\x93NUMPY": "an array of NumPy, not a file of torch",
}
"""The first bytes of files that are often taken for checkpoints."""


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
    """Raise UserError if there is no such checkpoint; the message suggests the file, or run, of the nearest name."""
    if not Path(path).is_file():
        beside = Path(path).parent.glob("*")
        others = [str(one) for one in beside if one.suffix in SUFFIXES or any(one.glob("*.pt"))]
        hint = nearest(path, others)
        raise UserError(f"{path}: no such checkpoint" + (f", did you mean {hint}?" if hint else ""))


def load(path: str) -> dict:
    """Read what `save` wrote, or the file of another program: torch's, or safetensors. Never runs code from the file.

    Raises UserError if it cannot be read or does not match its checksum.
    """
    check_exists(path)
    value = _read_safetensors(path) if path.endswith(SAFETENSORS) else _read_torch(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a checkpoint: holds a {type(value).__name__}")
    _check_sizes(path, value)
    written = value.pop(CHECKSUM, None)
    if written is not None and written != checksum(value):
        raise UserError(f"{path}: damaged: its contents are not those that were written (checksum)")
    return value


def _read_torch(path: str) -> Any:
    try:
        size = check_archive(path)
        check_depth(path)
        with torch.serialization.safe_globals(ALLOWED):
            return plain(torch.load(path, map_location="cpu", weights_only=True), size)
    except Exception as error:  # a corrupt file makes the unpickler raise anything
        raise UserError(f"{path}: not a readable checkpoint ({_why_unreadable(path, error)})") from None


def _why_unreadable(path: str, error: Exception) -> str:
    """The cause, in terms of the file: what it is instead, or what it would run."""
    with open(path, "rb") as file:
        start = file.read(64)
    for first_bytes, what in OTHER_FILES.items():
        if start.lstrip().startswith(first_bytes):
            return what
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named:
        return (
            f"loading it would run code of {named[1]}; if it is of somebody you trust, save the weights alone where "
            "they come from: torch.save(model.state_dict(), file)"
        )
    if "TorchScript" in str(error):
        return "an archive of TorchScript; save the state dict of the model that it was made of"
    unpickling = re.search(r"WeightsUnpickler error: (.+)", str(error))
    return unpickling[1][:100] if unpickling else first_line(error, 100)


def _read_safetensors(path: str) -> dict:
    try:
        from safetensors.torch import load_file  # imported here because few runs need it
    except ImportError:
        raise UserError(f"{path}: safetensors is not installed; pip install safetensors") from None
    try:
        check_archive(path)
        return load_file(path)
    except Exception as error:
        raise UserError(f"{path}: not a readable checkpoint ({first_line(error, 100)})") from None


def _check_sizes(path: str, value: Any) -> None:
    """Refuse tensors that claim more bytes than the file contains: a small file could claim a terabyte."""
    if isinstance(value, Tensor):
        if value.device.type != "cpu":
            raise UserError(f"{path}: not a checkpoint: a tensor of {tuple(value.shape)} without values")
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
