"""The model as one TorchScript program gives the same integers."""

import functools

import pytest
import torch
from torch import nn

import models
import quant
from quant.engines.torchscript import WithPackedWeights, in_channels_last, to_torchscript
from tests.conftest import KERNELS, photos, spec, with_real_statistics
from tests.helpers import prepared_gated


@functools.lru_cache(maxsize=1)  # engines come after each other
def calibrated_net(name: str):
    """Prepared and calibrated, images, and what it predicts for them."""
    images = photos(3, 64)
    torch.manual_seed(0)
    model = models.build(name, 10, 64, {"form": "imagenet"})
    if name == "alexnet":  # of its 57 million parameters, all but 3 are in these layers
        linear = nn.Linear(9216, 32), nn.Linear(32, 32), nn.Linear(32, 10)
        model.classifier[1], model.classifier[4], model.classifier[6] = linear
    model = with_real_statistics(model, images)
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


def test_packed_weights_are_attributes_of_what_is_traced():
    """Tensors as buffers; objects of TorchScript, as fbgemm packs, as they are."""
    packed = torch.ops.quantized.linear_prepack(
        torch.quantize_per_tensor(torch.ones(2, 3), 1.0, 0, torch.qint8), torch.zeros(2)
    )
    tensor = torch.ones(2)
    module = WithPackedWeights(nn.Identity(), [packed, tensor])
    assert module.packed_0 is packed
    assert dict(module.named_buffers()).keys() == {"packed_1"}
    assert module.packed_1 is tensor
    x = torch.randn(4)
    assert module(x) is x


def test_a_program_holds_its_weights_and_takes_one_shape_in_any_layout():
    weight = torch.randn(2, 3, 1, 1)

    class Graph(nn.Module):
        def forward(self, x):
            return torch.nn.functional.conv2d(x, weight)

    images = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    optimized = []
    program = to_torchscript(Graph(), [weight], images, lambda traced: optimized.append(traced) or traced)
    assert len(optimized) == 1
    assert not optimized[0].training
    assert torch.equal(program(images), Graph()(images))
    assert program(images.contiguous()).is_contiguous(memory_format=torch.channels_last)
    assert program(images).is_inference()
    for other in (images[:1], images[:, :, :2], images[:, :, :, :2]):
        with pytest.raises(ValueError, match="this model was compiled for images"):
            program(other)


def test_the_layout_of_images():
    images = torch.zeros(2, 3, 4, 4)
    assert not in_channels_last(images)
    assert in_channels_last(images.contiguous(memory_format=torch.channels_last))
