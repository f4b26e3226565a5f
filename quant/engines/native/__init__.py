"""PyTorch's integer engines: fbgemm, qnnpack, x86 and onednn. No other folder uses torch's quantized tensors.

PyTorch has announced the removal of quantized tensors (pytorch #184982), on which its engines are built, and warns at
their first use. This warning alone is silenced here, by its message. Training, simulation and checkpoints do not depend
on quantized tensors.

Known properties of the kernels, all measured, and how this folder deals with them:

- fbgemm's depthwise kernels add products in 16 bits and saturate on full-range data. If the number of channels is not a
  multiple of 8, they are exact but many times slower. Depthwise layers therefore run on oneDNN.
- Without VNNI, oneDNN's dense kernels saturate, too. So no kernel is trusted: engines/verify.py tries the candidates
  for a layer at full range on this CPU, and the first exact one is used. The last candidate is fp32 arithmetic.
- Kernels clamp at 0 and 255 only. A grid of fewer than 8 bits is stored shifted, with its q_max at 255, so that
  saturation is its upper clamp. A fused ReLU is the lower clamp if the zero point is q_min. Any other clamp is a
  separate operator on plain uint8.
- An engine is fixed when a weight is packed, but element-wise operators read the global engine when they run. See
  running().
- Kernels scale, add the bias and round in different orders. With a the integer sum, B the integer bias, b = B m the
  float bias and fl() rounding to fp32: qnnpack computes round((a + B) m) + z, as core/integer_layer.py does; fbgemm
  round((a + fl(b / m)) m) + z; oneDNN round(fl(fl(fl(a m) + b) + z)). If no multiplier is near a tie
  (core/integer_layer.py), all of them give the same integers. Otherwise fbgemm is off by one step for one sum in a
  million, and oneDNN for ten. There oneDNN only computes the exact sums, and the rest is done here. Logits are computed
  from exact sums on every engine but qnnpack.
- torch's x86 engine chooses between fbgemm and oneDNN. So does this one: oneDNN, or fbgemm if a multiplier is near
  a tie.
- fbgemm's kernels for convolutions in groups take up to fifteen times as long as oneDNN's (5x5, 7x7, three channels a
  group), and oneDNN's up to seven times as long as fbgemm's (one input channel a group). fbgemm and x86 have both as
  candidates there, and engines/verify.py takes the fastest.
"""

import contextlib
import functools
import warnings

import torch

from quant.core.grid import Grid
from quant.core.integer_layer import IntegerLayer
from quant.core.integer_operator import IntegerOperator, add
from quant.engines.base import FLOAT32_KERNEL, Engine, Operator
from quant.engines.native.layers import SUMS, in_float32, onednn_sums, packed
from quant.engines.native.operators import CANDIDATES, add_in_float, interleave, shuffled
from quant.engines.native.tensors import (
    native_from_centred,
    native_from_uint8,
    quantizing,
    running_on,
    shift,
    uint8_view,
    zero_point_of,
)
from quant.graph import operator_row


class NativeEngine(Engine):
    """One of torch's engines, by torch's name for it.

    Native tensors are quint8 tensors with scale 1 and the grid's zero point. The true scales are part of the layers'
    multipliers.
    """

    def __init__(self, name: str):
        self.name = name
        _silence_removal_warning()

    def missing(self) -> str:
        return "" if self.name in torch.backends.quantized.supported_engines else "is not in this build of torch"

    def running(self) -> contextlib.AbstractContextManager:
        return running_on(self.name)

    def quantize(self, grid: Grid) -> Operator:
        return quantizing(float(grid.scale), zero_point_of(grid), grid.q_min + shift(grid), 255)

    def dequantize(self, grid: Grid) -> Operator:
        scale = float(grid.scale)
        return lambda x: x.dequantize().mul_(scale)

    def to_native(self, grid: Grid) -> Operator:
        return lambda n: native_from_centred(n, zero_point_of(grid))

    def from_native(self, grid: Grid) -> Operator:
        return torch.dequantize

    def kernels(self, layer: IntegerLayer) -> tuple[str, ...]:
        onednn = "onednn" in torch.backends.quantized.supported_engines
        if self.name == "qnnpack" or not onednn:
            return (FLOAT32_KERNEL,) if layer.y is None else (self.name, FLOAT32_KERNEL)
        if layer.y is None:
            return (SUMS, FLOAT32_KERNEL)
        depthwise = layer.geometry.groups == len(layer.weight) > 1
        grouped, off_ties = 1 < layer.geometry.groups < len(layer.weight), layer.off_ties()
        if self.name == "fbgemm" and not depthwise:
            return ("fbgemm", *(["onednn"] if grouped and off_ties else []), SUMS, FLOAT32_KERNEL)
        if off_ties:
            return ("onednn", *(["fbgemm"] if grouped and self.name == "x86" else []), SUMS, FLOAT32_KERNEL)
        return ("fbgemm", SUMS, FLOAT32_KERNEL) if self.name == "x86" and not depthwise else (SUMS, FLOAT32_KERNEL)

    def layer(self, layer: IntegerLayer, kernel: str) -> Operator:
        if kernel == FLOAT32_KERNEL:
            return in_float32(layer)
        return onednn_sums(layer) if kernel == SUMS else packed(layer, kernel)

    def operators(self, op: IntegerOperator) -> list[tuple[str, Operator]]:
        rounds_differently = self.name == "qnnpack" and op.arithmetic is add  # and rejects some ratios of scales
        candidates = add_in_float if rounds_differently else CANDIDATES.get(op.arithmetic)
        candidates = None if op.y is None else candidates
        kernels = [] if candidates is None else candidates(op)
        return [(self.name, kernel) for kernel in kernels] + [(FLOAT32_KERNEL, self.in_float32(op))]

    def concatenate(self, grid: Grid, axis: int) -> Operator:
        zero_point = zero_point_of(grid)
        return lambda values: native_from_uint8(torch.cat([uint8_view(x) for x in values], axis), zero_point)

    def shuffle(self, grid: Grid, groups: int) -> Operator:
        zero_point = zero_point_of(grid)
        return lambda x: native_from_uint8(shuffled(uint8_view(x), groups), zero_point)

    def conversions_around(self, grid: Grid, row: operator_row.Operator) -> tuple[Operator, Operator] | None:
        return None if row.on_quantized else (self.from_native(grid), self.to_native(grid))

    def interleave(self, grid: Grid) -> Operator:
        return interleave(zero_point_of(grid), super().interleave(grid))


@functools.cache
def _silence_removal_warning() -> None:
    """Trigger torch's warning about the removal of quantized tensors, which it gives once per process, and hide it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor, torch.quantize_per_channel and other")
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)
