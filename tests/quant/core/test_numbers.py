"""Numbers of kernels: the same values as Python floats, as tensors, and of both kinds together."""

import itertools
import math

import pytest
import torch

from quant.core import numbers
from quant.core.numbers import clamp_, constant, larger, plain, smaller

KINDS = {"float": float, "tensor": torch.tensor}


@pytest.mark.parametrize(("first", "second"), [*itertools.product(KINDS, KINDS)])
@pytest.mark.parametrize(("a", "b"), [(1.0, 2.0), (2.0, 1.0), (-math.inf, 0.5), (0.5, math.inf)])
def test_the_larger_and_the_smaller(a, b, first, second):
    pair = KINDS[first](a), KINDS[second](b)
    assert float(larger(*pair)) == max(a, b)
    assert float(smaller(*pair)) == min(a, b)
    assert isinstance(larger(*pair), float) == isinstance(smaller(*pair), float) == (first == second == "float")


@pytest.mark.parametrize(("first", "second"), [*itertools.product(KINDS, KINDS)])
def test_clamping_in_place(first, second):
    x = torch.tensor([-3.0, 0.25, 9.0])
    assert clamp_(x, KINDS[first](-1.0), KINDS[second](2.0)) is x
    assert x.tolist() == [-1.0, 0.25, 2.0]


def test_scalars_of_the_host_become_python_floats(monkeypatch):
    rows, scalar = torch.ones(3), torch.tensor(2.5)
    assert type(plain(scalar)) is float
    assert plain(scalar) == 2.5
    assert plain(1.5) == 1.5
    assert plain(rows) is rows
    monkeypatch.setattr(numbers, "is_host", lambda x: False)
    assert plain(scalar) is scalar


def test_a_constant_is_made_once_for_each_device():
    host, meta = torch.device("cpu"), torch.device("meta")
    assert constant(1.5, host) is constant(1.5, host)
    assert constant(1.5, meta).device.type == "meta"
    with torch.inference_mode():
        assert not constant(-7.25, host).is_inference()
