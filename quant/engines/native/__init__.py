"""PyTorch's integer engines: fbgemm, qnnpack, x86 and onednn. All contact with quantized tensors is in this folder.

PyTorch has announced to remove quantized tensors (pytorch #184982) and warns at their first use; that one warning is
silenced here, by its message. Training, simulation and checkpoints need nothing of it.

What is known of the kernels (each found by measurement), and what is done about it:
- fbgemm's depthwise kernels add products in 16 bits and saturate on full-range data; where the channel count is no
  multiple of 8 they are exact but many times slower. Depthwise layers therefore run on oneDNN.
- Without VNNI, oneDNN's dense kernels saturate as well. So no kernel is trusted: engines/verify.py tries a layer's
  candidates, at full range, on this CPU, and the first exact one is taken. Float32 arithmetic on the integers is the
  last.
- Engines clamp at 0 and 255 only. A grid of b < 8 bits is held shifted, its q_max at 255, so that saturation is its
  upper clamp; a fused ReLU is the lower one where the zero point is q_min; other bounds are clamped in plain uint8.
- An engine is fixed when a weight is packed; element-wise operators read the global engine when they run: see
  running().
- Kernels scale, add the bias and round in orders of their own: qnnpack round((a + B) m) + z, as the layer does; fbgemm
  round((a + fl(b / m)) m) + z with a float bias b; oneDNN round(fl(fl(fl(a m) + b) + z)). On multipliers that are off
  ties (core/integer_layer.py) all come out the same; elsewhere fbgemm is a step apart for a sum in a million, and oneDNN,
  for ten, is asked for its exact sums alone. Logits leave every engine but qnnpack as exact sums.
- torch's x86 engine is a choice between fbgemm and oneDNN. So is ours: oneDNN, and fbgemm where ties are near.
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
from quant.engines.native.operators import CANDIDATES, interleave, shuffled
from quant.engines.native.tensors import (
    native_from_centred,
    native_from_uint8,
    quantizing,
    running_on,
    shift,
    uint8_view,
    zero_point_of,
)


class NativeEngine(Engine):
    """An engine by torch's name for it.

    Values are held as quint8 tensors of scale 1: the zero point travels with them, scales live in the multipliers.
    """

    def __init__(self, name: str):
        self.name = name
        _spend_warning()

    def missing(self) -> str:
        return "" if self.name in torch.backends.quantized.supported_engines else "is not in this build of torch"

    def running(self) -> contextlib.AbstractContextManager:
        return running_on(self.name)

    def quantize(self, grid: Grid) -> Operator:
        return quantizing(float(grid.scale), zero_point_of(grid), grid.q_min + shift(grid), 255)

    def dequantize(self, grid: Grid) -> Operator:
        scale = float(grid.scale)
        return lambda held: held.dequantize().mul_(scale)

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
        if self.name == "fbgemm" and not depthwise:
            return ("fbgemm", SUMS, FLOAT32_KERNEL)
        if layer.off_ties():
            return ("onednn", SUMS, FLOAT32_KERNEL)
        return ("fbgemm", SUMS, FLOAT32_KERNEL) if self.name == "x86" and not depthwise else (SUMS, FLOAT32_KERNEL)

    def layer(self, layer: IntegerLayer, kernel: str) -> Operator:
        if kernel == FLOAT32_KERNEL:
            return in_float32(layer)
        return onednn_sums(layer) if kernel == SUMS else packed(layer, kernel)

    def operators(self, op: IntegerOperator) -> list[tuple[str, Operator]]:
        rounds_differently = self.name == "qnnpack" and op.arithmetic is add
        candidates = None if op.y is None or rounds_differently else CANDIDATES.get(op.arithmetic)
        ways = [] if candidates is None else candidates(op)
        return [(self.name, way) for way in ways] + [(FLOAT32_KERNEL, self.in_float32(op))]

    def concatenate(self, grid: Grid, axis: int) -> Operator:
        zero_point = zero_point_of(grid)
        return lambda values: native_from_uint8(torch.cat([uint8_view(held) for held in values], axis), zero_point)

    def shuffle(self, grid: Grid, groups: int) -> Operator:
        zero_point = zero_point_of(grid)
        return lambda held: native_from_uint8(shuffled(uint8_view(held), groups), zero_point)

    def interleave(self, grid: Grid) -> Operator:
        return interleave(zero_point_of(grid), super().interleave(grid))


@functools.cache
def _spend_warning() -> None:
    """torch warns once a process that quantized tensors will go; let it, unseen, and leave all other warnings alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor, torch.quantize_per_channel and other")
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)
