"""What operators need to be written in LiteRT's: clamps, padding, tables, integers in fp32; on all of its kernels."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from quant.engines.litert_builder import LitertBuilder, _as_same
from quant.engines.litert_graph import Loaded
from quant.engines.nhwc_builder import Known, OnGrid
from quant.engines.nhwc_moves import joined, max_pool2d, relu
from tests.conftest import needs_litert
from tests.quant.engines.test_litert_graph import KERNELS

pytestmark = needs_litert
EVERY = torch.arange(-128, 128, dtype=torch.int8)


def on_each(write: Callable[[LitertBuilder, OnGrid], Known], x: torch.Tensor, zero_point: int) -> list[torch.Tensor]:
    """What `write` makes of integers of scale 0.5, on each kind of kernels."""
    to = LitertBuilder()
    to.output(write(to, to.input_on_grid(x.shape, 0.5, zero_point)))
    return [Loaded(to.program(), kernels)(x)[0] for kernels in KERNELS]


@pytest.mark.parametrize(
    ("lo", "hi", "zero_point"),
    [(0, 255, 100), (0, 15, 0), (100, 200, 100), (3, 12, 7), (0, 15, 8), (0, 200, 128), (20, 100, 10), (20, 100, 120)],
)
def test_values_are_clamped_to_any_bounds(lo, hi, zero_point):
    values = torch.arange(-300.0, 300).reshape(1, 600) * 0.5
    expected = ((values / 0.5).round() + zero_point).clamp(lo, hi) - 128
    to = LitertBuilder()
    to.output(to.rounded(to.input(values.shape), 0.5, 0.5, zero_point, lo, hi))
    for kernels in KERNELS:
        assert torch.equal(Loaded(to.program(), kernels)(values)[0].float(), expected)


@pytest.mark.parametrize(
    ("lo", "hi", "zero_point"), [(0, 15, 0), (3, 12, 7), (100, 180, 100), (20, 100, 10), (0, 255, 99)]
)
def test_a_convolution_clamps_to_any_bounds(lo, hi, zero_point):
    x, ones = EVERY.reshape(1, 1, 16, 16), torch.ones(1, 1, 1, 1, dtype=torch.int8)
    expected = (EVERY.float() - 3).add(zero_point).clamp(lo, hi).sub(128).reshape(x.shape)

    def write(to, x):
        args = (x.value, x.shape, ones, torch.ones(1), torch.zeros(1), [1, 1, 0, 0, 1, 1, 1], (0.5, zero_point, lo, hi))
        return OnGrid(to.convolved(*args), 0.5, zero_point)

    for found in on_each(write, x, 131):
        assert torch.equal(found.float(), expected)


def test_ties_go_to_the_even_integer_on_xnnpack():
    to, values = LitertBuilder(), torch.arange(-100.0, 100).reshape(1, 200) / 2
    to.output(to.rounded(to.input(values.shape), 1.0, 1.0, 128, 0, 255))
    assert torch.equal(to.loaded()(values)[0].float(), values.round())


@pytest.mark.parametrize("scale", [1.0, 0.37, 5.0])
@pytest.mark.parametrize("shape", [(1, 8, 4, 8), (2, 128), (1, 2, 128)])
def test_another_scale_keeps_every_integer(shape, scale):
    for found in on_each(lambda to, x: replace(to.at_scale(x, scale), scale=scale), EVERY.reshape(shape), 77):
        assert torch.equal(found, EVERY.reshape(shape))


def test_integers_in_fp32_are_whole():
    to = LitertBuilder()
    to.output(to.integers(to.input_on_grid((1, 256), 0.0213, 77)))
    for kernels in KERNELS:
        assert torch.equal(Loaded(to.program(), kernels)(EVERY[None])[0], EVERY[None].float() + 51)


def test_relu_is_that_of_the_grid():
    for found in on_each(lambda to, x: relu(to, x), EVERY[None], 90):
        assert torch.equal(found, EVERY[None].clamp(min=90 - 128))


def test_a_table_is_read_at_each_integer():
    table = torch.randperm(256).to(torch.uint8)
    for found in on_each(lambda to, x: to.looked_up(x, table, 0.25, 5), EVERY[None], 90):
        assert torch.equal(found.int() + 128, table.int()[None])


def test_integers_with_different_zero_points_in_the_file_are_joined_as_they_are():
    for found in on_each(lambda to, x: joined(to, [x, relu(to, x), x], 1), EVERY[None], 90):
        assert torch.equal(found, torch.cat([EVERY, EVERY.clamp(min=-38), EVERY])[None])


@pytest.mark.parametrize("zero_point", [0, 100])
@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 2, 1), (3, 1, 1), (2, 2, 0), (5, 3, 2)])
def test_pads_of_a_max_pool_are_never_the_largest(zero_point, size, stride, padding):
    x = EVERY[torch.randperm(256)].reshape(1, 1, 16, 16).clamp(max=-50)
    expected = F.max_pool2d(x.float(), size, stride, padding).to(torch.int8)
    for found in on_each(lambda to, x: max_pool2d(to, x, [size], [stride], [padding]), x, zero_point):
        assert torch.equal(found, expected)


def test_padding_that_litert_does_by_itself_is_the_same_as_torchs():
    for n, reach, stride, padding in itertools.product(range(3, 12), (1, 3, 5), (1, 2, 3), (0, 1, 2)):
        windows = (n + 2 * padding - reach) // stride + 1
        whole = max((-(-n // stride) - 1) * stride + reach - n, 0)
        places = [i * stride - whole // 2 for i in range(-(-n // stride))]
        same = places == [i * stride - padding for i in range(windows)]
        assert _as_same(n, windows, reach, stride, padding, padding) == same


def test_whole_weights_in_fp32_take_16_bits():
    weight = torch.randint(-127, 128, (40, 50)).float()
    sizes = []
    for kept in (weight, weight + 0.001):
        to = LitertBuilder()
        to.output(to.linear(to.input((1, 50)), kept, None, torch.zeros(40)))
        x = torch.randint(-255, 256, (1, 50)).float()
        assert torch.allclose(to.loaded()(x)[0], x @ kept.t(), rtol=1e-4, atol=1e-2)
        sizes.append(len(to.program()))
    assert sizes[1] - sizes[0] > 3_500
