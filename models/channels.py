"""Models for images of other than three channels."""

import copy

import torch
from torch import nn

from utils.errors import UserError

RGB = 3


def for_channels(model: nn.Module, channels: int, name: str) -> nn.Module:
    """The model, its first convolution replaced by one for images of so many channels.

    The filters of the new one are those of the old one's channels in turn. Raises UserError if the model does not begin
    with a convolution of three channels.
    """
    if channels == RGB:
        return model
    found = next((pair for pair in model.named_modules() if isinstance(pair[1], nn.Conv2d)), None)
    if found is None or found[1].in_channels != RGB or found[1].groups != 1:
        raise UserError(f"data.channels: the first convolution of {name} is not one of {RGB} channels, to be replaced")
    model.set_submodule(found[0], _convolution(found[1], channels))
    return model


def _convolution(old: nn.Conv2d, channels: int) -> nn.Conv2d:
    new = copy.deepcopy(old)
    new.in_channels = channels
    new.weight = nn.Parameter(old.weight.detach()[:, torch.arange(channels) % RGB].clone())
    return new
