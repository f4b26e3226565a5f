"""Integer layers (core/integer_layer.py) on oneDNN's int8 kernels, which torch.ops.onednn runs on plain uint8.

All functions that build a layer return an Operator.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quant.core.integer_layer import IntegerLayer
from quant.engines.base import FLOAT32_KERNEL, NativeTensor, Operator
from quant.engines.onednn.tensors import centred, clamping, native, native_range, rounding, zero_point_of

FUSED = "onednn"
"""Name of the kernel that scales and rounds by itself."""
SUMS = "onednn sums"
"""Name of the kernel that computes sums in oneDNN's kernel, and scales and rounds them in separate passes."""
SOURCE = """
def linear(x, x_zero_point: int, weight, scale, zeros, bias, zero_point: int, dtype: int, activation: str):
    return torch.ops.onednn.qlinear_pointwise(
        x, 1.0, x_zero_point, weight, scale, zeros, bias, 1.0, zero_point, dtype, activation, [], ""
    )

def convolution(
    x, x_zero_point: int, weight, scale, zeros, bias, zero_point: int, dtype: int, activation: str,
    stride: List[int], padding: List[int], dilation: List[int], groups: int
):
    return torch.ops.onednn.qconv2d_pointwise(
        x, 1.0, x_zero_point, weight, scale, zeros, bias,
        stride, padding, dilation, groups, 1.0, zero_point, dtype, activation, [], ""
    )
"""
MAX_SHAPES = 8
"""For how many input shapes an operator keeps packed weights."""


class Packed:
    """An operator with packed weights.

    pack(shape of the input) -> packed weights. run(input, packed weights) -> output. by_shape: pack once for each input
    shape instead of once only. oneDNN lays packed weights out for the first input shape that it sees, and lays them out
    again at every call with another shape.
    """

    def __init__(self, pack: Callable, by_shape: bool, run: Callable[[NativeTensor, Any], NativeTensor]):
        self.pack, self.by_shape, self.run = pack, by_shape, run
        self.packs: dict[tuple[int, ...] | None, Any] = {}

    def __call__(self, x: NativeTensor) -> NativeTensor:
        key = tuple(map(int, x.shape)) if self.by_shape else None
        if key not in self.packs:
            if len(self.packs) == MAX_SHAPES:
                self.packs.pop(next(iter(self.packs)))
            self.packs[key] = self.pack(x.shape)
        return self.run(x, self.packs[key])


def fused(layer: IntegerLayer) -> Packed:
    """The layer on oneDNN's int8 kernel, which also scales, adds the bias and rounds."""
    m, (zero_point, lo, hi) = layer.multiplier(), native_range(layer.output_grid, layer.lo, layer.hi)
    relu = lo == zero_point
    given = (m, torch.zeros(len(m), dtype=torch.long), layer.bias * m)
    return _packed(layer, given, (zero_point, torch.uint8, "relu" if relu else "none"), clamping(0 if relu else lo, hi))


def sums(layer: IntegerLayer) -> Packed:
    """The layer on oneDNN's int8 kernel, which returns its exact integer sums unscaled in fp32.

    Scaling and rounding follow, in the order of core/integer_layer.py, each as a pass over memory.
    """
    ones = torch.ones(len(layer.weight))
    given, into = (ones, torch.zeros_like(ones).long(), layer.bias), (0, torch.float32, "none")
    if layer.y is None:
        unit = layer.along_channels(layer.accumulator_scale())
        return _packed(layer, given, into, lambda exact: exact.mul_(unit))
    multiplier = layer.along_channels(layer.multiplier())
    rounded = rounding(*native_range(layer.y, layer.lo, layer.hi))
    return _packed(layer, given, into, lambda exact: rounded(exact.mul_(multiplier)))


def in_float32(layer: IntegerLayer) -> Operator:
    """The exact fp32 arithmetic of core/integer_layer.py between conversions: always exact, as slow as float."""
    x_zero_point = zero_point_of(layer.x)
    if layer.y is None:
        return lambda x: layer(centred(x, x_zero_point))
    zero_point = zero_point_of(layer.y)
    return lambda x: native(layer(centred(x, x_zero_point)), zero_point)


def _packed(layer: IntegerLayer, given: tuple[Tensor, ...], into: tuple, finish: Callable[[Tensor], Tensor]) -> Packed:
    """finish(the kernel's output). given: scales, zero points and bias of each channel. into: the output's zero point,
    type and activation."""
    geometry, zero_point, functions = layer.geometry, zero_point_of(layer.x), torch.ops.onednn
    weight, ones, compiled = layer.weight.to(torch.int8), torch.ones(len(layer.weight)), _functions()
    if geometry.linear:
        return Packed(
            lambda shape: functions.qlinear_prepack(weight, shape),
            True,
            lambda x, weights: finish(compiled.linear(x, zero_point, weights, *given, *into)),
        )
    strides = [list(geometry.stride), list(geometry.padding), list(geometry.dilation), geometry.groups]
    return Packed(
        lambda shape: functions.qconv_prepack(weight, ones, 1.0, zero_point, *strides, shape),
        True,
        lambda x, weights: finish(compiled.convolution(x, zero_point, weights, *given, *into, *strides)),
    )


@functools.cache
def _functions() -> torch.jit.CompilationUnit:
    """oneDNN's operators as TorchScript functions.

    A trace cannot record the empty list that they take as an argument.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.CompilationUnit(SOURCE)


KERNELS: dict[str, Callable[[IntegerLayer], Operator]] = {FUSED: fused, SUMS: sums, FLOAT32_KERNEL: in_float32}
"""Name of a kernel -> function that builds a layer on it."""
