"""Learned rounding: AdaRound's equations, offsets in the quantizer's buffer, a smaller error than nearest rounding."""

from dataclasses import replace

import numpy
import pytest
import torch
from torch import nn

import models
import quant
from quant.core.observed import ObservedActivationQuantizer, ObservedWeightQuantizer
from quant.ptq.adaround import SoftRounding, beta_at
from quant.ptq.blocks import BlockRunner, blocks
from quant.ptq.brecq import RangeScaling, ReconstructionRunner, random_mask, reconstruct, reconstruction_units
from tests.conftest import photos, spec, with_real_statistics


def observed(bits: int, weight: torch.Tensor) -> ObservedWeightQuantizer:
    quantizer = ObservedWeightQuantizer(bits, len(weight), "mse", learned_rounding=tuple(weight.shape))
    quantizer(weight)
    quantizer.finish_observing()
    return quantizer.eval()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_equations_of_adaround(bits):
    weight = torch.randn(6, 5, 3, 3)
    quantizer = observed(bits, weight)
    rounding = SoftRounding(quantizer, weight)
    grid = quantizer.grid()
    scale, most = grid.scale.view(-1, 1, 1, 1), grid.q_max
    inside = (weight.abs() < scale * most).numpy()
    assert numpy.allclose(rounding.weight().detach()[inside], weight[inside], atol=1e-5), "it starts where w is"
    with torch.no_grad():
        rounding.V.copy_(torch.randn(rounding.V.shape) * 3)
    V = rounding.V.detach().double().numpy()
    h = numpy.clip(1.2 / (1 + numpy.exp(-V)) - 0.1, 0, 1)
    floor = numpy.floor((weight / scale).double().numpy())
    expected = scale.double().numpy() * numpy.clip(floor + h, -most, most)
    assert numpy.allclose(rounding.weight().detach().numpy(), expected, atol=1e-5)
    assert rounding.penalty(3.0).item() == pytest.approx((1 - numpy.abs(2 * h - 1) ** 3).sum(), rel=1e-4)

    rounding.store()
    assert quantizer.offset.dtype == torch.int8
    assert set(quantizer.offset.unique().tolist()) <= {-1, 0, 1}
    up = numpy.clip(floor + (h >= 0.5), -most, most)
    assert numpy.array_equal(quantizer.to_int(weight).numpy(), up)
    assert torch.equal(quantizer(weight), scale * quantizer.to_int(weight))
    assert (quantizer.offset != 0).any()


def test_beta_falls_from_20_to_2_after_the_warm_up():
    assert beta_at(0.1) is None
    assert beta_at(0.2) == pytest.approx(20)
    assert beta_at(1.0) == pytest.approx(2)
    assert beta_at(0.5) > beta_at(0.6)


def test_a_new_range_forgets_the_offsets():
    weight = torch.randn(4, 10)
    quantizer = observed(4, weight)
    quantizer.offset.fill_(1)
    quantizer.observing = True
    quantizer(weight)
    quantizer.finish_observing()
    assert not quantizer.offset.any()


@pytest.mark.parametrize("signed", [False, True])
def test_a_scaling_moves_the_range_about_zero_with_lsqs_gradient(signed):
    x = torch.randn(4, 200) * 2 + 0.3
    quantizer = ObservedActivationQuantizer(3, "percentile", 99.0)
    quantizer(x if signed else x.relu())
    quantizer.finish_observing()
    quantizer.eval()
    x = x if signed else x.relu()
    scaling, grid = RangeScaling(quantizer), quantizer.grid()
    assert torch.equal(scaling(x), quantizer(x))
    scaling(x).sum().backward()
    ratio, zero = (x / grid.scale).double(), int(grid.zero_point)
    steps = torch.where(ratio <= grid.q_min - zero, grid.q_min - zero, ratio.round() - ratio)
    steps = torch.where(ratio >= grid.q_max - zero, grid.q_max - zero, steps)
    assert float(scaling.r.grad) == pytest.approx(float(steps.sum() * grid.scale), rel=1e-3)
    with torch.no_grad():
        scaling.r.fill_(0.75)
    y = scaling(x)
    scaling.store()
    assert torch.allclose(quantizer(x), y, atol=1e-6)
    assert quantizer.grid().zero_point == grid.zero_point


def test_drop_takes_its_share():
    like = torch.empty(8, 5, 7, 9).contiguous(memory_format=torch.channels_last)
    ones = torch.stack([random_mask(like, 0.25, torch.Generator().manual_seed(i)) for i in range(20)])
    assert ones.mean().item() == pytest.approx(0.25, abs=0.01)
    assert set(ones.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(ones[0], ones[1])


def calibrated(bits: int, count: int, **keys):
    images = photos(count, 32)
    model = with_real_statistics(models.build("resnet20", 10, 32, {}), images).to(memory_format=torch.channels_last)
    settings = spec(method="ptq", weight_bits=bits, act_bits=4, observer="mse", rounding_steps=60, **keys)
    prepared = quant.prepare(model, settings)
    quant.calibrate(prepared, [images])
    return prepared.eval(), images, settings


@pytest.mark.parametrize("rounding", ["adaround", "brecq"])
def test_a_block_comes_nearer_to_its_float_output(rounding):
    prepared, images, _ = calibrated(2, 64, rounding=rounding)
    found, run, x = blocks(prepared, images[:1]), BlockRunner(prepared), images
    for block in found[:8]:
        x = run.values(block, x)
    block = found[8]
    quant.set_enabled(prepared, False)
    aim = run.values(block, x)
    quant.set_enabled(prepared, True)
    before = (run.values(block, x) - aim).square().mean()
    weights = {name: p.detach().clone() for name, p in prepared.named_parameters()}
    for part in reconstruction_units(block, rounding):
        fed = run.values(block.up_to(part.exit), x) if part is not block else x
        quant.set_enabled(prepared, False)
        target = run.values(part, fed)
        quant.set_enabled(prepared, True)
        learning = ReconstructionRunner(prepared, part, 0.5 if part is block else 1.0, torch.Generator().manual_seed(0))
        reconstruct(learning, part, fed, fed, target, 60, 32, lambda count: None)
    assert (run.values(block, x) - aim).square().mean() < 0.9 * before
    assert all(torch.equal(weights[name], p) for name, p in prepared.named_parameters()), "float weights stay"
    assert all(p.grad is None for p in prepared.parameters())


def test_a_block_of_many_layers_is_taken_by_the_layer():
    prepared, images, _ = calibrated(4, 4, rounding="brecq")
    found = blocks(prepared, images[:1])
    assert [len(reconstruction_units(block, "brecq")) for block in found] == [1] * 11
    assert sum(len(reconstruction_units(block, "adaround")) for block in found) == 20
    whole = found[0]
    for block in found[1:]:
        nodes, layers = whole.nodes + block.nodes, whole.layers + block.layers
        whole = replace(whole, nodes=nodes, exit=block.exit, layers=layers)
    assert [len(part.layers) for part in reconstruction_units(whole, "brecq")] == [1] * 20


def test_a_batch_norm_of_a_dead_channel_and_a_layer_without_weights_to_round():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 5)).eval()
    with torch.no_grad():
        model[1].weight[2] = 0
        model[1].bias[2] = 0
        model[0].weight[1] = 0
    settings = spec(method="ptq", recipe="best", rounding_steps=5, layers={"4": "float"})
    prepared = quant.prepare(model, settings)
    quant.calibrate(prepared, [photos(40, 32)])
    quant.run_ptq_pipeline(prepared, [photos(40, 32)], settings)
    assert torch.isfinite(prepared.eval()(photos(4, 32))).all()
