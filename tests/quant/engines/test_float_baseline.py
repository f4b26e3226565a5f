"""The float net that latency tables compare with is the same function, without batch norms."""

import pytest
import torch
from torch import nn

import models
import quant
from tests.conftest import photos, with_real_statistics


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "torchvision:shufflenet_v2_x0_5"])
def test_folded_is_the_same_net_without_batch_norms(name):
    images = photos(4, 64)
    model = with_real_statistics(models.build(name, 10, 64, {}), images)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    folded = quant.float_baseline(model)
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        expected = model(images)
        assert torch.allclose(folded(images), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items()), "left as it was"


def test_a_convolution_that_others_read_keeps_its_batch_norm():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return (y + self.norm(y)).mean((2, 3))

    images = photos(4, 32)
    model = with_real_statistics(Net(), images)
    with torch.no_grad():
        assert torch.equal(quant.float_baseline(model)(images), model(images))
