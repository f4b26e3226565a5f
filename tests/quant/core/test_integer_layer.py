"""The integer arithmetic (core/integer_layer.py) against NumPy in int64, and its edges."""

import numpy
import pytest
import torch
from torch import nn

from quant.core.activation import IDENTITY, ClampedAffine
from quant.core.batch_norm import running_statistics
from quant.core.grid import Grid
from quant.core.integer_layer import Geometry, IntegerLayer, _off_ties, build_integer_layer, exact_sums, split_count
from quant.core.observed import ObservedWeightQuantizer
from tests.helpers import grid


def numpy_convolution(n, w, stride, padding):
    """Integer convolution of n [N, C, H, W] with w [O, C, k, k], by definition."""
    n = numpy.pad(n, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    k = w.shape[2]
    windows = numpy.lib.stride_tricks.sliding_window_view(n, (k, k), axis=(2, 3))[:, :, ::stride, ::stride]
    return numpy.einsum("nchwij,ocij->nohw", windows, w)


def random_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.uniform_(-1, 1)
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.2, 3)
    return norm.eval()


def off_ties(m: float) -> float:
    """The fraction with an odd denominator up to 4,095 that is nearest to m, among the 16 largest numerators; 1 / d for
    a smaller m."""
    top = max(1, int(4095 * m))
    odd = [
        (p, min((int(p / m) // 2 * 2 + side for side in (-1, 1)), key=lambda d: abs(d - p / m)))
        for p in range(1, top + 1)
    ]
    return min((p / d for p, d in odd[-16:]), key=lambda fraction: abs(fraction - m))


@pytest.mark.parametrize("zero_point", [0, 131, 255])
def test_orders_of_rounding_agree_at_every_step(zero_point):
    """The layer's order and fbgemm's on the sums next to each tie, for multipliers from 1 / 8,000 to 0.5; oneDNN's from
    1 / 4,000."""
    one, wanted = torch.ones(5000, 1), 10 ** (-0.3 - 3.6 * torch.rand(5000).double())
    x, y = torch.tensor(0.0173), torch.tensor(0.0411)
    scale = _off_ties(wanted * y.double() / x.double(), one, x.double() / y.double()).float()
    m = (x * scale / y)[:, None]
    assert ((m[:, 0] / wanted - 1).abs() < 1 / 2000).all()
    bias = ((torch.rand(5000, 1) - 0.5) * 1000 / m).round()
    ties = torch.arange(1, 256) - 0.5 - zero_point
    different = dict.fromkeys(("fbgemm", "onednn"), 0)
    for aside in (-1, 0, 1):
        a = ((ties / m.double()).round() + aside).float() - bias
        ours, b = ((a + bias) * m).round() + zero_point, bias * m
        different["fbgemm"] += int((((a + b / m) * m).round() + zero_point != ours).sum())
        different["onednn"] += int(((a * m + b + zero_point).round() != ours)[wanted > 1 / 4000].sum())
    assert different == {"fbgemm": 0, "onednn": 0}


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_layer_against_numpy(bits, bias, stride):
    conv, norm = nn.Conv2d(6, 8, 3, stride, 1, bias=bias), random_norm(8)
    quantizer = ObservedWeightQuantizer(bits, 8, "last_minmax")
    quantizer(conv.weight)
    wg, x, y = quantizer.grid(), grid(0.031, 3, bits), grid(0.05, 2, bits)
    geometry = Geometry((stride, stride), (1, 1), (1, 1))
    layer = build_integer_layer(
        geometry, wg.to_int(conv.weight), wg, conv.bias, norm, x, y, ClampedAffine(0.0, 6.0), 127
    )
    q = torch.randint(0, 2**bits, (2, 6, 9, 9))
    found = layer((q - 3).float())

    g = (norm.weight / (norm.running_var + norm.eps).sqrt()).double().detach().numpy()
    factor = 127 // wg.q_max
    weights = wg.to_int(conv.weight).detach().numpy().astype(numpy.int64) * factor
    weights = weights * numpy.sign(g).astype(numpy.int64)[:, None, None, None]
    scales = wg.scale.double().numpy() / factor * numpy.abs(g)
    ratio = float(numpy.float32(0.031)) / float(numpy.float32(0.05))
    scales = numpy.array([off_ties(m) / ratio for m in scales * ratio]).astype(numpy.float32)
    shift = norm.bias.double().detach().numpy() - norm.running_mean.double().numpy() * g
    shift = shift + (conv.bias.double().detach().numpy() * g if bias else 0)
    unit = numpy.float32(0.031) * scales
    steps = numpy.rint(shift / unit).astype(numpy.int64)
    sums = numpy_convolution((q - 3).numpy(), weights, stride, 1) + steps[:, None, None]
    multiplier = (unit / numpy.float32(0.05))[:, None, None]
    top = min(2**bits - 1, numpy.rint(numpy.float32(6) / numpy.float32(0.05)) + 2)
    expected = numpy.clip(numpy.rint(sums.astype(numpy.float32) * multiplier) + 2, 2, top)
    assert numpy.abs(layer.weight.numpy() - weights).max() == 0
    assert numpy.array_equal(found.numpy() + 2, expected), "away from ties, a scale's last bit does not matter"


def test_simulated_values_are_those_of_the_float_layer_within_half_a_step():
    conv, norm = nn.Conv2d(16, 8, 3, 1, 1), random_norm(8)
    quantizer = ObservedWeightQuantizer(8, 8, "last_minmax")
    quantizer(conv.weight)
    wg, x, y = quantizer.grid(), grid(0.02, 128), grid(0.03, 128)
    layer = build_integer_layer(
        Geometry((1, 1), (1, 1), (1, 1)), wg.to_int(conv.weight), wg, conv.bias, norm, x, y, IDENTITY, 127
    )
    n = torch.randint(-128, 128, (4, 16, 8, 8)).float()
    weight = wg.value(wg.centred(conv.weight))
    real = norm(torch.nn.functional.conv2d(x.value(n), weight, conv.bias, padding=1))
    inside = (real / 0.03).abs() < 126
    error = (y.value(layer(n)) - real).abs()[inside]
    assert error.max() <= 0.03 * 0.502


@pytest.mark.parametrize("inputs", [3, 2000, 60_000])
def test_sums_are_exact_whatever_their_size(inputs):
    """In one piece, in 4 shares of the inputs, in 128."""
    n = torch.full((2, inputs), 255.0)
    n[1] = torch.randint(0, 256, (inputs,))
    w = torch.full((4, inputs), 127.0)
    w[1:] = torch.randint(-127, 128, (3, inputs))
    bias = torch.tensor([1.0, -7.0, 3e5, 0.0])
    exact = n.long() @ w.long().t() + bias.long()
    assert split_count(w, 255, 1) == {3: 1, 2000: 4, 60_000: 128}[inputs]
    assert torch.equal(exact_sums(Geometry(), n, w, 255, bias), exact.float())


@pytest.mark.parametrize("groups", [1, 2])
def test_sums_of_wide_convolutions_are_exact(groups):
    """1,152 channels: in shares, or where they are grouped in fp64."""
    n, w = torch.full((1, 1152, 4, 4), 255.0), torch.full((2, 1152 // groups, 3, 3), 127.0)
    w[1], n[0, ::3] = torch.randint(-127, 128, w[1].shape), 254.0
    assert split_count(w, 255, groups) == {1: 32, 2: None}[groups]
    exact = torch.nn.functional.conv2d(n.double(), w.double(), None, 1, 1, 1, groups)
    found = exact_sums(Geometry((1, 1), (1, 1), (1, 1), groups), n, w, 255, torch.tensor([3.0, -4.0]).view(-1, 1, 1))
    assert torch.equal(found, (exact + torch.tensor([3.0, -4.0]).view(-1, 1, 1)).float())


@pytest.mark.parametrize("gamma", [0.0, 1e-45, 1e-30, 1e-12, -1e-30])
def test_vanishing_gamma_gives_a_sound_layer(gamma):
    conv, norm = nn.Conv2d(4, 3, 1), random_norm(3)
    with torch.no_grad():
        norm.weight[1] = gamma
        norm.bias.copy_(torch.tensor([0.5, 1.25, -0.5]))
    quantizer = ObservedWeightQuantizer(8, 3, "last_minmax")
    quantizer(conv.weight)
    wg, x, y = quantizer.grid(), grid(0.02, 0), grid(0.01, 100)
    layer = build_integer_layer(
        Geometry((1, 1), (0, 0), (1, 1)), wg.to_int(conv.weight), wg, conv.bias, norm, x, y, IDENTITY, 127
    )
    assert torch.finfo(torch.float32).tiny < layer.accumulator_scale().min()
    assert (layer.bias.abs() <= 2**30).all()
    value = y.value(layer(torch.randint(0, 256, (2, 4, 5, 5)).float()))
    assert torch.allclose(value[:, 1], torch.tensor(1.25)), "a dead channel is its bias"


def test_a_bias_too_large_for_the_grid_raises_the_scale():
    conv = nn.Conv2d(4, 2, 1)
    with torch.no_grad():
        conv.weight.mul_(1e-9)
        conv.bias.copy_(torch.tensor([5.0, 0.0]))
    quantizer = ObservedWeightQuantizer(8, 2, "last_minmax")
    quantizer.low.copy_(conv.weight.flatten(1).amin(1).detach())
    wg = Grid(torch.tensor([1e-12, 1e-3]), torch.zeros(2, dtype=torch.int32), -127, 127)
    x, y = grid(0.01, 0), grid(0.05, 0)
    layer = build_integer_layer(
        Geometry((1, 1), (0, 0), (1, 1)), torch.ones(2, 4, 1, 1), wg, conv.bias, None, x, y, IDENTITY, 127
    )
    assert layer.bias.abs().max() <= 2**30 * 1.001
    assert y.value(layer(torch.zeros(1, 4, 1, 1)))[0, 0].item() == pytest.approx(5.0)


def test_a_layer_with_a_float_output_has_no_output_grid():
    x, ones = grid(0.1, 3), torch.ones(3)
    layer = IntegerLayer(Geometry(), torch.ones(3, 2), ones, ones, x, None, 0, 0)
    with pytest.raises(ValueError, match="no output grid"):
        layer.multiplier()


def test_a_batch_norm_without_running_statistics_cannot_be_absorbed():
    with pytest.raises(ValueError, match="without running statistics"):
        running_statistics(nn.BatchNorm2d(3, track_running_stats=False))


def test_which_layers_are_off_ties():
    """No multiplier below 1 / 4,095, and no bias of more than 512 output steps, of whichever sign."""

    def layer(multiplier: float, bias: float) -> IntegerLayer:
        numbers = torch.ones(2, 3), torch.tensor([0.5, multiplier]), torch.tensor([0.0, bias])
        return IntegerLayer(Geometry(), *numbers, grid(1.0, 0), grid(1.0, 0), 0, 255)

    assert layer(1 / 4095, 0.0).off_ties()
    assert layer(0.5, 1024.0).off_ties()
    assert not layer(1 / 4101, 0.0).off_ties()
    assert not layer(0.5, 1026.0).off_ties()
    assert not layer(0.5, -1026.0).off_ties()
