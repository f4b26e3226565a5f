"""The file format of MNIST and its kin, packed by gzip or not.

Two zero bytes, a type (8: unsigned bytes), the number of axes, the length of each axis in four bytes, and the values.
"""

import gzip
from pathlib import Path

import numpy
import torch
from torch import Tensor

from utils.errors import UserError, first_line

BYTES = 8
NAMES = {True: "train", False: "t10k"}
FOLDERS = ("", "FashionMNIST/raw")
"""Where the files may lie below the root: there itself, or where torchvision puts them."""


def parts(root: Path, train: bool) -> list[tuple[Tensor, Tensor]]:
    """(images uint8 [N, H, W], labels uint8 [N]) of the training part, if asked for, and of the test part.

    An empty list if the files are not there. Raises UserError for one that cannot be read.
    """
    kinds = [
        f"{NAMES[part]}-{kind}"
        for part in ([True] if train else []) + [False]
        for kind in ("images-idx3", "labels-idx1")
    ]
    for folder in FOLDERS:
        found = [_find(root / folder / f"{kind}-ubyte") for kind in kinds]
        if all(found):
            read_in = [read(path) for path in found if path]
            return [*zip(read_in[::2], read_in[1::2], strict=True)]
    return []


def _find(path: Path) -> Path | None:
    return next((one for one in (path, path.with_name(f"{path.name}.gz")) if one.is_file()), None)


def read(path: Path) -> Tensor:
    """The unsigned bytes of a file. Raises UserError if it is damaged or of another type."""
    try:
        packed = path.read_bytes()
        raw = gzip.decompress(packed) if path.suffix == ".gz" else packed
        kind, axes = raw[2], raw[3]
        shape = numpy.frombuffer(raw, ">u4", axes, offset=4)
        if raw[:2] != b"\0\0" or kind != BYTES:
            raise ValueError("not unsigned bytes")
        values = numpy.frombuffer(raw, numpy.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise UserError(f"data.root: {path} is not a readable IDX file ({first_line(error)})") from None
    return torch.from_numpy(values.copy())
