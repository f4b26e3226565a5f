"""Equalization leaves the float net what it is, evens out the channels it may, and lets the others be."""

import copy

import pytest
import torch
from torch import nn

import models
import quant
from quant.ptq.cross_layer_equalization import pairs
from tests.conftest import photos, with_real_statistics
from tests.nets import plain

EXACT = {
    "resnet20": ("cifar", 32, 9),
    "resnet50": ("cifar", 32, 32),
    "shufflenet_v2_x0_5": ("imagenet", 64, None),
    "mobilenet_v3_small_relu": ("imagenet", 64, None),
    "vgg11_bn": ("cifar", 32, 10),
    "mobilenet_v2": ("imagenet", 32, 2),
}
"""The form, the image's side, and how many pairs there are."""


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    form, size, _ = EXACT[name]
    images = photos(8, size)
    model = models.build(name, 10, size, {"form": form})
    if name == "vgg11_bn":  # 120 of its 129 million parameters are in these layers
        few = nn.Linear(25088, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        model.classifier[0], model.classifier[3], model.classifier[6] = few
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # channels of many sizes, some of them negative
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias, std=0.3)
    return with_real_statistics(model, images), images


@pytest.mark.parametrize("name", list(EXACT))
def test_the_float_net_stays_what_it_is(name):
    model, images = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        expected = model(images)
        count = quant.equalize_cross_layer(model)
        found = model(images)
    assert count > 0
    assert EXACT[name][2] in (None, count)
    assert any(not torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_ranges_of_a_pair_become_the_same():
    model = plain(10).eval()
    with torch.no_grad():
        model[0].weight.mul_(torch.logspace(-1, 1, 16).view(-1, 1, 1, 1))
    before = copy.deepcopy(model)
    assert quant.equalize_cross_layer(model) == 3, (
        "the linear layer reads the third convolution through a pool and a flattening"
    )
    for producer, consumer in ((model[0], model[2]), (model[2], model[4]), (model[4], model[8])):
        rows = torch.maximum(producer.weight.flatten(1).abs().amax(1), producer.bias.abs())
        columns = consumer.weight.transpose(0, 1).flatten(1).abs().amax(1)
        assert torch.allclose(rows, columns, rtol=0.01)
    x = photos(4, 32)
    assert torch.allclose(model(x), before(x), rtol=1e-4, atol=1e-5)


class Chain(nn.Module):
    def __init__(self, between: nn.Module, twice: bool = False):
        super().__init__()
        self.a, self.between, self.b, self.twice = nn.Conv2d(3, 4, 3), between, nn.Conv2d(4, 2, 3), twice

    def forward(self, x):
        y = self.between(self.a(x))
        return self.b(y).mean([2, 3]) + (y.mean() if self.twice else 0)


@pytest.mark.parametrize(
    ("between", "twice", "count"),
    [
        (nn.ReLU(), False, 1),
        (nn.Identity(), False, 1),
        (nn.MaxPool2d(2), False, 1),
        (nn.AvgPool2d(2), False, 1),
        (nn.ReLU6(), False, 0),
        (nn.Hardswish(), False, 0),
        (nn.Sigmoid(), False, 0),
        (nn.BatchNorm2d(4, affine=False), False, 0),
        (nn.ReLU(), True, 0),
    ],
    ids=str,
)
def test_only_where_it_is_exact(between, twice, count):
    assert len(pairs(quant.trace(Chain(between, twice)))) == count


def test_a_channel_that_is_all_bias_is_not_blown_up():
    model, images = build("resnet20")
    with torch.no_grad():
        model.layer1[0].bn1.weight[3], model.layer1[0].bn1.bias[3] = 1e-12, 0.5
        quant.equalize_cross_layer(model)
    assert model.layer1[0].bn1.bias.abs().max() < 5
    assert torch.isfinite(model(images)).all()


def test_dead_channels_are_left_alone():
    model, x = plain(10).eval(), photos(4, 32)
    with torch.no_grad():
        model[0].weight[3], model[2].weight[:, 5] = 0, 0
        expected = model(x)
        quant.equalize_cross_layer(model)
        assert torch.allclose(model(x), expected, rtol=1e-4, atol=1e-5)
    assert all(torch.isfinite(p).all() for p in model.parameters())


class Tied(nn.Sequential):
    """Two layers with the same weight."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU())
        self[4].weight = self[2].weight


@pytest.mark.parametrize(
    "model",
    [
        Tied(),
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Linear(16, 12), nn.Flatten(), nn.Linear(8 * 16 * 12, 5)),
        nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Linear(16, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
        ),
    ],
    ids=["tied weights", "a linear layer along the rows of a map", "an average of what a linear layer gives"],
)
def test_layers_that_only_look_like_a_pair_are_left_alone(model):
    x = photos(4, 16)
    expected = model.eval()(x)
    quant.equalize_cross_layer(model)
    assert torch.allclose(model(x), expected, rtol=1e-4, atol=1e-5)


def test_tokens_made_flat_keep_their_channels_last():
    """A linear layer on [N, T, C] made flat is no pair of the next: its channels do not stand in runs."""
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8, 5)).eval()
    x = torch.randn(3, 4, 12)
    expected = model(x)
    assert quant.equalize_cross_layer(model) == 0
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize(
    ("flatten", "count"),
    [
        (nn.Flatten(), 1), (lambda x: x.flatten(1), 1), (lambda x: torch.flatten(x, 1), 1), (nn.Flatten(2), 0),
        (lambda x: x.mean((2, 3)), 1), (lambda x: x.reshape(-1, 2), 0), (lambda x: x.squeeze(), 0),
    ],
)  # fmt: skip
def test_a_linear_layer_reads_the_channels_of_feature_maps_that_are_flattened(flatten, count):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc, self.flatten = nn.Conv2d(3, 2, 1), nn.Linear(2, 2), flatten

        def forward(self, x):
            return self.fc(self.flatten(self.conv(x)))

    assert len(pairs(quant.trace(Net()))) == count
