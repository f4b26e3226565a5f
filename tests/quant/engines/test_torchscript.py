"""The model as one TorchScript program gives the same integers."""

import functools

import pytest
import torch

import models
import quant
from tests.conftest import KERNELS, photos, spec, with_real_statistics
from tests.helpers import prepared_gated


@functools.lru_cache(maxsize=1)  # engines come after each other
def calibrated_net(name: str):
    """Prepared and calibrated, images, and what it predicts for them."""
    images = photos(3, 64)
    torch.manual_seed(0)
    model = with_real_statistics(models.build(name, 10, 64, {"form": "imagenet"}), images)
    prepared = quant.prepare(model, spec(method="ptq"))
    quant.calibrate(prepared, [images])
    with torch.inference_mode():
        return prepared, images, prepared(images)


@pytest.mark.parametrize("engine", KERNELS)
@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v3_small", "mobilenet_v2", "alexnet"])
def test_a_frozen_program_gives_the_same_integers(name, engine):
    prepared, images, expected = calibrated_net(name)
    integer = quant.convert(prepared, engine)
    for count in (1, 3):
        program = integer.compile_for(images[:count])
        assert torch.equal(program(images[:count]), expected[:count])
    assert torch.equal(integer(images), expected)


def test_a_frozen_program_is_for_one_shape():
    prepared, images = prepared_gated()
    program = quant.convert(prepared, "reference").compile_for(images)
    assert torch.equal(program(images), program(images.contiguous()))
    with pytest.raises(ValueError, match=r"for images \(8, 3, 16, 16\), not \(2, 3, 16, 16\)"):
        program(images[:2])
