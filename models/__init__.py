"""Plain float nets, with no trace of quantization. A new one is a function in its family's file and a row here.

A factory takes (num_classes, form, **its own options) and returns an nn.Module. The form is "cifar" (for images of
about 32 x 32) or "imagenet"; which of them a model has stands in its row, and "auto" takes the one that fits the
image size. A name with a colon is a model of another library, or one's own: models/external.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from models.external import build_external, check_output, factory, is_external
from models.mobilenet import ACTIVATIONS, mobilenet_v2, mobilenet_v2_projected
from models.resnet import resnet18, resnet20, resnet32, resnet44, resnet56
from models.svhn import svhn_cnn
from utils.errors import UserError, choose, nearest


@dataclass(frozen=True)
class Row:
    factory: Callable[..., nn.Module]
    forms: tuple[str, ...]
    options: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Its own options and their choices."""
    image_size: int | None = None
    """The only image size that fits it; None: any."""


MODELS = {
    "resnet20": Row(resnet20, ("cifar",)),
    "resnet32": Row(resnet32, ("cifar",)),
    "resnet44": Row(resnet44, ("cifar",)),
    "resnet56": Row(resnet56, ("cifar",)),
    "resnet18": Row(resnet18, ("cifar", "imagenet")),
    "mobilenet_v2": Row(mobilenet_v2, ("cifar", "imagenet"), {"activation": tuple(ACTIVATIONS)}),
    "mobilenet_v2_projected": Row(mobilenet_v2_projected, ("cifar",)),
    "svhn_cnn": Row(svhn_cnn, ("cifar",), image_size=40),
}


def check(name: str, options: dict[str, Any], image_size: int) -> None:
    """Raise UserError unless `name` is a model for such images and `options` are options it has."""
    if is_external(name):
        factory(name)
        return
    row = choose(MODELS, name, "model.name", "or torchvision:NAME, timm:NAME, package.module:factory")
    known = {"form": ("auto", *row.forms)} | row.options
    for key, value in options.items():
        if key not in known:
            hint = nearest(key, [*known, "name", "weights"])
            raise UserError(f"model.{key}: {name} has no such option" + (f", did you mean {hint}?" if hint else ""))
        choose(dict.fromkeys(known[key]), value, f"model.{key} of {name}")
    if row.image_size not in (None, image_size):
        raise UserError(f"model.name: {name} takes images of {row.image_size} pixels, not of {image_size}")


def build(name: str, num_classes: int | None, image_size: int, options: dict[str, Any]) -> nn.Module:
    """A freshly initialised float net for images of image_size x image_size; num_classes None: any number, for a trial.

    Raises UserError if another library's or one's own model cannot be had, or cannot classify such images.
    """
    if is_external(name):
        return build_external(name, num_classes, image_size, options)
    check(name, options, image_size)
    row, options = MODELS[name], dict(options)
    form = options.pop("form", "auto")
    if form == "auto":
        form = row.forms[0] if image_size <= 64 else row.forms[-1]
    return row.factory(num_classes or 10, form, **options)


__all__ = ["MODELS", "Row", "build", "check", "check_output", "is_external"]
