"""Datasets and batches as the data section of the settings describes them."""

import functools
from collections.abc import Callable

import data
from utils.config import DataSettings


def load(d: DataSettings) -> data.Dataset:
    """Training, validation and test images; read once for all runs of a sweep."""
    return _load(d.name, d.root, d.image_size, d.limit, d.workers, d.on_error, d.cache, d.val_fraction)


@functools.lru_cache(maxsize=1)
def _load(
    name: str, root: str, image_size: int, limit: int | None, workers: int, on_error: str, cache: str, val: float
) -> data.Dataset:
    return data.split(data.DATASETS[name](root, image_size, limit, workers, True, on_error, cache), val)


def load_test(d: DataSettings) -> data.Dataset:
    """The dataset without its training images."""
    return data.DATASETS[d.name](d.root, d.image_size, d.limit, d.workers, False, d.on_error, d.cache)


def batch_maker(d: DataSettings, mean: list[float], std: list[float]) -> Callable:
    """make(images, batch_size, draw=None): batches of the images, normalized with this mean and std."""
    return functools.partial(
        data.batches, mean=mean, std=std, image_size=d.image_size, workers=d.workers, on_error=d.on_error
    )
