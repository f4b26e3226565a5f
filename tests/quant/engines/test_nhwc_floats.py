"""Operators in fp32 return what torch's do."""

import pytest
import torch
import torch.nn.functional as F

from quant.engines.nhwc_floats import adaptive_windows
from tests.helpers import run_on
from tests.quant.engines.test_nhwc_moves import Call

ONE, SLOPES = torch.ones(1), torch.linspace(0, 1, 6)
FUNCTIONS = {
    "arithmetic": lambda x: (x * 3 - 1) / (x.abs() + 2),
    "rsub": lambda x: torch.rsub(x, ONE),
    "clamp": lambda x: x.clamp(-0.5, 1.0) + x.clamp(min=0.25),
    "hardtanh": F.hardtanh,
    "power": lambda x: x**3,
    **{f.__name__: f for f in (torch.sigmoid, torch.tanh, torch.square, torch.neg)},
    **{f.__name__: f for f in (F.hardswish, F.hardsigmoid, F.silu, F.gelu, F.elu, F.selu, F.celu, F.softplus, F.mish)},
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "prelu": lambda x: F.prelu(x, SLOPES),
}
EXACT = {
    "mean": lambda x: x.mean((2, 3)),
    "mean_keep": lambda x: x.mean((-1, -2), keepdim=True),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (3, 4)),
    "pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "pool_ceil": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "pool_within": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "pool_divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_near_those_of_torch(name, builder):
    x = torch.linspace(-6, 6, 2 * 6 * 5 * 7).reshape(2, 6, 5, 7)
    assert torch.allclose(run_on(builder, Call(FUNCTIONS[name]), x), FUNCTIONS[name](x), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", EXACT)
def test_averages_of_integers_are_exact(name, builder):
    x = torch.randint(-255, 256, (2, 6, 9, 10)).float()
    assert torch.equal(run_on(builder, Call(EXACT[name]), x), EXACT[name](x))


def test_windows_of_an_adaptive_pool():
    assert adaptive_windows(5, 2).tolist() == [[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]
