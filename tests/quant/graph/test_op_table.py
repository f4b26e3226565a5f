"""What each operator of a traced model is taken for."""

import math
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant.core.activation import ClampedAffine
from quant.graph.typed_graph import TypedGraph
from tests.conftest import spec
from tests.helpers import prepared_gated, simulated_against_float
from tests.nets import Hooked, SharedFunctions


def test_an_activation_that_a_net_shares_is_an_integer_operator_wherever_it_is_called():
    _, prepared = simulated_against_float(SharedFunctions())
    rows = {row[0]: row for row in quant.layer_rows(prepared, quant.convert(prepared, "reference"))}
    assert all(rows[name][-2] == "integers in float32" for name in ("act", "act_1", "pool", "pool_1"))


def test_a_layer_with_hooks_stays_as_it_is():
    _, prepared = simulated_against_float(Hooked())
    rows = {row[0]: row for row in quant.layer_rows(prepared, quant.convert(prepared, "reference"))}
    assert rows["b"][-2:] == ["float", "it has hooks"]


def test_what_hard_swish_does_not_tell_apart_costs_no_steps():
    """Below -3 it is 0: the grid it reads ends there."""
    prepared, _ = prepared_gated(observer="minmax")
    grid = prepared.get_submodule("stem").output.grid()
    assert float(grid.scale) * (grid.q_min - int(grid.zero_point)) == pytest.approx(-3, abs=float(grid.scale))
    assert prepared.get_submodule("stem").activation == ClampedAffine(-3.0, float("inf"))


class Applied(nn.Module):
    """A convolution, and a function of its output [N, 4, H, W]."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 1), function
        self.given = function if isinstance(function, nn.Module) else None

    def forward(self, x):
        return self.function(self.conv(x))


def role_of(function) -> str:
    """What the last node of `function` (a module, or a function of one tensor) is taken for."""
    traced = quant.trace(Applied(function))
    return TypedGraph(traced).roles[list(traced.graph.nodes)[-1].all_input_nodes[0]]


class Inherits(nn.Conv2d):
    """A subclass that computes what it inherits."""

    def reset_parameters(self):
        nn.init.normal_(self.weight)


class Pads(nn.Conv2d):
    """A subclass with a forward of its own."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


