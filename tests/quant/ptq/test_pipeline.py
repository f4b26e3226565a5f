"""The whole of post-training quantization, on a net trained on real digits: nearer to float, and exact in integers."""

import copy

import pytest
import torch

import quant
from quant.ptq import brecq, pipeline
from quant.ptq.blocks import blocks
from tests.conftest import agrees_in_integers, spec
from tests.nets import Residual
from utils.complexity import complexity

RECIPES = {
    "adaround": {"observer": "mse", "rounding": "adaround", "rounding_steps": 80},
    "brecq": {"observer": "mse", "rounding": "brecq", "rounding_steps": 80},
    "corrected": {"observer": "mse", "bias_correction": "norm"},
    "best": {"recipe": "best", "rounding_steps": 80},
}


@pytest.fixture(scope="module")
def float_net(digits32):
    torch.manual_seed(0)
    model = Residual(10).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for epoch in range(6):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - epoch / 6)
        for x, y in digits32[0]:
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def quantized(float_net, digits32, **keys):
    settings = spec(method="ptq", **keys)
    model = copy.deepcopy(float_net)
    if quant.equalizes(settings):
        assert quant.equalize_cross_layer(model) == 3
    prepared = quant.prepare(model, settings)
    images = [x for x, _ in digits32[0]][:2]
    quant.calibrate(prepared, images)
    quant.run_ptq_pipeline(prepared, images, settings)
    return prepared.eval(), settings


@torch.inference_mode()
def error(prepared, float_net, digits32) -> float:
    """Mean squared error of the logits on images that the calibration did not see."""
    return float((prepared(digits32[1]) - float_net(digits32[1])).square().mean())


@pytest.fixture(scope="module")
def nearest(float_net, digits32):
    return quantized(float_net, digits32, observer="mse", weight_bits=3, act_bits=4)[0]


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_each_tool_comes_nearer_to_float_and_stays_exact_in_integers(float_net, nearest, digits32, recipe):
    better, settings = quantized(float_net, digits32, weight_bits=3, act_bits=4, **RECIPES[recipe])
    assert error(better, float_net, digits32) < 0.5 * error(nearest, float_net, digits32)
    agrees_in_integers(better, digits32, 65)
    with torch.inference_mode():
        simulated = better(digits32[1])
        assert torch.equal(quant.convert(better, "fbgemm")(digits32[1]), simulated), "to the bit"

        quant.set_enabled(better, False)
        assert torch.allclose(better(digits32[1]), float_net(digits32[1]), rtol=1e-3, atol=1e-3), "float is still there"
        quant.set_enabled(better, True)

        fresh = quant.prepare(Residual(10), settings).eval()
        fresh.load_state_dict(better.state_dict())
        assert torch.equal(fresh(digits32[1]), simulated), "and after a round trip"


def test_the_same_again_with_the_same_images(float_net, digits32):
    keys = {"recipe": "best", "rounding_steps": 5, "weight_bits": 3, "act_bits": 3}
    one, other = (quantized(float_net, digits32, **keys)[0].state_dict() for _ in range(2))
    assert all(torch.equal(one[key], value) for key, value in other.items())


def test_plain_does_nothing_more(float_net, digits32):
    prepared, settings = quantized(float_net, digits32)
    before = {key: value.clone() for key, value in prepared.state_dict().items()}
    quant.run_ptq_pipeline(prepared, [], settings)
    assert all(torch.equal(before[key], value) for key, value in prepared.state_dict().items())
    assert not any("offset" in key or "correction" in key for key in before), "checkpoints hold nothing of it"


@pytest.mark.parametrize(("macs", "steps"), [(10**8, 4), (2 * 10**8, 2)])
def test_the_number_of_steps_depends_on_the_net_where_none_is_given(
    macs, steps, float_net, digits32, monkeypatch, capsys
):
    """The message tells how many were taken."""
    monkeypatch.setattr(brecq, "STEPS", (1, 4))
    monkeypatch.setattr(pipeline._Pipeline, "macs", lambda self, found: macs)
    quantized(float_net, digits32, rounding="brecq")
    assert f"rounding learned (brecq, {steps} steps)" in capsys.readouterr().out


def test_multiply_accumulates_are_those_that_thop_counts(float_net, digits32):
    images = digits32[1][:1]
    prepared = quant.prepare(copy.deepcopy(float_net), spec(method="ptq")).eval()
    found = blocks(prepared, images)
    counted = pipeline._Pipeline(prepared, spec(method="ptq").options, found, images)
    assert counted.macs(found) == complexity(float_net, 32)[1]
