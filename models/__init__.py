"""The table of models. They are plain float models that know nothing of quantization.

To add one, write a factory in the file of its family and a row here. A factory takes (num_classes, form, **options) and
returns an nn.Module. `form` is "cifar" (for images of about 32 x 32) or "imagenet". Each row lists the forms that the
model has; the setting "auto" chooses one by image size. A name with a colon is a model of another library or a user's
own: models/external.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import nn

from models.alexnet import alexnet
from models.channels import for_channels
from models.external import build_external, check_output, check_trusted, factory, found_elsewhere
from models.fast import fast_cnn
from models.mobilenet import ACTIVATIONS, mobilenet_v2, mobilenet_v2_projected
from models.mobilenet_v3 import (
    mobilenet_v3_large,
    mobilenet_v3_large_relu,
    mobilenet_v3_small,
    mobilenet_v3_small_relu,
)
from models.pretrained import PRETRAINED, file_of
from models.published import preprocessing
from models.resnet import (
    resnet8,
    resnet18,
    resnet20,
    resnet32,
    resnet34,
    resnet44,
    resnet50,
    resnet56,
    resnext101_32x8d,
)
from models.shufflenet import shufflenet_v2_x0_5, shufflenet_v2_x1_0, shufflenet_v2_x1_5, shufflenet_v2_x2_0
from models.svhn import svhn_cnn
from models.vgg import vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn
from utils.errors import UserError, choose, nearest
from utils.importing import is_external


@dataclass(frozen=True)
class Row:
    """A model of the table: its factory, its forms, and what it accepts."""

    factory: Callable[..., nn.Module]
    forms: tuple[str, ...]
    options: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The model's own options and the values that each may have."""
    image_size: int | None = None
    """The only image size that it accepts; None: any."""
    min_image_size: dict[str, int] = field(default_factory=dict)
    """Form -> the smallest image size that it accepts. A form that is not listed accepts any."""


BOTH = ("cifar", "imagenet")
VARIANT: dict[str, tuple[str, ...]] = {"variant": ("torchvision", "reference")}
FIVE_POOLS = {"cifar": 32, "imagenet": 32}

MODELS = {
    "resnet20": Row(resnet20, ("cifar",)),
    "resnet32": Row(resnet32, ("cifar",)),
    "resnet44": Row(resnet44, ("cifar",)),
    "resnet56": Row(resnet56, ("cifar",)),
    "resnet8": Row(resnet8, ("cifar",)),
    "fast_cnn": Row(fast_cnn, ("cifar",)),
    "resnet18": Row(resnet18, BOTH),
    "resnet34": Row(resnet34, BOTH),
    "resnet50": Row(resnet50, BOTH),
    "resnext101_32x8d": Row(resnext101_32x8d, BOTH),
    "mobilenet_v2": Row(mobilenet_v2, BOTH, {"activation": tuple(ACTIVATIONS)}),
    "mobilenet_v2_projected": Row(mobilenet_v2_projected, ("cifar",)),
    "mobilenet_v3_large": Row(mobilenet_v3_large, BOTH, VARIANT),
    "mobilenet_v3_small": Row(mobilenet_v3_small, BOTH, VARIANT),
    "mobilenet_v3_large_relu": Row(mobilenet_v3_large_relu, BOTH, VARIANT),
    "mobilenet_v3_small_relu": Row(mobilenet_v3_small_relu, BOTH, VARIANT),
    "shufflenet_v2_x0_5": Row(shufflenet_v2_x0_5, BOTH),
    "shufflenet_v2_x1_0": Row(shufflenet_v2_x1_0, BOTH),
    "shufflenet_v2_x1_5": Row(shufflenet_v2_x1_5, BOTH),
    "shufflenet_v2_x2_0": Row(shufflenet_v2_x2_0, BOTH),
    "alexnet": Row(alexnet, BOTH, min_image_size={"cifar": 7, "imagenet": 63}),
    "vgg11": Row(vgg11, BOTH, VARIANT, min_image_size=FIVE_POOLS),
    "vgg13": Row(vgg13, BOTH, VARIANT, min_image_size=FIVE_POOLS),
    "vgg16": Row(vgg16, BOTH, VARIANT, min_image_size=FIVE_POOLS),
    "vgg19": Row(vgg19, BOTH, VARIANT, min_image_size=FIVE_POOLS),
    "vgg11_bn": Row(vgg11_bn, BOTH, VARIANT, min_image_size=FIVE_POOLS),
    "vgg13_bn": Row(vgg13_bn, BOTH, VARIANT, min_image_size=FIVE_POOLS),
    "vgg16_bn": Row(vgg16_bn, BOTH, VARIANT, min_image_size=FIVE_POOLS),
    "vgg19_bn": Row(vgg19_bn, BOTH, VARIANT, min_image_size=FIVE_POOLS),
    "svhn_cnn": Row(svhn_cnn, ("cifar",), image_size=40),
}


def check(name: str, options: dict[str, Any], image_size: int) -> None:
    """Raise UserError unless `name` is a model that accepts images of this size, and these options."""
    if is_external(name):
        factory(name)
        return
    if name not in MODELS:
        _refuse(name)
    row = MODELS[name]
    known = {"form": ("auto", *row.forms)} | row.options
    for key, value in options.items():
        if key not in known:
            hint = nearest(key, [*known, "name", "weights"])
            raise UserError(f"model.{key}: {name} has no such option" + (f", did you mean {hint}?" if hint else ""))
        choose(dict.fromkeys(known[key]), value, f"model.{key} of {name}")
    if row.image_size not in (None, image_size):
        raise UserError(f"model.name: {name} accepts images of {row.image_size} pixels, not of {image_size}")
    form = _form(row, options, image_size)
    smallest = row.min_image_size.get(form, 1)
    if image_size < smallest:
        raise UserError(
            f"model.name: {name} accepts images of {smallest} pixels or more in its {form} form, not of {image_size}"
        )


def _refuse(name: str) -> NoReturn:
    """Raise UserError for a name that is not in the table, with where else it is."""
    elsewhere = found_elsewhere(name)
    if elsewhere:
        raise UserError(f"model.name: unknown {name!r}, did you mean {' or '.join(elsewhere)}?")
    choose(MODELS, name, "model.name", "or torchvision:NAME, timm:NAME, package.module:factory")
    raise AssertionError("it is in the table")


def build(name: str, num_classes: int | None, image_size: int, options: dict[str, Any], channels: int = 3) -> nn.Module:
    """Build a newly initialised float model for images [N, channels, image_size, image_size].

    num_classes None: any number of classes, to check a model before the data is known. Raises UserError if the name or
    an option is wrong, or if a third-party or user's model cannot be built or cannot classify such images.
    """
    if is_external(name):
        return build_external(name, num_classes, image_size, options, channels)
    check(name, options, image_size)
    row = MODELS[name]
    own = {key: value for key, value in options.items() if key != "form"}
    return for_channels(row.factory(num_classes or 10, _form(row, options, image_size), **own), channels, name)


def _form(row: Row, options: dict[str, Any], image_size: int) -> str:
    form = options.get("form", "auto")
    if form == "auto":
        return row.forms[0] if image_size <= 64 else row.forms[-1]
    return form


__all__ = ["MODELS", "PRETRAINED", "Row", "build", "check", "check_output", "check_trusted", "file_of", "is_external"]
__all__ += ["preprocessing"]
