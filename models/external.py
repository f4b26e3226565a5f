"""Models that are not in the table: torchvision's, timm's, one's own.

    torchvision:resnet50            any classification model of torchvision.models
    timm:mobilenetv2_100            any model of timm, when it is installed
    package.module:factory          whatever is importable, returns an nn.Module and takes num_classes (if it can)

Further keys of the setting's model section go to the model's function as they are. Nothing is evaluated: a name is
imported and called.
"""

import importlib
import importlib.util
import inspect
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.errors import UserError, choose, nearest


def is_external(name: str) -> bool:
    return ":" in name


def factory(name: str) -> Callable[..., nn.Module]:
    """The function behind a name with a colon. Raises UserError if there is none."""
    source, _, member = name.partition(":")
    return SOURCES.get(source, lambda member: _own(source, member))(member)


def check_trusted(name: str, trust: bool, remedy: str = "trust=true, if it comes from a friend") -> None:
    """Raise UserError where a file, not the user, names a function that is neither a model of a table nor one's own.

    Of Python's, installed or this program's packages any function could be called, with any arguments, before it turns
    out that it is no model.
    """
    source, _, _ = name.partition(":")
    if trust or not is_external(name) or source in SOURCES or _is_own(source.partition(".")[0]):
        return
    raise UserError(f"the checkpoint would call {name} as its model's factory; {remedy}")


def _is_own(package: str) -> bool:
    _look_beside()
    if not package.isidentifier() or package in sys.stdlib_module_names:
        return False
    found = importlib.util.find_spec(package)
    places = [Path(place) for place in (found.submodule_search_locations or [found.origin or "/"])] if found else []
    house = Path(__file__).parent.parent
    programs = package != Path(__file__).parent.name and any(place.parent == house for place in places)
    return not programs and not any("-packages" in part for place in places for part in place.parts)


def _look_beside() -> None:
    """Modules beside the setting are found from wherever the scripts lie."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def build_external(name: str, num_classes: int | None, image_size: int, options: dict[str, Any]) -> nn.Module:
    """Call the function behind a name. Raises UserError, in one line, if what comes out cannot classify such images."""
    make = factory(name)
    takes, needs = _takes(make, "num_classes")
    if needs or (takes and num_classes is not None):
        options = {"num_classes": num_classes or 10} | options
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The default weight initialization of")  # googlenet, inception
            model = make(**options)
    except Exception as error:
        raise UserError(f"model.name: {name} cannot be called with {_shown(options)}: {_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"model.name: {name} returned a {type(model).__name__}, not an nn.Module")
    check_output(model, name, num_classes, image_size)
    return model


def check_output(model: nn.Module, name: str, num_classes: int | None, image_size: int) -> None:
    """Raise UserError unless the model takes such images and gives that many logits (None: any number of them)."""
    training = {m: m.training for m in model.modules()}
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros(2, 3, image_size, image_size))
    except Exception as error:
        raise UserError(f"model {name}: cannot take images of {image_size} x {image_size}: {_line(error)}") from error
    finally:
        for module, was in training.items():
            module.training = was
    shape = tuple(getattr(logits, "shape", ()))
    if len(shape) != 2 or num_classes not in (None, shape[1]):
        what = f"{shape[1]} classes" if len(shape) == 2 else f"{type(logits).__name__} {shape or ''}".strip()
        wanted = f"the data has {num_classes} classes" if num_classes else "logits [N, classes] belong"
        raise UserError(f"model {name}: gives {what} where {wanted}")


def _torchvision(member: str) -> Callable[..., nn.Module]:
    from torchvision import models  # here: seconds to import

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
    return lambda **options: timm.create_model(member, pretrained=False, **options)


def _own(source: str, member: str) -> Callable[..., nn.Module]:
    _look_beside()
    try:
        module = importlib.import_module(source)
    except Exception as error:
        raise UserError(f"model.name: cannot import {source or 'nothing'}: {_line(error)}") from None
    found = getattr(module, member, None)
    if not callable(found):
        hint = nearest(member, [n for n in dir(module) if callable(getattr(module, n))])
        raise UserError(
            f"model.name: {source} has no function {member!r}" + (f", did you mean {hint}?" if hint else "")
        )
    return found


SOURCES = {"torchvision": _torchvision, "timm": _timm}


def _takes(function: Callable, argument: str) -> tuple[bool, bool]:
    """Whether a function takes an argument of that name, and whether it cannot do without."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False, False
    named = parameters.get(argument)
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return named is not None or any_name, named is not None and named.default is named.empty


def _shown(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in options.items()) or "no arguments"


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
