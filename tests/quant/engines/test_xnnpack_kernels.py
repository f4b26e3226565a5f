"""Of the ways to write an operator, the first that is exact for all integers is taken."""

import torch
import torch.nn.functional as F

import quant
from quant.core.activation import IDENTITY
from quant.core.integer_operator import add, function, integer_operator, mul
from quant.engines.verify import choose_operator
from quant.engines.xnnpack_kernels import IN_FLOAT, OUTSIDE, XNNPACK
from tests.conftest import needs_executorch
from tests.helpers import grid


def kernel(arithmetic, run, x, y) -> str:
    return choose_operator(quant.engine("executorch"), integer_operator(run.__name__, arithmetic, run, x, y, IDENTITY))[
        0
    ]


@needs_executorch
def test_a_sum_that_comes_to_ties_is_written_in_float():
    assert kernel(add, torch.add, (grid(0.5, 3), grid(0.25, 200)), grid(1.0, 100)) == IN_FLOAT
    assert kernel(add, torch.add, (grid(0.5, 3), grid(0.5, 200)), grid(0.5, 100)) == XNNPACK


@needs_executorch
def test_scales_that_xnnpack_does_not_add_are_written_in_float():
    assert kernel(add, torch.add, (grid(300.0, 0), grid(1.0, 0)), grid(1.0, 0)) == IN_FLOAT


@needs_executorch
def test_a_product_is_one_kernel():
    assert kernel(mul, torch.mul, (grid(0.0173, 3), grid(0.0291, 9)), grid(0.0317, 100)) == XNNPACK


@needs_executorch
def test_a_function_on_ties_is_still_exact_and_one_that_xnnpack_lacks_is_outside():
    x, y = grid(0.03125, 128), grid(0.02734375, 128)
    assert kernel(function, F.hardswish, (x,), y) == IN_FLOAT
    assert kernel(function, F.sigmoid, (x,), y) == IN_FLOAT
    assert kernel(function, torch.erf, (x,), y) == OUTSIDE


@needs_executorch
def test_values_that_round_otherwise_are_corrected():
    """A function that rounds ties otherwise on XNNPACK for two integers: its table is followed."""

    def shifted(v):
        if torch.compiler.is_exporting():
            return v * 0.5
        return torch.where((v == 5.0) | (v == -3.0), v * 0.5 + 0.01, v * 0.5)

    assert kernel(function, shifted, (grid(1.0, 128),), grid(1.0, 128)) == IN_FLOAT
