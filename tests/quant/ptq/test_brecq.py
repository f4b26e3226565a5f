"""Reconstruction: what is in float, what is mixed, what is learned and how fast. Its gradients are in test_adaround."""

import math

import pytest
import torch

import quant
from quant.core.observed import ObservedActivationQuantizer
from quant.graph.views import quantizers
from quant.ptq import brecq
from quant.ptq.blocks import BlockRunner, blocks
from quant.ptq.brecq import RangeScaling, ReconstructionRunner, default_steps, random_mask, reconstruct
from tests.conftest import photos, spec, with_real_statistics
from tests.nets import Residual


def prepared_residual(**keys):
    images = photos(8, 32)
    model = with_real_statistics(Residual(3), images)
    prepared = quant.prepare(model, spec(**({"method": "ptq", "act_bits": 4, "rounding": "brecq"} | keys)))
    quant.calibrate(prepared, [images])
    return prepared, blocks(prepared, images[:1]), images


def runner_of(drop: float, **keys):
    prepared, found, images = prepared_residual(**keys)
    block = next(block for block in found if len(block.layers) > 1)
    run, x = BlockRunner(prepared), images
    for before in found[: found.index(block)]:
        x = run.values(before, x)
    return ReconstructionRunner(prepared, block, drop, torch.Generator().manual_seed(0)), prepared, block, x


def test_before_a_step_it_computes_nearly_what_float_weights_do():
    """Roundings start where the weights are; without drop, activations are quantized, with drop 1 in float."""
    for drop in (0.0, 1.0):
        runner, prepared, block, x = runner_of(drop, weight_bits=8)
        weights = [q for name, q in quantizers(prepared).items() if "weight" in name]
        quant.set_enabled(prepared, drop == 0)
        for quantizer in weights:
            quantizer.enabled = False
        expected = BlockRunner(prepared).values(block, x)
        found = runner.values(block, x)
        assert (found - expected).abs().max() < (0.5 if drop == 0 else 1e-3) * expected.abs().max()
        assert (found - expected).abs().mean() < 0.01 * expected.abs().mean() + 1e-6


def test_ranges_are_learned_below_eight_bits_only():
    runner, _, block, _ = runner_of(0.5)
    assert runner.scalings
    assert all(q.bits == 4 and q.members == 1 for q in runner.scalings)
    assert len(runner.roundings) == len(block.layers)
    runner, _, _, _ = runner_of(0.5, act_bits=8)
    assert runner.scalings == {}
    runner, _, _, _ = runner_of(1.0)
    assert runner.scalings == {}, "activations in float have none"


def test_a_range_that_is_shared_is_not_scaled():
    quantizer = ObservedActivationQuantizer(4, "minmax")
    assert brecq._is_scaled(quantizer)
    quantizer.members = 2
    assert not brecq._is_scaled(quantizer)


def test_the_mix_of_float_and_quantized_values():
    in_float, quantized = torch.zeros(50, 100), torch.ones(50, 100)
    for drop in (0.0, 0.25, 1.0):
        runner, _, _, _ = runner_of(drop)
        found = runner.mix(in_float, quantized)
        assert set(found.unique().tolist()) <= {0.0, 1.0}
        assert float(1 - found.mean()) == pytest.approx(drop, abs=0.03)
    assert runner.mix(in_float, quantized) is in_float
    x = torch.randn(3)
    assert runner.quantized(x, None) is x


def test_a_scaling_is_never_below_a_tenth():
    quantizer = ObservedActivationQuantizer(4, "minmax")
    quantizer.train()(torch.tensor([0.0, 2.0]))
    quantizer.eval()
    scaling = RangeScaling(quantizer)
    with torch.no_grad():
        scaling.r.fill_(-3.0)
    assert torch.allclose(scaling(torch.tensor([9.0])), torch.tensor([0.2]))
    scaling.store()
    assert float(quantizer.high) == pytest.approx(0.2)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_mask_is_laid_out_as_its_tensor(layout):
    like = torch.zeros(3, 5, 4, 4).contiguous(memory_format=layout)
    for fraction in (0.0, 0.5, 1.0):
        mask = random_mask(like, fraction, torch.Generator().manual_seed(0))
        assert mask.stride() == like.stride()
        assert float(mask.mean()) == pytest.approx(fraction, abs=0.1)
    assert not random_mask(like, 0.0, torch.Generator()).any()
    first, second = (random_mask(like, 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1))
    assert torch.equal(first, second)


