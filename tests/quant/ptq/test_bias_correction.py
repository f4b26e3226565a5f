"""Correction puts each channel's statistics right, is exact in integers, and is off where the quantizers are."""

import pytest
import torch
from torch import nn

import quant
from quant.graph.quant_layers import QuantLayer
from quant.graph.views import layer_view, layers
from quant.ptq.bias_correction import MAX_GAIN, Moments, apply_bias_correction, moments
from quant.ptq.blocks import BlockRunner, blocks
from tests.conftest import KERNELS, photos, spec, with_real_statistics
from tests.nets import plain


def normed() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()),
        *(nn.Conv2d(16, 24, 1), nn.BatchNorm2d(24), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)),
    )


def refined(make, **keys):
    images = photos(64, 32).contiguous(memory_format=torch.channels_last)
    settings = spec(method="ptq", weight_bits=3, act_bits=4, first_last_bits="same", **keys)
    model = with_real_statistics(make(), images)
    with torch.no_grad():
        in_float = model(images)
    prepared = quant.prepare(model, settings)
    quant.calibrate(prepared, [images])
    quant.run_ptq_pipeline(prepared, [images], settings)
    return prepared.eval(), images, in_float


def layers_of(prepared, images, enabled: bool) -> dict[str, Moments]:
    """The moments of each layer's output before its activation, in the net with its quantizers on or off."""
    quant.set_enabled(prepared, enabled)
    run, found, value = BlockRunner(prepared), {}, images
    for block in blocks(prepared, images[:1]):
        for node in block.layers:
            view = layer_view(dict(prepared.named_modules()), node)
            layer, norm = view.layer, view.norm
            found[node.target] = moments(layer, norm, run.values(block.up_to(node), value))
        value = run.values(block, value)
    quant.set_enabled(prepared, True)
    return found


@pytest.mark.parametrize("make", [normed, lambda: plain(10)], ids=["norms", "biases"])
@pytest.mark.parametrize("kind", ["bias", "norm"])
def test_statistics_are_those_of_the_float_net(make, kind):
    torch.manual_seed(1)
    prepared, images, _ = refined(make, bias_correction=kind)
    torch.manual_seed(1)
    without, _, _ = refined(make)
    aim, found, before = (
        layers_of(*given) for given in ((prepared, images, False), (prepared, images, True), (without, images, True))
    )
    for name, (mean, var) in aim.items():
        gain = dict(prepared.named_modules())[name].correction.gain
        free = (gain > 1 / MAX_GAIN) & (gain < MAX_GAIN)
        assert torch.allclose(found[name].mean, mean, atol=1e-4)
        if kind == "norm":
            assert free.float().mean() > 0.8
            assert torch.allclose(found[name].var[free], var[free], rtol=1e-3)
        else:
            assert torch.equal(gain, torch.ones_like(gain))
    assert any(not torch.allclose(before[name].mean, aim[name].mean, atol=1e-2) for name in aim)


@pytest.mark.parametrize("make", [normed, lambda: plain(10)], ids=["norms", "biases"])
def test_integers_are_the_simulation_to_the_bit(make):
    prepared, images, in_float = refined(make, bias_correction="norm")
    with torch.inference_mode():
        simulated = prepared(images)
        for engine in KERNELS:
            assert torch.equal(quant.convert(prepared, engine)(images), simulated), engine
        quant.set_enabled(prepared, False)
        assert torch.allclose(prepared(images), in_float, rtol=1e-4, atol=1e-5), "float is as it was"


def test_the_integer_layer_computes_the_corrected_layer():
    """The bias, the batch norm and the line, absorbed into one: rounded to the nearest step, but for the bias's own."""
    prepared, images, _ = refined(normed, bias_correction="norm")
    x = images
    with torch.no_grad():
        for view in layers(prepared).values():
            layer, source, norm = view.layer, view.source, view.norm
            if layer.output is not None:
                x = source(x)
                grid, y = layer.output.grid(), layer(x, source, norm)
                exact = layer.in_float(x, layer.used_weight(), norm)
                low, high = ((end - int(grid.zero_point)) * grid.scale for end in (grid.q_min, grid.q_max))
                assert (y - exact.clamp(low, high)).abs().max() <= 0.6 * grid.scale
                x = y


def test_a_channel_without_variance_is_not_blown_up():
    prepared, _, _ = refined(normed, bias_correction="norm")
    layer = next(module for module in prepared.modules() if isinstance(module, QuantLayer))
    mean = torch.zeros(16, dtype=torch.float64)
    var = torch.ones(16, dtype=torch.float64)
    apply_bias_correction(
        layer, "norm", Moments(mean + 1, var), Moments(mean, torch.where(torch.arange(16) == 3, 0.0, var))
    )
    assert layer.correction.gain[3] == MAX_GAIN
    apply_bias_correction(layer, "norm", Moments(mean + 1, 0 * var), Moments(mean, 0 * var))
    assert torch.equal(layer.correction.gain, torch.ones(16))
    assert torch.equal(layer.correction.shift, torch.ones(16))


def test_float_tensors_do_not_count_it():
    prepared, _, _ = refined(normed, bias_correction="norm")
    from quant.analysis.compare import float_state

    assert not any("correction" in name or "offset" in name for name in float_state(prepared))
    assert any("correction.gain" in name for name in prepared.state_dict())
