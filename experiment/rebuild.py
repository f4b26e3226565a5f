"""Models from checkpoints: the settings in a checkpoint, and the model that they build."""

from collections.abc import Callable

from torch import nn

import models
import quant
from experiment.settings import TrainSettings, stored
from utils.runs import checkpoint


def read_settings(state: dict, path: str) -> TrainSettings:
    """The settings that a checkpoint's run had, in the form of this version. Raises UserError if they are not valid."""
    return stored(state["settings"], path)


def rebuild(path: str, check_trusted: Callable[[str], None]) -> tuple[nn.Module, dict, TrainSettings]:
    """(model, contents, settings) of a checkpoint. The model is prepared if training had come to that, else float.

    check_trusted(model name): raises UserError if a checkpoint may not call the function of that name.
    """
    state = checkpoint.load(path)
    trained = read_settings(state, path)
    check_trusted(trained.model.name)
    model = models.build(trained.model.name, len(state["classes"]), trained.data.image_size, trained.model.options)
    if state["prepared"]:
        model = quant.prepare(model, quant.resolve(trained.quant))
    checkpoint.restore(model, state, path)
    return model, state, trained
