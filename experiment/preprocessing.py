"""What a setting leaves open of how images are made, as its model.weights were trained."""

from typing import Any

import data
import models
from experiment.rebuild import read_settings
from experiment.settings import ModelSettings
from utils.runs import checkpoint, tensor_file

KEYS = ("mean", "std", "resize", "crop", "interpolation")


def as_weights(d: data.DataSettings, model: ModelSettings) -> data.DataSettings:
    """The section with those of KEYS filled in that are null and that the model's weights answer.

    A size in pixels is scaled as the image size is. Raises UserError for what its dataset cannot do.
    """
    open_keys = [key for key in KEYS if getattr(d, key, "") is None]
    if not model.weights or not open_keys:
        return d
    here = data.scaled(_stated(model.name, model.weights) or {}, d.image_size)
    return data.with_overrides(d, {key: here[key] for key in open_keys if fits(key, here.get(key), d.channels)})


def fits(key: str, value: Any, channels: int) -> bool:
    return value is not None and (key not in ("mean", "std") or len(value) == channels)


def _stated(name: str, weights: str) -> dict[str, Any] | None:
    """Keys of the data section, among them the image size; None where nobody says."""
    found = tensor_file.load(weights)
    if not checkpoint.is_ours(found):
        return models.preprocessing(name, weights)
    return {"mean": found["mean"], "std": found["std"]} | data.stated(read_settings(found, weights).data)
