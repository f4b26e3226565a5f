"""Operators without weights (core/integer_operator.py) on plain uint8.

CANDIDATES lists the kernels that may run each arithmetic; engines/verify.py tries them on every integer, or pair of
integers. Functions are tables, and the rest is computed in fp32. torch.ops.onednn.qadd and qmul are not used: with
AVX-512, torch reads their inputs as signed integers (versions 2.14 and 2.15), and so computes something else.
"""

from collections.abc import Callable

import torch

from quant.core.grid import Grid
from quant.core.integer_operator import Arithmetic, IntegerOperator, add, average, exact_average, function, mul, sub
from quant.engines.base import NativeTensor, Operator
from quant.engines.onednn.tensors import centred, looking_up, native_range, rounding, shift, zero_point_of


def _sum(op: IntegerOperator) -> list[Operator]:
    """With the scales divided by the output's, in fewer passes and exact on most grids; in the simulation's order."""
    rounded, (a, b), y = _rounding(op), map(zero_point_of, op.x), op.output_grid.scale
    (s_a, s_b), sign = (grid.scale for grid in op.x), 1.0 if op.arithmetic is add else -1.0
    m_a, m_b, scale_a, scale_b, inverse = float(s_a / y), sign * float(s_b / y), float(s_a), sign * float(s_b), 1.0 / y

    def by_output(p: NativeTensor, q: NativeTensor) -> NativeTensor:
        return rounded(torch.add(centred(p, a).mul_(m_a), centred(q, b), alpha=m_b))

    def simulated(p: NativeTensor, q: NativeTensor) -> NativeTensor:
        return rounded((centred(p, a).mul_(scale_a) + centred(q, b).mul_(scale_b)).mul_(float(inverse)))

    return [by_output, simulated]


def _product(op: IntegerOperator) -> list[Operator]:
    inverse, rounded, (a, b) = float(1.0 / op.divisor()), _rounding(op), map(zero_point_of, op.x)
    return [lambda p, q: rounded((centred(p, a) * centred(q, b)).mul_(inverse))]


def _average(op: IntegerOperator) -> list[Operator]:
    inverse, rounded, zero_point = float(1.0 / op.divisor()), _rounding(op), zero_point_of(op.x[0])
    return [lambda x: rounded(exact_average(op.run, centred(x, zero_point)).mul_(inverse))]


def _function(op: IntegerOperator) -> list[Operator]:
    return [looking_up(native_table(op))]


def native_table(op: IntegerOperator) -> NativeTensor:
    """The table of a function in native integers, uint8 [256]."""
    return _of_all(op.x[0], op.table() + zero_point_of(op.output_grid))


def requantizing(x: Grid, y: Grid) -> Operator:
    """The operator native on grid x -> native on grid y."""
    every = torch.arange(x.q_min, x.q_max + 1.0) - int(x.zero_point)
    return looking_up(_of_all(x, y.centred(x.value(every)) + zero_point_of(y)))


def _of_all(x: Grid, entries: torch.Tensor) -> NativeTensor:
    """A table for all of uint8 of one for the integers of grid x: a grid of fewer than 8 bits starts above 0."""
    return torch.cat([entries[:1].expand(shift(x) + x.q_min), entries]).to(torch.uint8)


def _rounding(op: IntegerOperator) -> Operator:
    """The operator float -> native of the output's grid, of steps of that grid. It overwrites them."""
    return rounding(*native_range(op.output_grid, op.lo, op.hi))


CANDIDATES: dict[Arithmetic, Callable[[IntegerOperator], list[Operator]]] = {
    add: _sum,
    sub: _sum,
    mul: _product,
    average: _average,
    function: _function,
}
"""Arithmetic of an operator -> function that lists the kernels that may run it, the fastest first."""
