"""Integer layers (core/integer_layer.py) on torch's int8 kernels for quint8 tensors.

All functions that build a layer return an Operator.
"""

import torch

from quant.core.integer_layer import IntegerLayer
from quant.engines.base import Operator
from quant.engines.native.tensors import clamping, native_from_centred, native_from_uint8, running_on, uint8_view
from quant.engines.onednn.layers import FUSED, Packed
from quant.engines.onednn.tensors import native_range, zero_point_of


def packed(layer: IntegerLayer, kernel: str) -> Packed:
    """The layer on the int8 kernel of one of torch's engines (fbgemm, qnnpack, onednn).

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
    return Packed(pack, kernel == FUSED, lambda x, weights: clamp(function(x, weights, 1.0, zero_point)))


def in_float32(layer: IntegerLayer) -> Operator:
    """The exact fp32 arithmetic of core/integer_layer.py between conversions: always exact, as slow as float."""
    if layer.y is None:
        return lambda x: layer(x.dequantize())
    zero_point = zero_point_of(layer.y)
    return lambda x: native_from_centred(layer(x.dequantize()), zero_point)


def on_quint8(layer: IntegerLayer, operator: Packed) -> Packed:
    """An operator of engines/onednn/layers.py, with the same memory as quint8 before and after it."""
    if layer.y is None:
        return Packed(operator.pack, operator.by_shape, lambda x, weights: operator.run(uint8_view(x), weights))
    y = zero_point_of(layer.y)
    return Packed(
        operator.pack,
        operator.by_shape,
        lambda x, weights: native_from_uint8(operator.run(uint8_view(x), weights), y),
    )
