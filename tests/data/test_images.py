"""Limits and validation images are fixed shuffles; images can be normalized with other statistics."""

import pytest
import torch

import data
from utils.errors import UserError


def test_limit_takes_a_fixed_shuffle_of_both_parts():
    whole, few = data.DATASETS["digits"].load(8, None), data.DATASETS["digits"].load(8, 100)
    assert (len(few.train), len(few.test)) == (100, 100)
    assert len(few.train.labels.unique()) == 10
    assert torch.equal(few.train.pixels, data.first(whole.train, 100).pixels)


def test_validation_images_are_held_out_of_training():
    whole = data.DATASETS["digits"].load(8, None)
    parts = data.split(whole, 0.2)
    assert (len(parts.train), len(parts.val)) == (1437 - 287, 287)
    rows = torch.cat([parts.train.pixels, parts.val.pixels]).flatten(1)
    assert torch.equal(rows.double().sum(), whole.train.pixels.double().sum())
    assert data.split(whole, 0.0).val is None
    assert len(data.split(whole, 1e-6).val) == 1, "asked for some, there are some"


def test_images_normalized_otherwise_are_the_same_pixels():
    images = data.DATASETS["fake"].load(12, 20).train
    here, there = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    (one, _), (other, _) = (next(iter(data.batches(images, 20, *norm, 12))) for norm in (here, there))
    gain, shift = data.renormalized(here, there)
    assert torch.allclose(one * gain + shift, other, atol=1e-5)


def test_a_validation_share_must_leave_images_to_train_on():
    with pytest.raises(UserError, match="leaves none to train on"):
        data.split(data.DATASETS["fake"].load(8, 3), 0.9)
