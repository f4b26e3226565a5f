"""Modules that take the place of other forms of layers compute the same, on the same tensors."""

import pytest
import torch
from torch import nn

from quant.graph.layer_modules import (
    affine_norm,
    by_channel,
    extend_norm,
    on_same_parameters,
    padding_of_sides,
    plain_convolution,
    row_convolution,
    with_tensors_of,
)


@pytest.mark.parametrize(
    ("options", "sides"),
    [
        ({"kernel_size": 3, "padding": (1, 2)}, [(1, 1), (2, 2)]),
        ({"kernel_size": 3, "padding": "valid"}, [(0, 0), (0, 0)]),
        ({"kernel_size": (3, 4), "padding": "same"}, [(1, 1), (1, 2)]),
        ({"kernel_size": (2, 3), "padding": "same", "dilation": (3, 2)}, [(1, 2), (2, 2)]),
    ],
)
def test_the_padding_of_each_side(options, sides):
    assert padding_of_sides(nn.Conv2d(1, 1, **options)) == sides


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((), True), ((1, 1), True), ((3, 1, 1), True), ((1, 3, 1, 1), True), ((3,), False), ((1, 1, 3, 3), False)],
)
def test_which_constants_are_one_for_each_channel(shape, expected):
    found = by_channel(torch.ones(shape), nn.Conv2d(2, 3, 1))
    assert (found is not None) is expected
    assert found is None or found.shape == (3,)
    assert by_channel(torch.ones(shape), nn.ReLU()) is None


def test_a_norm_does_what_the_constants_do():
    norm, x = affine_norm(3, torch.float32), torch.randn(2, 3, 4, 4)
    assert torch.equal(norm(x), x)
    expected, values = x, torch.tensor([0.5, -2.0, 3.0])
    along = values.view(-1, 1, 1)
    for operation, result in {
        "mul": lambda y: y * along,
        "add": lambda y: y + along,
        "truediv": lambda y: y / along,
        "sub": lambda y: y - along,
        "div": lambda y: y / along,
    }.items():
        extend_norm(norm, operation, values)
        expected = result(expected)
        assert torch.allclose(norm(x), expected, atol=1e-5), operation


def test_the_tensors_are_the_same_objects():
    layer = nn.Conv2d(4, 6, 3, 2, padding=1, groups=2)
    line = nn.Conv1d(4, 6, 3, 2, padding=1)
    for given, made in (
        (layer, on_same_parameters(layer)),
        (layer, plain_convolution(layer)),
        (line, row_convolution(line)),
    ):
        assert made.weight is given.weight
        assert made.bias is given.bias
    norm = nn.SyncBatchNorm(4, eps=1e-3)
    norm.act = nn.ReLU()
    plain = with_tensors_of(norm, nn.BatchNorm2d)
    assert type(plain) is nn.BatchNorm2d
    assert plain.running_mean is norm.running_mean
    assert plain.eps == 1e-3
    assert plain.act is norm.act