OPERATORS = {
    "activation": [
        nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-2, 3), nn.Hardsigmoid(), F.relu, F.relu6, F.hardtanh, F.hardsigmoid,
        torch.relu, lambda x: x.relu(), lambda x: x.relu_(), lambda x: x.clamp(0, 1), lambda x: torch.clamp(x, min=-1),
    ],
    "binary": [
        lambda x: x + x, lambda x: x.add(x), lambda x: torch.add(x, x), lambda x: x.add_(x),
        lambda x: x * x, lambda x: x.mul(x), lambda x: torch.mul(x, x), lambda x: operator.imul(x, x),
        lambda x: x - x, lambda x: torch.sub(x, x), lambda x: x.sub(x),
    ],
    "average": [
        nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), lambda x: F.avg_pool2d(x, 2), lambda x: F.adaptive_avg_pool2d(x, 2),
        lambda x: x.mean((2, 3)), lambda x: x.mean([-1, -2], keepdim=True), lambda x: torch.mean(x, dim=(2, 3)),
        lambda x: x.mean(1), lambda x: x.mean(-1).mean(-1), lambda x: x.flatten(2).mean(-1),
        lambda x: x.mean((1, 2, 3)),
    ],
    "function": [
        nn.Hardswish(), nn.Sigmoid(), nn.SiLU(), nn.GELU(), nn.Tanh(), nn.ELU(), nn.LeakyReLU(0.1), nn.Mish(),
        F.hardswish, F.silu, F.gelu, torch.sigmoid, torch.tanh, lambda x: x.sigmoid(), lambda x: -x,
        lambda x: x + 3, lambda x: 3 - x, lambda x: 2 * x, lambda x: x / 4,
        lambda x: x**2, lambda x: x.pow(3), lambda x: x.abs(), lambda x: abs(x), lambda x: x.square(),
        lambda x: F.pad(x, (1, 1), value=1.0), nn.ConstantPad2d(1, 0.5), nn.PReLU(), nn.PReLU(4),
        lambda x: x.relu() * torch.ones(4, 1, 1), lambda x: torch.ones(1) - x, lambda x: x.relu() / torch.ones(4, 1, 1),
    ],
    "pass": [
        nn.MaxPool2d(2), nn.Flatten(), nn.PixelShuffle(2), nn.ChannelShuffle(2), nn.Dropout(), nn.Dropout2d(),
        lambda x: F.max_pool2d(x, 2), lambda x: torch.flatten(x, 1), lambda x: x.permute(0, 2, 3, 1),
        lambda x: x[:, :2], lambda x: x.chunk(2, 1)[0], lambda x: torch.cat([x, x], 1), lambda x: F.pad(x, (1,) * 4),
        lambda x: F.pad(x, (1, 1), "constant", 0), lambda x: x.reshape(1, -1), lambda x: x.contiguous(),
        lambda x: x.clone(), nn.AlphaDropout(), nn.Dropout1d(),
        nn.ZeroPad2d(1), nn.ConstantPad2d(1, 0), nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.CircularPad2d(1),
        lambda x: F.pad(x, (1, 1), "reflect"), lambda x: F.pad(x, (-1, 0)), lambda x: F.pad(x, (0, 0, 0, 0, 2, 2)),
        nn.Upsample(scale_factor=2), nn.UpsamplingNearest2d(9), lambda x: F.interpolate(x, scale_factor=2),
        nn.PixelUnshuffle(2), lambda x: x.flip(3), lambda x: torch.flip(x, (2, 3)), lambda x: x.roll(1, 3),
        lambda x: x.amax((2, 3)), nn.AdaptiveMaxPool2d(1), lambda x: F.adaptive_max_pool2d(x, 2), lambda x: x.max(1)[0],
        lambda x: x.flatten(2).max(-1).values, lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
        lambda x: x.expand(2, 4, 8, 8),
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0], lambda x: F.dropout(x, 0.5, False)[:, :2],
    ],
    "norm": [nn.BatchNorm2d(4)],
    "layer": [
        nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.Linear(4, 8), nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 2, padding="same"), nn.Conv2d(4, 4, 3, padding="valid"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), Inherits(4, 8, 1), Pads(4, 8, 3),
        lambda x: F.conv2d(x, torch.ones(4, 1, 3, 3), groups=4),
    ],
    "shape": [lambda x: x.size(0), lambda x: x.shape, lambda x: x.size(1) * 2, lambda x: x.ndim],
    "float": [
        nn.Softmax(1), nn.LayerNorm(4), nn.ConvTranspose2d(4, 4, 2), nn.BatchNorm2d(4, track_running_stats=False),
        lambda x: x @ x, lambda x: x / x, lambda x: torch.add(x, x, alpha=2), lambda x: x.mean(),
        lambda x: x.mean((0, 1)),
        lambda x: x.clamp(x, 2 * x), lambda x: x.max(1)[1], lambda x: x.max(), nn.MaxPool2d(2, return_indices=True),
        lambda x: torch.exp(x), lambda x: x.sort()[0], lambda x: x.mean([2, x.dim() - 1]), lambda x: 1 / x,
        nn.Upsample(scale_factor=2, mode="bilinear"), lambda x: F.dropout(x, 0.5, True), lambda x: x.rsqrt(),
        lambda x: F.conv2d(x, torch.ones(4, 4, 1, 1) * x.mean()), lambda x: x.log(), lambda x: x**-2,
        lambda x: x**0.5, lambda x: 2**x,
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("role", "function"),
    [pytest.param(role, f, id=f"{role} {i}") for role, row in OPERATORS.items() for i, f in enumerate(row)],
)
def test_the_role_of_an_operator(role, function):
    assert role_of(function) == role


@pytest.mark.parametrize(
    ("function", "bounds"),
    [
        (nn.ReLU(), (0, math.inf, 1, 0)),
        (nn.ReLU6(), (0, 6, 1, 0)),
        (nn.Hardtanh(-2, 3), (-2, 3, 1, 0)),
        (F.hardtanh, (-1, 1, 1, 0)),
        (lambda x: F.hardtanh(x, 0.0, max_val=2.0), (0, 2, 1, 0)),
        (lambda x: x.clamp(max=4), (-math.inf, 4, 1, 0)),
        (lambda x: torch.clamp(x, -1, 1), (-1, 1, 1, 0)),
        (nn.Hardsigmoid(), (0, 1, 1 / 6, 0.5)),
        (F.hardsigmoid, (0, 1, 1 / 6, 0.5)),
        (nn.Hardswish(), (-3, math.inf, 1, 0)),
        (F.hardswish, (-3, math.inf, 1, 0)),
        (nn.SiLU(), (-math.inf, math.inf, 1, 0)),
    ],
)
def test_a_layer_takes_over_the_clamp_behind_it(function, bounds):
    net = nn.Sequential(Applied(function), nn.Conv2d(4, 4, 1))
    prepared = quant.prepare(net, spec(method="ptq"))
    assert tuple(prepared.get_submodule("0.conv").activation) == bounds
    x = torch.randn(64, 3, 4, 4) * 5
    y = net[0].conv(x)
    expected = y.clamp(*bounds[:2]) if bounds[0] == -3 else function(y)
    if not isinstance(function, nn.SiLU):
        assert torch.allclose(prepared.get_submodule("0.conv").activation(y), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(4, 4, 3, padding="same"), ""),
        (nn.Conv3d(4, 4, 2), "Conv3d has no integer form here"),
        (nn.ConvTranspose2d(4, 4, 2), "ConvTranspose2d has no integer form here"),
        (nn.Softmax(1), ""),
    ],
)
def test_why_a_layer_stays_float(layer, reason):
    traced = quant.trace(Applied(layer))
    (node,) = [node for node in traced.graph.nodes if node.target in ("function", "given")]
    assert TypedGraph(traced).why_float(node) == reason
