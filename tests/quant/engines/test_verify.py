"""Kernels and operators that are not exact are never chosen."""

from dataclasses import replace

import torch
from torch import nn

from quant.engines.base import FLOAT32_KERNEL, Engine
from quant.engines.convert import convert
from tests.conftest import photos
from tests.helpers import converts_exactly, prepared_with


def test_an_average_of_a_map_that_is_larger_than_those_tried():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AvgPool2d(40), nn.Conv2d(4, 3, 1), nn.Flatten())
    converts_exactly(net, photos(4, 40))


class Broken(Engine):
    """An engine whose best kernel adds one to each weight, and whose second refuses every layer."""

    name = "broken"

    def kernels(self, layer):
        return ("wrong", "absent", FLOAT32_KERNEL)

    def layer(self, layer, kernel):
        if kernel == "absent":
            raise RuntimeError("not in this build")
        return layer if kernel == FLOAT32_KERNEL else replace(layer, weight=layer.weight + 1)


def test_a_wrong_or_absent_kernel_is_passed_over():
    prepared, images = prepared_with(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(512, 3)), 8, (3, 10, 10))
    model = convert(prepared, Broken())
    assert {converted.kernel for converted in model.layers.values()} == {FLOAT32_KERNEL}
    assert torch.equal(model(images), prepared(images))
