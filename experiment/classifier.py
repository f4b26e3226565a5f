"""A model that evaluate.py measures or asks: from a checkpoint, the folder of a run, or an exported file."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import data
import models
import quant
from experiment import datasets, exported
from experiment.rebuild import rebuild
from experiment.settings import EvaluateSettings
from utils.config import validate_section
from utils.console import say
from utils.errors import UserError


@dataclass(frozen=True)
class Classifier:
    """run: normalized images [N, C, H, W] -> logits. engine: what runs it. section: by which its images are made."""

    run: Callable[[Tensor], Tensor]
    engine: str
    section: data.DataSettings
    mean: list[float]
    std: list[float]
    classes: list[str]


def load(settings: EvaluateSettings) -> Classifier:
    """The model of settings.checkpoint; if that is a checkpoint, converted to the first of the engines, or in float if
    it is not quantized. Raises UserError if it cannot be had."""
    if exported.is_export(settings.checkpoint):
        return _of_export(settings)
    check_trusted = functools.partial(models.check_trusted, trust=settings.trust, checkpoint=settings.checkpoint)
    model, state, trained = rebuild(settings.checkpoint, check_trusted)
    model = model.eval()
    mean, std = datasets.normalization(settings.data, state)
    section = data.with_overrides(trained.data, settings.data)
    run, name = model, "float"
    if quant.is_prepared(model):
        trial = torch.randn(16, section.channels, section.image_size, section.image_size)
        [name] = quant.resolve_engines((settings.engines or ["reference"])[:1], model, trial)
        say(f"converting the model for {name}")
        run = quant.convert(model, name)
    return Classifier(run, name, section, mean, std, data.readable(state["classes"]))


def _of_export(settings: EvaluateSettings) -> Classifier:
    found = exported.read(settings.checkpoint, settings.trust)
    info, asked = found.info, settings.data
    mean, std = datasets.normalization(asked, info.model_dump())
    return Classifier(found.run, found.engine, section_of_export(info, asked), mean, std, info.classes)


def section_of_export(info: exported.Info, asked: dict[str, Any]) -> data.DataSettings:
    """The data section by which the images of an export are made, with what is asked for instead."""
    name = asked.get("name", "imagefolder")
    kind = data.SECTIONS.kinds.get(data.SECTIONS.name({"name": name}))
    if kind is None:
        raise UserError(f"data.name: unknown {name!r}")
    told = {key: value for key, value in info.model_dump().items() if key in kind.model_fields}
    return validate_section("data", data.SECTIONS, told | {"name": name} | asked)
