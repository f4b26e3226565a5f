"""Models from checkpoints: the settings in a checkpoint, and the model that they build."""

from collections.abc import Callable

from torch import nn

import data
import models
import quant
from experiment.settings import TrainSettings, stored
from utils.config import blame
from utils.console import say
from utils.runs import checkpoint


def read_settings(state: dict, path: str) -> TrainSettings:
    """The settings that a checkpoint's run had, in the form of this version. Raises UserError if they are not valid."""
    found = stored(state["settings"], path)
    return found.model_copy(update={"data": _as_it_was_read(found.data, state)})


def _as_it_was_read(d: data.DataSettings, state: dict) -> data.DataSettings:
    """Earlier versions resized images kept in memory to image_size, and normalized them by their own statistics."""
    in_memory = d.name == "imagefolder" and state["mean"] != [*data.IMAGENET_MEAN]
    if "resize" in state["settings"].get("data", {}) or not in_memory:
        return d
    return data.with_overrides(d, {"resize": d.image_size, "mean": state["mean"], "std": state["std"]})


def rebuild(path: str, check_trusted: Callable[[str], None]) -> tuple[nn.Module, dict, TrainSettings]:
    """(model, contents, settings) of a checkpoint. The model is prepared if training had come to that, else float.

    check_trusted(model name): raises UserError if a checkpoint may not call the function of that name.
    """
    state = checkpoint.load(path)
    trained = read_settings(state, path)
    with blame(path):
        data.check_normalization(state["mean"], state["std"], trained.data.channels)
    check_trusted(trained.model.name)
    d, options = trained.data, trained.model.options
    model = models.build(trained.model.name, len(state["classes"]), d.image_size, options, d.channels)
    if state["prepared"]:
        model = quant.prepare(model, quant.resolve(trained.quant))
    checkpoint.restore(model, state, path)
    lost = quant.without_range(model) if state["prepared"] else []
    if lost:
        say(f"{path}: {len(lost)} quantizer(s) with scales of zero or below, which count as 2^-24: {lost[0]}, ...")
    return model, state, trained
