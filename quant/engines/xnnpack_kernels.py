"""The ways to write an operator in XNNPACK's, the fastest first."""

import functools

import torch
from torch import Tensor

from quant.core.integer_operator import IntegerOperator, add, average, function, mul, sub
from quant.engines.base import Operator
from quant.engines.onnx_qdq import Rounded, step_off_ties, written_average, written_in_float, written_product
from quant.engines.program_kernels import COMPOSED, Kernel, Table, Tried, Ways, fused_product, fused_sum, then
from quant.engines.qdq_operators import on_grid
from quant.engines.xnnpack_builder import XnnpackBuilder

XNNPACK, IN_FLOAT, OUTSIDE = "xnnpack", "xnnpack in float", "not in xnnpack"
"""Names of kernels: one of XNNPACK's for integers; some of its in fp32, which compute the same integers; none."""
LEAST_RATIO, RATIO = 2.0**-10, 2.0**8
"""XNNPACK adds integers whose scales, over that of the sum, are from the first up to the second."""
qdq = torch.ops.qdq


def _sum(op: IntegerOperator, sign: int) -> Ways:
    scale = float(op.output_grid.scale)
    takes = all(LEAST_RATIO <= float(grid.scale) / scale < RATIO for grid in op.x)
    return [(XNNPACK, fused_sum(op, sign))] * takes + [(IN_FLOAT, written_in_float(op))]


def _products(op: IntegerOperator) -> Ways:
    return [(XNNPACK, fused_product(op)), (IN_FLOAT, written_product(op))]


def _function(op: IntegerOperator) -> Ways:
    """In float, on a step that is far from all ties if there is one; what is still off is corrected."""
    step, rounded = step_off_ties(op) or float(op.output_grid.scale), on_grid(op.output_grid, op.lo, op.hi)
    x, y = on_grid(op.x[0], 0, 0)[:2], rounded[:2]
    write, tried = Rounded(step, *rounded), []
    for run in (op.run, *([COMPOSED[op.name]] if op.name in COMPOSED else [])):
        kernel = Tried(then(run, write), [x], y, XnnpackBuilder)
        off = _off(op, kernel)
        if not off:
            return [(IN_FLOAT, kernel)]
        tried.append((len(off), run, off))
    _, run, off = min(tried, key=lambda one: one[0])
    return [(IN_FLOAT, then(functools.partial(_corrected, run, off, step / 2, x), write))]


def _corrected(run: Operator, off: dict[int, int], half: float, x: tuple[float, int], value: Tensor) -> Tensor:
    """run(value), moved by half a step for each step that its rounding is off for an integer."""
    n, found = qdq.integers(value, *x), run(value)
    for place, steps in off.items():
        found = found + (1 - (n - place).abs()).clamp(min=0) * (steps * half)
    return found


def _off(op: IntegerOperator, kernel: Kernel) -> dict[int, int]:
    """Centred integers for which a kernel of a function returns another integer than its table: how many steps off."""
    x = op.x[0]
    every = torch.arange(x.q_min, x.q_max + 1.0) - int(x.zero_point)
    off = op.table() - op.output_grid.centred(kernel(x.value(every).reshape(1, 1, -1, 1)).flatten())
    off = off.nan_to_num(1.0)  # where XNNPACK refuses the function
    return {int(every[i]): int(off[i]) for i in off.nonzero()[:, 0].tolist()}


WAYS: Table = {
    add: functools.partial(_sum, sign=1),
    sub: functools.partial(_sum, sign=-1),
    mul: _products,
    average: lambda op: [(IN_FLOAT, written_average(op))],
    function: _function,
}
