"""Python's operators that overwrite a tensor: later readers read the new value."""

import operator

import pytest
import torch
from torch import nn

from quant.graph.tracer import PYTHON_IN_PLACE
from tests.helpers import prepared_like_float

INTEGERS = torch.arange(4).view(4, 1, 1)
PYTHON_OPERATORS = {
    "iadd": 2.0, "isub": 2.0, "imul": 2.0, "itruediv": 2.0, "ifloordiv": 2.0, "imod": 2.0, "ipow": 2,
    "iand": INTEGERS, "ior": INTEGERS, "ixor": INTEGERS, "ilshift": INTEGERS, "irshift": INTEGERS,
}  # fmt: skip


class Overwrites(nn.Module):
    """One of Python's in-place operators on a value that is read before and after by the name `first`."""

    def __init__(self, name: str):
        super().__init__()
        self.conv, self.head, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)
        self.overwrite, self.other = getattr(operator, name), PYTHON_OPERATORS[name]

    def forward(self, x):
        first = self.conv(x)
        before = first * 3
        first = (4 * first).int() if isinstance(self.other, torch.Tensor) else first
        second = first
        second = self.overwrite(second, self.other)
        return self.fc((self.head(first.float()) + second.float() + before).mean((2, 3)))


@pytest.mark.parametrize("name", PYTHON_OPERATORS)
def test_a_tensor_that_a_python_operator_overwrites_has_the_new_value_for_later_readers(name):
    model = Overwrites(name)
    prepared = prepared_like_float(model, torch.randn(2, 3, 8, 8))
    assert not any(node.target is model.overwrite for node in prepared.graph.nodes), "it works out of place"


def test_all_python_operators_that_overwrite_a_tensor_are_known():
    for name, other in PYTHON_OPERATORS.items():
        x = torch.ones(4, 4, 4, dtype=torch.int if isinstance(other, torch.Tensor) else torch.float)
        assert getattr(operator, name)(x, other) is x
        assert PYTHON_IN_PLACE[getattr(operator, name)](x, other) is not x
    assert {function.__name__ for function in PYTHON_IN_PLACE} == set(PYTHON_OPERATORS)


class Follows(nn.Module):
    """A function of a convolution's output [N, 4, H, W]."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 1), function

    def forward(self, x):
        return self.function(self.conv(x))


def halved_size(x):
    half = size = x.shape[2]
    half //= 2
    return x[:, :, :half] * size


def product(x):
    y = z = x.flatten(2)
    z @= x.flatten(2).transpose(1, 2)
    return y.sum(2, keepdim=True) + z


def masked(x):
    positive, small = x > 0, x < 0.1
    both = positive & small
    return x * positive + both


@pytest.mark.parametrize("function", [halved_size, product, masked])
def test_operators_that_overwrite_nothing_else_leave_later_readers_alone(function):
    prepared_like_float(Follows(function), torch.randn(2, 3, 8, 8))
