"""Post-training quantization of a net trained in float on real digits."""

import copy

import pytest
import torch

import models
import quant
from tests.conftest import spec


@pytest.fixture(scope="module")
def float_net(digits16):
    batches, _, _ = digits16
    torch.manual_seed(0)
    model = models.build("resnet20", 10, 16, {}).to(memory_format=torch.channels_last)
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
def test_eight_bits_cost_nothing(float_net, digits16, observer, granularity):
    batches, images, labels = digits16
    settings = spec(method="ptq", observer=observer, granularity=granularity)
    prepared = quant.prepare(copy.deepcopy(float_net), settings)
    quant.calibrate(prepared, (x for x, _ in batches))
    with torch.inference_mode():
        plain = (float_net(images).argmax(1) == labels).float().mean()
        simulated = (prepared(images).argmax(1) == labels).float().mean()
    assert plain > 0.9
    assert simulated >= plain - 0.015


def test_mse_is_far_better_than_minmax_at_two_bits(float_net, digits16):
    batches, images, _ = digits16
    error = {}
    for observer in ("minmax", "mse"):
        settings = spec(method="ptq", observer=observer, act_bits=2)
        prepared = quant.prepare(copy.deepcopy(float_net), settings)
        quant.calibrate(prepared, (x for x, _ in batches))
        with torch.inference_mode():
            error[observer] = (prepared(images) - float_net(images)).square().mean()
    assert error["mse"] < error["minmax"] / 2


@pytest.mark.parametrize("observer", ["percentile", "mse"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_weights_of_few_bits_have_the_range_that_was_asked_for(float_net, digits16, observer, bits):
    """In the whole net: hidden layers on `bits`, each channel's range its own; first and last on 8, sums on 8."""
    own = {"percentile": 95.0} if observer == "percentile" else {}
    settings = spec(method="ptq", observer=observer, weight_bits=bits, act_bits=4, **own)
    prepared = quant.prepare(copy.deepcopy(float_net), settings)
    quant.calibrate(prepared, [x for x, _ in digits16[0]][:1])
    layers = {name: m for name, m in prepared.named_modules() if hasattr(m, "weight_quantizer")}
    for name, layer in layers.items():
        ends = name in ("conv1", "fc")
        q, rows = layer.weight_quantizer, layer.weight.detach().flatten(1)
        assert q.grid().q_max == min(2 ** ((8 if ends else bits) - 1) - 1, settings.weight_limit)
        assert layer.output is None or layer.output.bits == (4 if name.endswith("conv1") and not ends else 8)
        if observer == "percentile":
            ordered = rows.sort(1).values
            last = rows.shape[1] - 1
            assert torch.equal(q.low, ordered[:, round(last * 0.05)])
            assert torch.equal(q.high, ordered[:, round(last * 0.95)])
        else:
            most = rows.abs().amax(1, keepdim=True)
            tried = torch.linspace(0.2, 1, 33)[:, None, None] * most / q.q_max
            errors = ((rows / tried).round().clamp(-q.q_max, q.q_max) * tried - rows).square().mean(2)
            found = (q(layer.weight).detach().flatten(1) - rows).square().mean(1)
            assert (found <= 1.02 * errors.amin(0) + 1e-12).all(), name


def test_what_the_options_say():
    row = quant.METHODS["ptq"]
    for correction, corrects in (("none", False), ("bias", True), ("norm", True)):
        assert row.corrects(spec(method="ptq", bias_correction=correction).options) == corrects
    for rounding, learned in (("nearest", False), ("adaround", True), ("brecq", True)):
        quantizer = row.weight(spec(method="ptq", rounding=rounding), 4, (6, 5))
        assert (quantizer.offset is not None) == learned
        assert not learned or quantizer.offset.shape == (6, 5)
