"""Datasets that are not in the table: `package.module:function`.

The function takes (image_size, limit, train) and the further keys of the setting's data section by name, as the loaders
of data/sources.py do, and returns a data.Dataset. Where data.channels is not 3, it takes `channels`, too.
"""

from typing import Any

import torch
from pydantic import ConfigDict
from torch import Tensor

from data.images import Dataset, Images
from utils import importing
from utils.errors import UserError
from utils.sections import Section


class Options(Section):
    """Whatever the function takes."""

    model_config = ConfigDict(extra="allow")


def function(name: str) -> importing.Function:
    """The function of that name. Raises UserError if there is none."""
    source, _, member = name.partition(":")
    return importing.member(source, member, "data.name")


def load(
    name: str, image_size: int, limit: int | None, train: bool, options: dict[str, Any], channels: int = 3
) -> Dataset:
    """Call the function. Raises UserError, in one line, if it cannot be called so or returns no Dataset."""
    given = {"image_size": image_size, "limit": limit, "train": train} | options
    given |= {} if channels == 3 else {"channels": channels}
    found = importing.call(function(name), given, f"data.name: {name}")
    if not isinstance(found, Dataset):
        raise UserError(f"data.name: {name} returned a {type(found).__name__}, not a data.Dataset")
    if train and found.train is None:
        raise UserError(f"data.name: {name} returned no training images for train=True")
    for images in (found.train, found.test):
        if isinstance(images, Images):
            _check_pixels(images.pixels, [image_size, image_size, channels], name)
    if {len(found.mean), len(found.std)} != {channels}:
        raise UserError(f"data.name: {name} returned a mean or std of other than {channels} channel(s)")
    return found


def _check_pixels(pixels: Tensor, shape: list[int], name: str) -> None:
    if pixels.dtype is not torch.uint8 or [*pixels.shape[1:]] != shape:
        kind = str(pixels.dtype).removeprefix("torch.")
        wanted = f"uint8 [N, {', '.join(map(str, shape))}]"
        raise UserError(f"data.name: {name} returned pixels {kind} {list(pixels.shape)}, not {wanted}")


def check_trusted(
    name: str, trust: bool | str, remedy: str = "set trust=true if you trust its origin", checkpoint: str | None = None
) -> None:
    """Raise UserError where a checkpoint names a function as its dataset that utils/importing.py does not trust.

    checkpoint: its path. trust: True, or this very name, skips the check.
    """
    if trust not in (True, name) and importing.is_external(name):
        importing.check_may_call(name, "its dataset", checkpoint, remedy)
