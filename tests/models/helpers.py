"""What the tests of models share: models on the meta device, and the shapes of their feature maps."""

import functools

import torch
from torch import nn

import models


def on_meta(name: str, form: str, options: dict, size: int, classes: int) -> nn.Module:
    """One net of each kind, for all tests: none changes what it is."""
    return _on_meta(name, form, tuple(options.items()), size, classes)


@functools.cache
def _on_meta(name: str, form: str, options: tuple, size: int, classes: int) -> nn.Module:
    with torch.device("meta"):
        return models.build(name, classes, size, {"form": form} | dict(options))


def shapes(model: nn.Module, kinds: tuple[type, ...], size: int = 32) -> list[tuple[int, int]]:
    """The different (channels, side) that modules of these classes put out, in the order in which they run."""
    found = []
    for module in model.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda module, _, out: found.append(tuple(out.shape[1:3])))
    model.eval()(torch.zeros(1, 3, size, size))
    return list(dict.fromkeys(found))
