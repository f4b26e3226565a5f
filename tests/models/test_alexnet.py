"""AlexNet for small images."""

from torch import nn

import models
from tests.models.helpers import shapes


def test_maps_of_the_cifar_alexnet():
    model = models.build("alexnet", 10, 32, {})
    assert shapes(model, (nn.Conv2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d)) == [
        (64, 32),
        (192, 32),
        (192, 15),
        (384, 15),
        (256, 15),
        (256, 7),
        (256, 6),
    ]
