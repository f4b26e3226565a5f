"""Integer layers (core/integer_layer.py) on torch's int8 kernels.

All functions that build a layer return an Operator.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quant.core.integer_layer import IntegerLayer
from quant.engines.base import NativeTensor, Operator
from quant.engines.native.tensors import (
    clamping,
    native_from_centred,
    native_range,
    running_on,
    uint8_view,
    zero_point_of,
)

SUMS = "onednn sums"
"""Name of the kernel that computes sums in oneDNN's kernel, and scales and rounds them in separate passes."""
SUMS_SOURCE = """
def linear(x, zero_point: int, weight, ones, zeros, bias):
    return torch.ops.onednn.qlinear_pointwise(
        x, 1.0, zero_point, weight, ones, zeros, bias, 1.0, 0, torch.float32, "none", [], ""
    )

def convolution(
    x, zero_point: int, weight, ones, zeros, bias,
    stride: List[int], padding: List[int], dilation: List[int], groups: int
):
    return torch.ops.onednn.qconv2d_pointwise(
        x, 1.0, zero_point, weight, ones, zeros, bias,
        stride, padding, dilation, groups, 1.0, 0, torch.float32, "none", [], ""
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


def packed(layer: IntegerLayer, kernel: str) -> Operator:
    """The layer on the int8 kernel of an engine (fbgemm, qnnpack, onednn).

    Weight scales are the layer's multipliers.
    """
    geometry, m = layer.geometry, layer.multiplier()
    weight = torch._make_per_channel_quantized_tensor(
        layer.weight.to(torch.int8), m.double(), torch.zeros(len(m), dtype=torch.long), 0
    )
    arguments = () if geometry.linear else (geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
    functions = torch.ops.quantized
    prepack = functions.linear_prepack if geometry.linear else functions.conv2d_prepack

    def pack(_: torch.Size):
        with running_on(kernel):
            return prepack(weight, layer.bias * m, *arguments)

    zero_point, lo, hi = native_range(layer.output_grid, layer.lo, layer.hi)
    relu = lo == zero_point
    if geometry.linear:
        function = (functions.linear_relu if relu else functions.linear).default
    else:
        function = (functions.conv2d_relu if relu else functions.conv2d).new
    clamp = clamping(0 if relu else lo, hi)
    return Packed(pack, kernel == "onednn", lambda x, weights: clamp(function(x, weights, 1.0, zero_point)))


def in_float32(layer: IntegerLayer) -> Operator:
    """The exact fp32 arithmetic of core/integer_layer.py between conversions: always exact, as slow as float."""
    if layer.y is None:
        return lambda x: layer(x.dequantize())
    zero_point = zero_point_of(layer.y)
    return lambda x: native_from_centred(layer(x.dequantize()), zero_point)


def onednn_sums(layer: IntegerLayer) -> Operator:
    """The layer on oneDNN's int8 kernel, which returns its exact integer sums unscaled in fp32.

    Scaling and rounding follow, in the order of core/integer_layer.py, each as a pass over memory.
    """
    y = layer.y
    if y is None:
        unit = layer.along_channels(layer.accumulator_scale())
        return _sums(layer, lambda sums: sums.mul_(unit))
    multiplier, (zero_point, lo, hi) = layer.along_channels(layer.multiplier()), native_range(y, layer.lo, layer.hi)
    clamp = clamping(lo, hi)
    return _sums(
        layer, lambda sums: clamp(torch.quantize_per_tensor(sums.mul_(multiplier), 1.0, zero_point, torch.quint8))
    )


def _sums(layer: IntegerLayer, finish: Callable[[Tensor], Tensor]) -> Operator:
    """The operator native -> finish(integer sums plus bias, in fp32), with oneDNN's operators on plain uint8."""
    geometry, zero_point, functions = layer.geometry, zero_point_of(layer.x), torch.ops.onednn
    weight, ones, zeros = layer.weight.to(torch.int8), torch.ones(len(layer.weight)), torch.zeros(len(layer.weight))
    arguments, compiled = (ones, zeros.long(), layer.bias), _sum_functions()
    if geometry.linear:
        return Packed(
            lambda shape: functions.qlinear_prepack(weight, shape),
            True,
            lambda x, weights: finish(compiled.linear(uint8_view(x), zero_point, weights, *arguments)),
        )
    strides = [list(geometry.stride), list(geometry.padding), list(geometry.dilation), geometry.groups]
    return Packed(
        lambda shape: functions.qconv_prepack(weight, ones, 1.0, zero_point, *strides, shape),
        True,
        lambda x, weights: finish(compiled.convolution(uint8_view(x), zero_point, weights, *arguments, *strides)),
    )


@functools.cache
def _sum_functions() -> torch.jit.CompilationUnit:
    """oneDNN's operators as TorchScript functions.

    A trace cannot record the empty list that they take as an argument.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.CompilationUnit(SUMS_SOURCE)
