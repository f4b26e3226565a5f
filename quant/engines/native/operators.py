"""Operators without weights (core/integer_operator.py) on torch's quantized tensors.

CANDIDATES lists the kernels that may run each operator. None is trusted: engines/verify.py tries them on every integer,
or pair of integers. Products, averages and most functions are computed in fp32, which represents their integers
exactly: two type conversions cost less than torch's own quantized kernels.
"""

from collections.abc import Callable

import torch

from quant.core.integer_operator import Arithmetic, IntegerOperator, add, average, exact_average, function, mul, sub
from quant.engines.base import NativeTensor, Operator
from quant.engines.native.tensors import clamping, native_from_uint8, quantizing, rescaled, uint8_view
from quant.engines.onednn.operators import native_table
from quant.engines.onednn.tensors import looking_up, native_range


def _add(op: IntegerOperator) -> list[Operator]:
    """torch's quantized addition, with the scales divided by the output's scale, and with the scales as they are; the
    addition in float, in the simulation's order.

    On most grids one of the first two is exact. torch's kernel does not broadcast, so the inputs are broadcast first.
    """
    scales = [grid.scale for grid in (*op.x, op.output_grid)]
    by_output = [float(scale / op.output_grid.scale) for scale in scales]
    return [_add_scaled(op, *by_output), _add_scaled(op, *map(float, scales)), *add_in_float(op)]


def add_in_float(op: IntegerOperator) -> list[Operator]:
    return [_in_float(op, torch.add)]


def _in_float(op: IntegerOperator, run: Operator) -> Operator:
    """A sum or difference in float, in the simulation's order, quantized by one kernel: half the passes of the
    fallback."""
    (a, b), quantize = (float(grid.scale) for grid in op.x), _quantize(op, float(op.output_grid.scale))
    return lambda p, q: quantize(run(p.dequantize().mul_(a), q.dequantize().mul_(b)))


def _sub(op: IntegerOperator) -> list[Operator]:
    return [_in_float(op, torch.sub)]


def _add_scaled(op: IntegerOperator, a: float, b: float, y: float) -> Operator:
    zero_point, lo, hi = native_range(op.output_grid, op.lo, op.hi)
    relu = lo == zero_point
    function = (torch.ops.quantized.add_relu if relu else torch.ops.quantized.add).default
    clamp = clamping(0 if relu else lo, hi)

    def add(p: NativeTensor, q: NativeTensor) -> NativeTensor:
        if p.shape != q.shape:
            p, q = torch.broadcast_tensors(p, q)
        total = function(rescaled(p, a), rescaled(q, b), y, zero_point)
        return clamp(total if y == 1.0 else rescaled(total, 1.0))

    return add


def _quantize(op: IntegerOperator, step: float) -> Operator:
    """The operator float -> native of the output's grid, with this step between integers."""
    return quantizing(step, *native_range(op.output_grid, op.lo, op.hi))


def _quantize_by_divisor(op: IntegerOperator) -> Operator:
    """The operator float -> native, with op.divisor() as the step between integers."""
    return _quantize(op, float(op.divisor()))


def _mul(op: IntegerOperator) -> list[Operator]:
    """Products of integers in fp32, which is exact. torch's own quantized product is slower."""
    quantize = _quantize_by_divisor(op)
    return [lambda p, q: quantize(p.dequantize() * q.dequantize())]


def _average(op: IntegerOperator) -> list[Operator]:
    quantize = _quantize_by_divisor(op)
    return [lambda x: quantize(exact_average(op.run, x.dequantize()))]


def _function(op: IntegerOperator) -> list[Operator]:
    """torch's quantized kernel if it has one; the function in float; a lookup table."""
    scale, y = float(op.x[0].scale), float(op.output_grid.scale)
    zero_point, lo, hi = native_range(op.output_grid, op.lo, op.hi)
    clamp, run, quantize = clamping(lo, hi), op.run, quantizing(y, zero_point, lo, hi)
    look_up = looking_up(native_table(op))

    def in_float(x: NativeTensor) -> NativeTensor:
        return quantize(run(x.dequantize().mul_(scale)))

    def by_table(x: NativeTensor) -> NativeTensor:
        return native_from_uint8(look_up(uint8_view(x)), zero_point)

    def kernel(x: NativeTensor) -> NativeTensor:
        return clamp(rescaled(torch.ops.quantized.hardswish(rescaled(x, scale), y, zero_point), 1.0))

    return [*([kernel] if op.name == "hardswish" else []), in_float, by_table]


CANDIDATES: dict[Arithmetic, Callable[[IntegerOperator], list[Operator]]] = {
    add: _add,
    sub: _sub,
    mul: _mul,
    average: _average,
    function: _function,
}
"""Arithmetic of an operator -> function that lists the kernels that may run it, the fastest first."""
