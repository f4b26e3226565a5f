"""Operators without weights (core/integer_operator.py) on torch's quantized tensors.

CANDIDATES lists the kernels that may run each. None is trusted: each is tried on every integer, or pair of integers
(engines/verify.py). Products, averages and most functions go through fp32, which holds their integers exactly:
two changes of type cost less than torch's own quantized kernels.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from quant.core.integer_operator import Arithmetic, IntegerOperator, add, average, exact_average, function, mul
from quant.engines.base import NativeTensor, Operator
from quant.engines.native.tensors import (
    clamping,
    in_memory_order,
    native_from_uint8,
    native_range,
    quantizing,
    rescaled,
    shift,
    uint8_view,
)


def _add(op: IntegerOperator) -> list[Operator]:
    """torch's addition, on the scales as they are and divided by the output's: on most grids one of them is exact.

    It takes no tensors of different shapes, and qnnpack's own rounds otherwise and refuses some ratios of scales.
    """
    scales = [grid.scale for grid in (*op.x, op.y)]
    return [_add_scaled(op, *(float(s / op.y.scale) for s in scales)), _add_scaled(op, *map(float, scales))]


def _add_scaled(op: IntegerOperator, a: float, b: float, y: float) -> Operator:
    zero_point, lo, hi = native_range(op.y, op.lo, op.hi)
    relu = lo == zero_point
    function = (torch.ops.quantized.add_relu if relu else torch.ops.quantized.add).default
    clamp = clamping(0 if relu else lo, hi)

    def add(p: NativeTensor, q: NativeTensor) -> NativeTensor:
        if p.shape != q.shape:
            p, q = torch.broadcast_tensors(p, q)
        total = function(rescaled(p, a), rescaled(q, b), y, zero_point)
        return clamp(total if y == 1.0 else rescaled(total, 1.0))

    return add


def _stepped(op: IntegerOperator) -> Operator:
    """float multiples of op.divisor() -> held"""
    return quantizing(float(op.divisor()), *native_range(op.y, op.lo, op.hi))


def _mul(op: IntegerOperator) -> list[Operator]:
    """Products of integers in fp32, which hold them exactly. torch's own quantized product is slower."""
    stepped = _stepped(op)
    return [lambda p, q: stepped(p.dequantize() * q.dequantize())]


def _average(op: IntegerOperator) -> list[Operator]:
    stepped = _stepped(op)
    return [lambda held: stepped(exact_average(op.run, held.dequantize()))]


def _function(op: IntegerOperator) -> list[Operator]:
    """torch's quantized kernel where there is one; the function in float; its table."""
    x, (zero_point, lo, hi) = op.x[0], native_range(op.y, op.lo, op.hi)
    scale, y, clamp, run = float(x.scale), float(op.y.scale), clamping(lo, hi), op.run
    table = (op.table() + zero_point).to(torch.uint8)
    table = torch.cat([table[:1].expand(shift(x) + x.q_min), table])  # below 8 bits, what is held starts above 0

    quantize = quantizing(y, zero_point, lo, hi)

    def in_float(held: NativeTensor) -> NativeTensor:
        return quantize(run(held.dequantize().mul_(scale)))

    def look_up(held: NativeTensor) -> NativeTensor:
        index = in_memory_order(uint8_view(held))
        found = table.index_select(0, index.flatten().int()).view(index.shape)
        return native_from_uint8(found.permute(0, 3, 1, 2) if held.ndim == 4 else found, zero_point)

    def kernel(held: NativeTensor) -> NativeTensor:
        return clamp(rescaled(torch.ops.quantized.hardswish(rescaled(held, scale), y, zero_point), 1.0))

    return [*([kernel] if op.name == "hardswish" else []), in_float, look_up]


CANDIDATES: dict[Arithmetic, Callable[[IntegerOperator], list[Operator]]] = {
    add: _add,
    mul: _mul,
    average: _average,
    function: _function,
}
"""An operator's arithmetic -> (operator) -> kernels that may run it, the fastest first; others run in float32."""


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Bytes [N, C, H, W], their channels as nn.ChannelShuffle orders them."""
    n, c, h, w = x.shape
    pixels = x.permute(0, 2, 3, 1).unflatten(3, (groups, c // groups))
    return pixels.transpose(3, 4).reshape(n, h, w, c).permute(0, 3, 1, 2)


def interleave(zero_point: int, otherwise: Operator) -> Operator:
    """(held, held) -> held, their channels by turns: on a little-endian machine, the bytes of p + 256 q in 16 bits.

    Four times faster than to copy byte after byte. `otherwise` takes what is not of one shape.
    """

    def run(p: NativeTensor, q: NativeTensor) -> NativeTensor:
        if p.shape != q.shape:
            return otherwise(p, q)
        first, second = uint8_view(p).permute(0, 2, 3, 1), uint8_view(q).permute(0, 2, 3, 1)
        both = first.to(torch.int16, memory_format=torch.contiguous_format).add_(second, alpha=256)
        n, h, w, c = both.shape
        new = torch._empty_affine_quantized([0], scale=1.0, zero_point=zero_point, dtype=torch.quint8)
        return new.set_(both, 0, (n, 2 * c, h, w), (h * w * 2 * c, 1, w * 2 * c, 2 * c))

    return run if sys.byteorder == "little" else otherwise
