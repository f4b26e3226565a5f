"""Models that are not in the table: those of torchvision, of timm, and the user's own.

    torchvision:resnet50            any classification model of torchvision.models
    timm:mobilenetv2_100            any model of timm, if it is installed
    package.module:factory          any importable function that returns an nn.Module

The function is called with num_classes, if it has such a parameter, and with the other keys of the setting's model
section. The name is only imported, never evaluated as code.
"""

import importlib.util
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from models.channels import RGB, for_channels
from utils import importing
from utils.errors import UserError, choose, first_line, nearest
from utils.eval_mode import in_eval_mode
from utils.importing import is_external
from utils.sync_batch_norm import use_plain_batch_norms

CHANNELS = ("in_chans", "in_channels", "channels")
"""What timm and others call the number of channels of the images."""


def factory(name: str) -> Callable[..., nn.Module]:
    """The function that a name with a colon denotes. Raises UserError if there is none."""
    source, _, member = name.partition(":")
    return SOURCES.get(source, lambda member: importing.member(source, member, "model.name"))(member)


def check_trusted(
    name: str, trust: bool | str, remedy: str = "set trust=true if you trust its origin", checkpoint: str | None = None
) -> None:
    """Raise UserError if `name`, read from a checkpoint, denotes a function that is not safe to call.

    It would be called, with any arguments, before its result turns out not to be a model. Safe are the models of the
    table, of torchvision and timm, and what utils/importing.py says. checkpoint: its path. trust: True, or this very
    name, skips the check.
    """
    if trust not in (True, name) and is_external(name) and name.partition(":")[0] not in SOURCES:
        importing.check_may_call(name, "its model's factory", checkpoint, remedy)


def build_external(
    name: str, num_classes: int | None, image_size: int, options: dict[str, Any], channels: int = 3
) -> nn.Module:
    """Call the function that a name denotes. Raises UserError if its result cannot classify images of this size.

    Other channels than three are given to it under the first of the names CHANNELS that it takes, if any.
    """
    make = factory(name)
    check_arguments(make, name)
    takes, needs = _takes(make, "num_classes")
    if needs or (takes and num_classes is not None):
        options = {"num_classes": num_classes or 10} | options
    taken = next((key for key in CHANNELS if channels != RGB and _takes(make, key, by_name=True)[0]), None)
    options = options if taken is None else {taken: channels} | options
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The default weight initialization of")  # googlenet, inception
        is_trial = num_classes is None and "num_classes" in options
        trial = ", tried with 10 classes before the images are read," if is_trial else ""
        model = importing.call(make, options, f"model.name: {name}{trial}")
    if not isinstance(model, nn.Module):
        raise UserError(f"model.name: {name} returned a {type(model).__name__}, not an nn.Module")
    model = for_channels(model, channels, name) if taken is None else model
    remedy = "" if takes else f"; let {name.rpartition(':')[2]} take num_classes, which it is given"
    check_output(model, name, num_classes, image_size, channels, remedy)
    use_plain_batch_norms(model, torch.zeros(2, channels, image_size, image_size))
    return model


def check_arguments(make: Callable, name: str) -> None:
    """Raise UserError if a factory cannot do without an argument that a setting has no key for."""
    taken = next((key for key in ("name", "weights") if _takes(make, key)[1]), None)
    if taken is not None:
        raise UserError(
            f"model.name: {name} needs an argument {taken!r}, and model.{taken} is a key of its own; name a function "
            "of yours that calls it"
        )


def check_output(
    model: nn.Module, name: str, num_classes: int | None, image_size: int, channels: int = 3, remedy: str = ""
) -> None:
    """Raise UserError unless the model maps images of this size to num_classes logits (None: to any number), and each
    image to the same logits in batches of one, two and three. remedy: said of another number of classes."""
    images = torch.randn(3, channels, image_size, image_size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad(), in_eval_mode(model):
            logits, *fewer = (model(images[:count]) for count in (3, 1, 2))
    except Exception as error:
        images_of = f"{image_size} x {image_size}" + (f" in {channels} channel(s)" if channels != RGB else "")
        raise UserError(f"model {name}: does not accept images of {images_of}: {first_line(error, 200)}") from error
    shape = tuple(getattr(logits, "shape", ()))
    if len(shape) != 2 or num_classes not in (None, shape[1]):
        what = f"{shape[1]} classes" if len(shape) == 2 else f"{type(logits).__name__} {shape or ''}".strip()
        expected = f"but the data has {num_classes} classes" if num_classes else "instead of logits [N, classes]"
        raise UserError(f"model {name}: returns {what} {expected}{remedy if len(shape) == 2 else ''}")
    for count, some in enumerate(fewer, 1):
        if some.shape != logits[:count].shape or not torch.allclose(some, logits[:count], rtol=1e-3, atol=1e-4):
            raise UserError(
                f"model {name}: a batch of {count} gives {tuple(some.shape)} or other logits than the same images in a "
                "batch of 3; squeeze() without an axis, a view of fixed size, or batch statistics in eval mode do that"
            )


def _torchvision(member: str) -> Callable[..., nn.Module]:
    from torchvision import models  # imported here because it takes seconds

    choose(dict.fromkeys(models.list_models(module=models)), member, "model.name: torchvision")
    return lambda **options: models.get_model(member, weights=None, **options)


def _timm(member: str) -> Callable[..., nn.Module]:
    try:
        import timm
    except ImportError:
        raise UserError("model.name: timm is not installed; pip install timm") from None
    if not timm.is_model(member):
        hint = nearest(member, timm.list_models())
        raise UserError(f"model.name: timm has no {member!r}" + (f", did you mean {hint}?" if hint else ""))

    def create(in_chans: int | None = None, **options: Any) -> nn.Module:
        return timm.create_model(member, pretrained=False, in_chans=in_chans, **_without_files(options))

    return create


def found_elsewhere(name: str) -> list[str]:
    """The names, with their sources, under which torchvision and timm have a model of this very name."""
    from torchvision import models

    found = [f"torchvision:{name}"] if name in models.list_models(module=models) else []
    if importlib.util.find_spec("timm") is not None:
        import timm

        found += [f"timm:{name}"] if timm.is_model(name) else []
    return found


def _without_files(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a model of timm. Raises UserError for those that name files, which a stranger may have chosen."""
    for key in ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        if key in options:
            raise UserError(f"model.{key}: files are not timm's to read here; model.weights names trained weights")
    return options


SOURCES = {"torchvision": _torchvision, "timm": _timm}


def _takes(function: Callable, argument: str, by_name: bool = False) -> tuple[bool, bool]:
    """(whether a function accepts an argument of that name, whether it requires it). by_name: **any do not count."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False, False
    parameter = parameters.get(argument)
    takes_any = not by_name and any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return parameter is not None or takes_any, parameter is not None and parameter.default is parameter.empty
