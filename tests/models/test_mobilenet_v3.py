"""MobileNetV3: the reference variant, and ReLU instead of hard swish."""

import pytest
from torch import nn

import models
from models.mobilenet_v3 import SqueezeExcite
from tests.models.helpers import on_meta


def test_order_of_the_reference_mobilenet_v3():
    model = on_meta("mobilenet_v3_small", "imagenet", {"variant": "reference"}, 224, 10)
    first = model.features[3]
    assert [type(m) for m in first.conv] == [
        *(nn.Conv2d, nn.BatchNorm2d, nn.ReLU),  # though it does not widen
        *(nn.Conv2d, nn.BatchNorm2d, SqueezeExcite, nn.ReLU),
        *(nn.Conv2d, nn.BatchNorm2d),
    ]
    assert (model.dropout.p, type(model.squeeze)) == (0.8, SqueezeExcite)
    large = on_meta("mobilenet_v3_large", "imagenet", {"variant": "reference"}, 224, 10)
    assert type(large.squeeze) is nn.Identity


def test_initialisation_of_the_reference_mobilenet_v3():
    model = models.build("mobilenet_v3_large", 10, 32, {"variant": "reference"})
    for name, weight in model.named_parameters():
        if weight.numel() > 10_000:
            fan_out = weight.numel() / weight.shape[1]
            std = 0.01 if ".factor." in name else (2 / fan_out) ** 0.5
            assert weight.std().item() == pytest.approx(std, rel=0.05), name
        if "head" in name and name.endswith("bias"):
            assert (weight == 0).all()


@pytest.mark.parametrize("variant", ["torchvision", "reference"])
@pytest.mark.parametrize("name", ["mobilenet_v3_large", "mobilenet_v3_small"])
def test_relu_in_place_of_hard_swish_up_to_the_head(name, variant):
    def activations(model: nn.Module, kind: type[nn.Module]) -> list[str]:
        return [name for name, m in model.named_modules() if type(m) is kind]

    swish, relu = (on_meta(n, "cifar", {"variant": variant}, 32, 10) for n in (name, f"{name}_relu"))
    features = [n for n in activations(swish, nn.Hardswish) if n.startswith("features")]
    assert len(features) >= 12
    assert activations(relu, nn.ReLU) == [n for n, m in swish.named_modules() if type(m) is nn.ReLU or n in features]
    assert len(activations(relu, nn.Hardswish)) == 1, "the head's"
    assert activations(relu, nn.Hardsigmoid) == activations(swish, nn.Hardsigmoid) != []
