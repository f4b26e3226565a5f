"""Datasets and batches as the data section of the settings describes them."""

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import data
import quant
from data import DataSettings
from utils.config import validate_section
from utils.errors import UserError

USUAL = DataSettings.model_fields


def load(d: DataSettings) -> data.Dataset:
    """Training, validation and test images; read once for all runs of a sweep."""
    return _load(_of_images(d))


def clear_cache() -> None:
    """Read everything anew from now on: between two runs that a program starts, images may have changed."""
    _load.cache_clear()
    _identity.cache_clear()


def identity(d: DataSettings) -> dict[str, Any]:
    """data.identity of the dataset that `load` returns."""
    return _identity(_of_images(d))


def _of_images(d: DataSettings) -> str:
    """The section, with fixed values for what changes no image."""
    return d.model_copy(update={key: USUAL[key].default for key in data.TRAINING_ALONE}).model_dump_json()


@functools.lru_cache(maxsize=1)
def _identity(section: str) -> dict[str, Any]:
    return data.identity(_load(section))


@functools.lru_cache(maxsize=1)
def _load(section: str) -> data.Dataset:
    d = validate_section("data", data.SECTIONS, json.loads(section))
    return data.split(data.load(d), d.val_fraction)


def load_test(d: DataSettings, download: bool = True) -> data.Dataset:
    """The dataset without its training images. download: whether it may write into its root what is not there."""
    return data.load(d, train=False, download=download)


def description(d: DataSettings, dataset: data.Dataset) -> str:
    """How images are made, in one line."""
    made, size = data.stated(d), f"{d.image_size} x {d.image_size}"
    mean, std = (" ".join(f"{value:.3f}" for value in values) for values in (dataset.mean, dataset.std))
    square = size
    if "resize" in made:
        resized = f"to {made['resize']} x {made['resize']}" if made["crop"] == "squash" else f"to {made['resize']}"
        square = f"resized {resized} ({made['interpolation']}), center crop {size}"
    return f"images: {square}, {d.channels} channel(s), mean {mean}, std {std}"


def normalization(asked: dict[str, Any], stored: dict[str, Any]) -> tuple[list[float], list[float]]:
    """(mean, std) of the data keys that are asked for, else those that are stored with a model."""
    return asked.get("mean") or stored["mean"], asked.get("std") or stored["std"]


def batch_maker(d: DataSettings, mean: Sequence[float], std: Sequence[float]) -> Callable:
    """make(images, batch_size, draw=None, device=CPU): batches of the images, normalized with this mean and std.

    Raises UserError if these do not have a number for each channel.
    """
    data.check_normalization(mean, std, d.channels)
    return functools.partial(data.batches, mean=mean, std=std, image_size=d.image_size)


def selection_images(dataset: data.Dataset, spec: quant.ResolvedQuant) -> tuple:
    """(calibration images, held-out images) on which quant.layers=auto chooses.

    Held out are as many validation images or, without any, other training images. Raises UserError if
    quant.target_drop has none left to be measured on.
    """
    count = spec.calibration_images
    held_out = data.first(dataset.val, count) if dataset.val else data.first(dataset.training, count, after=count)
    if spec.target_drop is not None and not len(held_out):
        raise UserError(f"quant.calibration_images: {count} leave no training images to measure quant.target_drop on")
    return data.first(dataset.training, count), held_out
