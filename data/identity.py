"""Which images a dataset holds, as plain values that can be stored and compared: those a run was trained on, say.

Files are told apart by their names below their common folder, their sizes and, a thousand of them, by how they begin.
So neither the place of a folder nor the time of a file matters. Images that came from no files are told apart by their
contents.
"""

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from data.images import Dataset, Files, Images

SAMPLES, BEGINNING = 1000, 2**16
"""How many files are opened, evenly spread, and how many bytes of each are read."""
PARTS = {"training": "train", "validation": "val", "test": "test"}
"""What a part is called in messages -> the field of Dataset."""


def identity(dataset: Dataset) -> dict[str, Any]:
    """The classes by number, mean and std and, for each part that is loaded, its images of each class and a digest."""
    found: dict[str, Any] = {"classes": {str(i): name for i, name in enumerate(dataset.classes)}}
    found["normalization"] = {"mean": [*dataset.mean], "std": [*dataset.std]}
    parts = {part: getattr(dataset, field) for part, field in PARTS.items()}
    return found | {part: _of_part(images, dataset.classes) for part, images in parts.items() if images is not None}


def _of_part(images: Images | Files, classes: list[str]) -> dict[str, Any]:
    counts = torch.bincount(images.labels, minlength=len(classes)).tolist()
    digest = hashlib.blake2b(digest_size=16)
    for chunk in _told_apart_by(images):
        digest.update(chunk)
    named = {f"{i} {name}": count for i, (name, count) in enumerate(zip(classes, counts, strict=True))}
    return {"images": named, "digest": digest.hexdigest()}


def _told_apart_by(images: Images | Files) -> Iterator[bytes | memoryview]:
    if isinstance(images, Files):
        return _names_and_sizes(images)
    return _contents(images) if images.source is None else _names_and_sizes(images.source)


def _contents(images: Images) -> Iterator[memoryview]:
    tensors: tuple[Tensor, ...] = (images.labels, images.pixels)
    return (tensor.contiguous().numpy().data.cast("B") for tensor in tensors)


def _names_and_sizes(files: Files) -> Iterator[bytes]:
    names = [os.fsencode(path) for path in files.paths]
    above = len(_common_folder(names))
    for name, label in zip(names, files.labels.tolist(), strict=True):
        yield b"%s\0%d\0%d\n" % (name[above:], _size(name), label)
    for name in names[:: max(1, len(names) // SAMPLES)]:
        yield _beginning(name)


def _common_folder(names: list[bytes]) -> bytes:
    """The folder above the classes' folders, which all paths have in common."""
    return os.path.commonpath([os.path.dirname(os.path.dirname(name)) for name in (min(names), max(names))])


def _beginning(name: bytes) -> bytes:
    """Of a file; nothing of one that cannot be read, which those who open it will name."""
    try:
        with open(name, "rb") as file:
            return file.read(BEGINNING)
    except OSError:
        return b""


def _size(name: bytes) -> int:
    """In bytes; -1 for a file that cannot be read."""
    try:
        return os.stat(name).st_size
    except OSError:
        return -1
