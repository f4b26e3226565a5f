"""MobileNetV2 with either activation."""

from torch import nn

import models


def test_activation_of_mobilenet():
    relu = models.build("mobilenet_v2", 10, 32, {"activation": "relu"})
    assert not any(isinstance(m, nn.ReLU6) for m in relu.modules())
    assert any(type(m) is nn.ReLU for m in relu.modules())