def test_penalty_begins_after_the_warm_up():
    runner, _, _, _ = runner_of(0.5)
    assert runner.penalty(0.1) == 0.0
    assert runner.penalty(0.9).detach() > 0
    total = sum(float(rounding.penalty(brecq.beta_at(0.9)).detach()) for rounding in runner.roundings.values())
    assert float(runner.penalty(0.9).detach()) == pytest.approx(total)


def test_rates_and_progress(monkeypatch):
    """V: what 20,000 steps of 0.001 go, within these steps, at most 0.1. r: from 0.001 along a cosine."""
    runner, prepared, block, x = runner_of(0.5)
    aim, rates, done = BlockRunner(prepared).values(block, x), [], []
    step = torch.optim.Adam.step

    def remember(optimizer):
        rates.append([group["lr"] for group in optimizer.param_groups])
        return step(optimizer)

    monkeypatch.setattr(torch.optim.Adam, "step", remember)
    reconstruct(runner, block, x, x, aim, 4, 32, done.append)
    assert done == [1] * 4
    assert [v for v, _ in rates] == [0.1] * 4
    assert [r for _, r in rates] == pytest.approx([0.001 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)])
    rates.clear()
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.zeros(2, dtype=torch.long))
    reconstruct(runner_of(0.5)[0], block, x, x, aim, 1, 32, done.append)
    monkeypatch.setattr(brecq, "TRAVEL", 0.2)
    reconstruct(runner_of(0.5)[0], block, x, x, aim, 4, 32, done.append)
    assert [v for v, _ in rates] == pytest.approx([0.1] + [0.05] * 4)


def test_what_is_learned_is_stored():
    runner, prepared, block, x = runner_of(0.0, weight_bits=3)
    before = [(q.low.clone(), q.high.clone()) for q in runner.scalings]
    quant.set_enabled(prepared, False)
    aim = BlockRunner(prepared).values(block, x)
    quant.set_enabled(prepared, True)
    reconstruct(runner, block, x, x, aim, 20, 32, lambda count: None)
    layers = [prepared.get_submodule(node.target) for node in block.layers]
    assert all(layer.weight_quantizer.offset.any() for layer in layers)
    scaled = [(q.low, q.high) for q in runner.scalings]
    assert any(not torch.equal(a[1], b[1]) for a, b in zip(before, scaled, strict=True))
    with torch.no_grad():
        hard = BlockRunner(prepared).values(block, x)
    assert (hard - aim).square().mean() < 2 * (runner.values(block, x) - aim).square().mean() + 1e-3


def test_a_block_without_weights_to_round_takes_no_steps():
    runner, prepared, block, x = runner_of(0.5)
    runner.roundings, done = {}, []
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    reconstruct(runner, block, x, x, x, 5, 32, done.append)
    assert done == []
    assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())


def test_the_input_is_mixed_too():
    """Where a block reads something else in the float net, a share of it is read."""
    runner, prepared, block, x = runner_of(0.5)
    seen, value = [], runner.value
    runner.value = lambda block, batch: seen.append(batch) or value(block, batch)
    aim = BlockRunner(prepared).values(block, x)
    reconstruct(runner, block, torch.zeros_like(x), x + 1, aim, 1, 32, lambda count: None)
    [batch] = seen
    assert len(batch) == 32
    assert float((batch == 0).float().mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("macs", "steps"), [(1, 500), (10**8, 500), (2 * 10**8, 250), (6 * 10**8, 100), (10**10, 100)])
def test_a_costly_net_gets_fewer_steps(macs, steps):
    assert default_steps(macs) == steps
