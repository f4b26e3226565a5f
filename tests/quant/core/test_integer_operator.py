"""The integer arithmetic of operators without weights, against NumPy."""

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant.core.activation import IDENTITY, ClampedAffine
from quant.core.grid import Grid
from quant.core.integer_operator import add, average, elementwise, exact_average, function, integer_operator, mul, sub
from quant.graph.op_table import OPERATORS
from tests.helpers import grid, other_arguments, prepared_with


def pairs(x: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Every pair of centred integers of a grid."""
    n = torch.arange(x.q_min, x.q_max + 1.0) - int(x.zero_point)
    p, q = torch.meshgrid(n, n, indexing="ij")
    return p.contiguous(), q.contiguous()


ARITHMETIC = {"add": add, "mul": mul}


def to_grid(value: numpy.ndarray, y: Grid, low: float, high: float) -> numpy.ndarray:
    """Centred integers of real values, in fp64, and how near each is to a tie."""
    steps = numpy.clip(value, low, high) / float(y.scale)
    return numpy.clip(numpy.rint(steps) + int(y.zero_point), y.q_min, y.q_max) - int(y.zero_point)


@pytest.mark.parametrize("bounds", [IDENTITY, ClampedAffine(0.0, float("inf")), ClampedAffine(0.0, 6.0)])
@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize(("kind", "run"), [("add", torch.add), ("mul", torch.mul)])
def test_sums_and_products_of_every_pair(kind, run, bits, bounds):
    x, y = grid(0.0831, 3, bits), grid(0.0927, 5, bits)
    op = integer_operator(kind, ARITHMETIC[kind], run, (x, x), y, bounds)
    p, q = pairs(x)
    a, b = (float(x.scale) * n.double().numpy() for n in (p, q))
    exact = a + b if kind == "add" else a * b
    ours, theirs = op(p.clone(), q.clone()).numpy(), to_grid(exact, y, bounds.low, bounds.high)
    fraction = numpy.abs(exact / float(y.scale)) % 1
    clear = numpy.abs(fraction - 0.5) > 1e-4  # at ties fp32 may round the other way
    assert (ours == theirs)[clear].all()
    assert clear.mean() > 0.98


def test_differences_of_every_pair():
    x, y = grid(0.0831, 3), grid(0.0927, 120)
    p, q = pairs(x)
    exact = float(x.scale) * (p.double() - q.double()).numpy()
    ours = integer_operator("sub", sub, torch.sub, (x, x), y, IDENTITY)(p.clone(), q.clone()).numpy()
    clear = numpy.abs(numpy.abs(exact / float(y.scale)) % 1 - 0.5) > 1e-4
    assert (ours == to_grid(exact, y, -1e9, 1e9))[clear].all()


def test_a_function_with_a_constant_for_each_channel():
    """Slopes as those of PReLU, on every integer of the grid in every channel."""
    x, y, slopes = grid(0.05, 100), grid(0.06, 90), torch.tensor([0.25, -0.5, 3.0])
    n = (torch.arange(256.0) - 100).expand(1, 3, 256).clone()
    exact = float(x.scale) * n.double().numpy()
    exact = numpy.where(exact > 0, exact, slopes.double().numpy()[:, None] * exact)
    ours = integer_operator("prelu", elementwise, lambda v: F.prelu(v, slopes), (x,), y, IDENTITY)(n).numpy()
    clear = numpy.abs(numpy.abs(exact / float(y.scale)) % 1 - 0.5) > 1e-4
    assert (ours == to_grid(exact, y, -1e9, 1e9))[clear].all()


def test_averages_are_rounded_once():
    x, y = grid(0.05, 100), grid(0.03, 90)
    op = integer_operator("mean", average, lambda v: v.mean((2, 3)), (x,), y, IDENTITY)
    q = torch.randint(0, 256, (4, 8, 7, 5))
    n = (q - 100).float()
    exact = float(x.scale) * n.double().numpy().mean((2, 3))
    ours, theirs = op(n).numpy(), to_grid(exact, y, -1e9, 1e9)
    clear = numpy.abs(numpy.abs(exact / float(y.scale)) % 1 - 0.5) > 1e-4
    assert (ours == theirs)[clear].all()


FUNCTIONS = {
    "hardswish": (F.hardswish, lambda v: v * numpy.clip(v + 3, 0, 6) / 6),
    "sigmoid": (torch.sigmoid, lambda v: 1 / (1 + numpy.exp(-v))),
    "silu": (F.silu, lambda v: v / (1 + numpy.exp(-v))),
    "tanh": (torch.tanh, numpy.tanh),
}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_a_table(name, bits):
    ours, theirs = FUNCTIONS[name]
    x, y = grid(12.0 / 2**bits, 2 ** (bits - 1), bits), grid(6.0 / 2**bits, 2 ** (bits - 3), bits)
    op = integer_operator(name, function, ours, (x,), y, IDENTITY)
    n = torch.arange(2.0**bits) - int(x.zero_point)
    exact = theirs(float(x.scale) * n.double().numpy())
    clear = numpy.abs(numpy.abs(exact / float(y.scale)) % 1 - 0.5) > 1e-4
    assert (op(n).numpy() == to_grid(exact, y, -1e9, 1e9))[clear].all()
    assert torch.equal(op.table(), op(n))


def test_an_average_of_more_pixels_than_fp32_can_sum():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    prepared, _ = prepared_with(net, 8, (3, 10, 10))
    images = 0.9 + 0.1 * torch.rand(1, 3, 600, 600)
    model = quant.convert(prepared, "reference")
    with torch.inference_mode():
        assert torch.equal(model(images), prepared(images))
        assert torch.equal(model(images.contiguous(memory_format=torch.channels_last)), prepared(images))


def test_an_average_may_be_float():
    x = grid(0.05, 100)
    op = integer_operator("mean", average, lambda v: v.mean((2, 3)), (x,), None, ClampedAffine(0.0, 6.0))
    assert (op.lo, op.hi) == (0, 0)
    n = torch.randint(-100, 156, (2, 3, 4, 4)).float()
    assert torch.equal(op(n), x.value(n.mean((2, 3))))
    with pytest.raises(ValueError, match="mean: an operator whose output is float has no output grid"):
        _ = op.output_grid


ROWS = [name for name, row in OPERATORS.items() if row.role in ("binary", "function")]
"""Registered means tested: each row's arithmetic against its function in float."""


def arguments_of(name: str, first: torch.Tensor) -> tuple[list[torch.Tensor], tuple]:
    """(tensors, others) that a row's function reads: a second tensor for two, one half for a scalar."""
    tensors = [first, first.flip(0)] if OPERATORS[name].role == "binary" else [first]
    return tensors, other_arguments(name)


@pytest.mark.parametrize("name", ROWS)
def test_every_rows_integers_are_within_half_a_step_of_its_function(name):
    row, x = OPERATORS[name], grid(0.05, 120)
    tensors, others = arguments_of(name, (torch.arange(256.0) - 120)[torch.randperm(256)])
    exact = row.function(*map(x.value, tensors), *others)
    low, high = min(float(exact.min()), 0.0), max(float(exact.max()), 0.1)
    y = grid((high - low) / 250, round(-low / (high - low) * 250))
    op = integer_operator(name, row.arithmetic, lambda *v: row.function(*v, *others), (x,) * len(tensors), y, IDENTITY)
    found = y.value(op(*(n.clone() for n in tensors)))
    assert (found - exact).abs().max() <= 0.51 * y.scale


@pytest.mark.parametrize("name", ROWS)
def test_every_row_says_whether_its_result_can_be_negative(name):
    """From inputs that are not negative: an operator of two tensors; from any: a function."""
    row, x = OPERATORS[name], 6 * torch.rand(4096)
    tensors, others = arguments_of(name, x if row.role == "binary" else x - 3)
    result = row.function(*tensors, *others)
    assert row.signed([False, False]) or result.min() >= 0


def test_averages_are_the_same_where_a_device_multiplies_by_an_inverse(monkeypatch):
    n = torch.randint(-128, 128, (4, 16, 7, 7)).float()
    pools = [lambda x: x.mean((2, 3)), lambda x: F.adaptive_avg_pool2d(x, 1), lambda x: F.avg_pool2d(x, 3, 2, 1)]
    divided = [exact_average(pool, n) for pool in pools]
    monkeypatch.setattr("quant.core.integer_operator.is_host", lambda x: False)
    monkeypatch.setattr(torch.Tensor, "mean", lambda x, dims: x.sum(dims) * (1 / 49))
    for pool, expected in zip(pools, divided, strict=True):
        assert torch.equal(exact_average(pool, n), expected)
    assert not torch.equal((n.sum((2, 3)) * (1 / 49)).float(), divided[0]), "in fp32 it is not"
