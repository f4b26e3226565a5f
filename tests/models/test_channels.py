"""Models of the tables, of other libraries and of one's own classify images of other than three channels."""

import pytest
import torch
from torch import nn

import models
from models.channels import for_channels
from utils.errors import UserError

NAMES = [*models.MODELS, "torchvision:mobilenet_v3_small", "timm:mobilenetv3_small_050"]
SIZES = {"svhn_cnn": 40, "alexnet": 64}


@pytest.mark.parametrize("name", NAMES)
def test_every_model_takes_grey_images(name):
    size = SIZES.get(name, 32)
    with torch.device("meta" if name in models.MODELS else "cpu"):
        model = models.build(name, 7, size, {}, channels=1)
        logits = model.eval()(torch.zeros(2, 1, size, size))
    assert logits.shape == (2, 7)


def test_filters_are_those_of_the_three_channels_in_turn():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU())
    before = model[0].weight.detach().clone()
    five = for_channels(model, 5, "own")
    assert torch.equal(five[0].weight, before[:, [0, 1, 2, 0, 1]])
    assert five(torch.zeros(1, 5, 8, 8)).shape == (1, 4, 4, 4)


def test_a_model_that_begins_otherwise_is_refused():
    with pytest.raises(UserError, match=r"^data.channels: the first convolution of own is not one of 3 channels"):
        for_channels(nn.Sequential(nn.Linear(3, 4)), 1, "own")


def own_net(num_classes: int, in_channels: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_channels, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


def test_a_function_of_your_own_is_told_the_number():
    model = models.build("tests.models.test_channels:own_net", 5, 16, {}, channels=6)
    assert model[0].in_channels == 6
