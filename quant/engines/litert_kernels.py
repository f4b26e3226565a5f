"""The ways to write an operator in LiteRT's, the fastest first."""

import functools

import torch

from quant.core.integer_operator import IntegerOperator, add, average, function, mul, sub
from quant.engines.base import Operator
from quant.engines.onnx_qdq import Rounded, step_off_ties, written_average, written_in_float, written_product
from quant.engines.program_kernels import COMPOSED, Table, Ways, fused_product, fused_sum, then
from quant.engines.qdq_operators import on_grid

LITERT, IN_FLOAT, TABLE, OUTSIDE = "litert", "litert in float", "litert table", "not in litert"
"""Names of kernels: one of LiteRT's for integers; some of its in fp32, which compute the same integers; a table of 256
integers; none."""
qdq = torch.ops.qdq


def _sum(op: IntegerOperator, sign: int) -> Ways:
    return [(LITERT, fused_sum(op, sign)), (IN_FLOAT, written_in_float(op))]


def _product(op: IntegerOperator) -> Ways:
    return [(LITERT, fused_product(op)), (IN_FLOAT, written_product(op))]


def _function(op: IntegerOperator) -> Ways:
    """In float, on the grid's step or on one that is far from all ties; else a table."""
    on_output = on_grid(op.output_grid, op.lo, op.hi)
    steps = [on_output[0], *([step] if (step := step_off_ties(op)) not in (None, on_output[0]) else [])]
    runs = [op.run, *([COMPOSED[op.name]] if op.name in COMPOSED else [])]
    in_float = [then(run, Rounded(step, *on_output)) for step in steps for run in runs]
    return [*((IN_FLOAT, way) for way in in_float), (TABLE, _table(op))]


def _table(op: IntegerOperator) -> Operator:
    scale, zero_point, _, _ = on_grid(op.output_grid, op.lo, op.hi)
    entries, x = (op.table() + zero_point).to(torch.uint8), on_grid(op.x[0], 0, 0)[:2]
    return lambda values: qdq.look_up(values, entries, *x, scale, zero_point)


WAYS: Table = {
    add: functools.partial(_sum, sign=1),
    sub: functools.partial(_sum, sign=-1),
    mul: _product,
    average: lambda op: [(IN_FLOAT, written_average(op))],
    function: _function,
}
