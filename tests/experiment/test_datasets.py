"""Datasets of the data section, and the images on which layers are chosen."""

import pytest
import torch

import data
from experiment.datasets import selection_images
from tests.conftest import spec
from utils.errors import UserError


def images(count: int) -> data.Images:
    return data.Images(torch.zeros(count, 4, 4, 3, dtype=torch.uint8), torch.arange(count))


def dataset(train: int, val: int = 0) -> data.Dataset:
    return data.Dataset(images(train), images(1), ["a"], (0.5,) * 3, (0.5,) * 3, False, images(val) if val else None)


def test_layers_are_chosen_on_validation_images_or_on_training_images_of_no_calibration():
    auto = spec(method="ptq", layers="auto", target_drop=1.0, calibration_images=10)
    calibration, held_out = selection_images(dataset(30, val=20), auto)
    assert (len(calibration), len(held_out)) == (10, 10)
    calibration, held_out = selection_images(dataset(15), auto)
    assert len(held_out) == 5
    assert not set(calibration.labels.tolist()) & set(held_out.labels.tolist())
    with pytest.raises(UserError, match=r"10 leave no training images to measure quant.target_drop on"):
        selection_images(dataset(10), auto)
