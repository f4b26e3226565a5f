"""PyTorch's engines fbgemm, qnnpack and x86. No other folder uses torch's quantized tensors.

PyTorch has announced the removal of quantized tensors (pytorch #184982), on which these engines are built, and warns at
their first use. This warning alone is silenced here, by its message. Everything else does not depend on them: the
engine onednn (engines/onednn) computes on plain uint8, and takes the place of x86 in a torch without quantized tensors.

What engines/onednn says of kernels holds here, too. Besides, all measured:

- fbgemm's depthwise kernels add products in 16 bits and saturate on full-range data. If the number of channels is not a
  multiple of 8, they are exact but many times slower. Depthwise layers therefore run on oneDNN.
- An engine is fixed when a weight is packed, but element-wise operators read the global engine when they run. See
  running().
- Kernels scale, add the bias and round in different orders. In the symbols of engines/onednn: qnnpack computes
  round((a + B) m) + z, as core/integer_layer.py does; fbgemm round((a + fl(b / m)) m) + z. If no multiplier is near a
  tie, both give the same integers. Otherwise fbgemm is off by one step for one sum in a million. Logits are computed
  from oneDNN's exact sums on fbgemm and x86.
- torch's x86 engine chooses between fbgemm and oneDNN. So does this one: oneDNN, or fbgemm if a multiplier is near a
  tie. oneDNN's kernels for quantized tensors keep a prepared primitive for each layer, which saves some 13 microseconds
  a call of what those of engines/onednn take.
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
from quant.engines.native.layers import in_float32, on_quint8, packed
from quant.engines.native.operators import CANDIDATES, add_in_float
from quant.engines.native.tensors import native_from_centred, native_from_uint8, quantizing, running_on, uint8_view
from quant.engines.onednn.layers import FUSED, SUMS, sums
from quant.engines.onednn.tensors import interleaved, shift, shuffled, zero_point_of
from quant.graph import operator_row


class NativeEngine(Engine):
    """fbgemm, qnnpack or x86.

    Native tensors are quint8 tensors with scale 1 and the grid's zero point. The true scales are part of the layers'
    multipliers.
    """

    def __init__(self, name: str):
        self.name = name

    def missing(self) -> str:
        if not has_quantized_tensors():
            return "needs quantized tensors, which this version of torch no longer has"
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
        if self.name == "qnnpack" or not torch.backends.mkldnn.is_available():
            return (FLOAT32_KERNEL,) if layer.y is None else (self.name, FLOAT32_KERNEL)
        if layer.y is None:
            return (SUMS, FLOAT32_KERNEL)
        groups, off_ties, saturates = (
            layer.geometry.groups,
            layer.off_ties(),
            layer.geometry.groups == len(layer.weight) > 1,
        )
        by_fbgemm = () if saturates else ("fbgemm",)
        if self.name == "x86" and off_ties:
            return (FUSED, *(by_fbgemm if groups > 1 else ()), SUMS, FLOAT32_KERNEL)
        by_onednn = (FUSED,) if groups > 1 and off_ties and self.name == "fbgemm" else ()
        return (*by_fbgemm, *by_onednn, SUMS, FLOAT32_KERNEL)

    def layer(self, layer: IntegerLayer, kernel: str) -> Operator:
        if kernel == FLOAT32_KERNEL:
            return in_float32(layer)
        if kernel == SUMS:
            return on_quint8(layer, sums(layer))
        return packed(layer, kernel)

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
        zero_point = zero_point_of(grid)
        return lambda p, q: native_from_uint8(interleaved(uint8_view(p), uint8_view(q)), zero_point)


@functools.cache
def has_quantized_tensors() -> bool:
    """Whether this torch still has them: it is asked for one. Its warning about their removal, which it gives once per
    process, is hidden."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor, torch.quantize_per_channel and other")
        try:
            torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)
        except Exception:  # nobody knows yet how they will be missing
            return False
    return True
