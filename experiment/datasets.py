"""Datasets and batches as the data section of the settings describes them."""

import functools
import json
from collections.abc import Callable, Sequence

import data
from data import DataSettings
from utils.config import validate_section


def load(d: DataSettings) -> data.Dataset:
    """Training, validation and test images; read once for all runs of a sweep."""
    return _load(d.model_copy(update={"batch_size": 1, "augment": True}).model_dump_json())  # they change no image


@functools.lru_cache(maxsize=1)
def _load(section: str) -> data.Dataset:
    d = validate_section("data", data.SECTIONS, json.loads(section))
    return data.split(data.load(d), d.val_fraction)


def load_test(d: DataSettings) -> data.Dataset:
    """The dataset without its training images."""
    return data.load(d, train=False)


def batch_maker(d: DataSettings, mean: Sequence[float], std: Sequence[float]) -> Callable:
    """make(images, batch_size, draw=None): batches of the images, normalized with this mean and std."""
    return functools.partial(data.batches, mean=mean, std=std, image_size=d.image_size)
