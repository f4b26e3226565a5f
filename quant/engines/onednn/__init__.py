"""PyTorch's engine onednn: torch.ops.onednn and plain torch operators on uint8 tensors.

Nothing here needs torch's quantized tensors, whose removal PyTorch has announced (pytorch #184982). In a torch without
them, this is the engine x86, too.

Known properties of the kernels, all measured, and how this folder deals with them:

- Without VNNI, oneDNN's dense kernels add products in 16 bits and saturate. So no kernel is trusted: engines/verify.py
  tries the candidates for a layer at full range on this CPU, and the first exact one is used. The last candidate is
  fp32 arithmetic.
- Kernels clamp at 0 and 255 only. A grid of fewer than 8 bits is stored shifted, with its q_max at 255, so that
  saturation is its upper clamp. A fused ReLU is the lower clamp if the zero point is q_min. Any other clamp is a
  separate operator.
- With a the integer sum, B the integer bias, b = B m the float bias and fl() rounding to fp32, oneDNN computes
  round(fl(fl(fl(a m) + b) + z)), and core/integer_layer.py round((a + B) m) + z. If no multiplier is near a tie
  (core/integer_layer.py), these are the same integers. Otherwise oneDNN is off by one step for ten sums in a million.
  There it only computes the exact sums, and the rest is done here, as it is for logits.
"""

import torch

from quant.core.grid import Grid
from quant.core.integer_layer import IntegerLayer
from quant.core.integer_operator import IntegerOperator
from quant.engines.base import FLOAT32_KERNEL, Engine, Operator
from quant.engines.onednn.layers import FUSED, KERNELS, SUMS
from quant.engines.onednn.operators import CANDIDATES, requantizing
from quant.engines.onednn.pool import max_pooling
from quant.engines.onednn.tensors import centred, interleaved, native, quantizing, shift, shuffled, zero_point_of
from quant.graph import operator_row
from quant.graph.node_view import NodeView


class OnednnEngine(Engine):
    """oneDNN in torch. name: onednn, or x86 in a torch without quantized tensors."""

    def __init__(self, name: str):
        self.name = name

    def missing(self) -> str:
        return "" if torch.backends.mkldnn.is_available() else "needs oneDNN, which is not in this build of torch"

    def quantize(self, grid: Grid) -> Operator:
        return quantizing(float(1.0 / grid.scale), zero_point_of(grid), grid.q_min + shift(grid), 255)

    def dequantize(self, grid: Grid) -> Operator:
        zero_point, scale = zero_point_of(grid), float(grid.scale)
        return lambda x: centred(x, zero_point).mul_(scale)

    def to_native(self, grid: Grid) -> Operator:
        return lambda n: native(n, zero_point_of(grid))

    def from_native(self, grid: Grid) -> Operator:
        return lambda x: centred(x, zero_point_of(grid))

    def kernels(self, layer: IntegerLayer) -> tuple[str, ...]:
        by_itself = (FUSED,) if layer.y is not None and layer.off_ties() else ()
        return (*by_itself, SUMS, FLOAT32_KERNEL)

    def layer(self, layer: IntegerLayer, kernel: str) -> Operator:
        return KERNELS[kernel](layer)

    def operators(self, op: IntegerOperator) -> list[tuple[str, Operator]]:
        candidates = None if op.y is None else CANDIDATES.get(op.arithmetic)
        kernels = [] if candidates is None else candidates(op)
        return [(self.name, kernel) for kernel in kernels] + [(FLOAT32_KERNEL, self.in_float32(op))]

    def requantize(self, x: Grid, y: Grid) -> Operator:
        return requantizing(x, y)

    def relu(self, grid: Grid) -> Operator:
        zero_point = zero_point_of(grid)
        return lambda x: x.clamp_min(zero_point)

    def shuffle(self, grid: Grid, groups: int) -> Operator:
        return lambda x: shuffled(x, groups)

    def interleave(self, grid: Grid) -> Operator:
        return interleaved

    def moving(self, name: str | None, view: NodeView) -> Operator | None:
        return max_pooling(view) if name == "max_pool2d" else None

    def conversions_around(self, grid: Grid, row: operator_row.Operator) -> tuple[Operator, Operator] | None:
        if not row.on_quantized:
            return self.from_native(grid), self.to_native(grid)
        zero_point = zero_point_of(grid)  # padding adds zeros, and uint8 wraps around
        return (lambda x: x - zero_point, lambda x: x + zero_point) if row.pads else None
