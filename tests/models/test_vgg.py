"""VGG as torchvision and as the reference experiments build it."""

import pytest
from torch import nn

from tests.models.helpers import on_meta


@pytest.mark.parametrize("name", ["vgg11", "vgg16_bn"])
def test_reference_vgg_has_no_bias_in_its_convolutions(name):
    for variant in ("torchvision", "reference"):
        model = on_meta(name, "cifar", {"variant": variant}, 32, 10)
        assert all((m.bias is None) == (variant == "reference") for m in model.modules() if isinstance(m, nn.Conv2d))
        assert all(m.bias is not None for m in model.modules() if isinstance(m, nn.Linear))
