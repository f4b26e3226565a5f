"""Post-training quantization of a net trained in float on real digits."""

import copy

import pytest
import torch

import models
import quant
from tests.conftest import spec


@pytest.fixture(scope="module")
def float_net(digits32):
    batches, _, _ = digits32
    torch.manual_seed(0)
    model = models.build("resnet20", 10, 32, {}).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for epoch in range(6):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - epoch / 6)
        for x, y in batches:
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("observer", ["minmax", "moving_average", "percentile", "mse"])
def test_eight_bits_cost_nothing(float_net, digits32, observer, granularity):
    batches, images, labels = digits32
    settings = spec(method="ptq", observer=observer, granularity=granularity)
    prepared = quant.prepare(copy.deepcopy(float_net), settings)
    quant.calibrate(prepared, (x for x, _ in batches))
    with torch.inference_mode():
        plain = (float_net(images).argmax(1) == labels).float().mean()
        simulated = (prepared(images).argmax(1) == labels).float().mean()
    assert plain > 0.9
    assert simulated >= plain - 0.015


def test_mse_is_far_better_than_minmax_at_two_bits(float_net, digits32):
    batches, images, _ = digits32
    error = {}
    for observer in ("minmax", "mse"):
        settings = spec(method="ptq", observer=observer, act_bits=2)
        prepared = quant.prepare(copy.deepcopy(float_net), settings)
        quant.calibrate(prepared, (x for x, _ in batches))
        with torch.inference_mode():
            error[observer] = (prepared(images) - float_net(images)).square().mean()
    assert error["mse"] < error["minmax"] / 2
