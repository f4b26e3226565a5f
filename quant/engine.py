"""What an engine is: how values on a grid are held, and the operators that work on them.

`Held` stands for a tensor as the engine holds it. Operators are built once, at conversion, and are plain callables. The
reference engine below holds centred integers in fp32 and uses no quantized kernel: it is the oracle.
"""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from quant.grid import Grid
from quant.integer import Bounds, IntegerLayer, integer_bounds

Held = Tensor
FLOAT32 = "integers in float32"
"""The kernel that is always exact: quant/integer.py itself."""
Operator = Callable[..., Held]


class Engine:
    """The reference engine, and the interface of all others."""

    name = "reference"

    def available(self) -> bool:
        return True

    def running(self) -> contextlib.AbstractContextManager:
        """Entered around every run of a converted model."""
        return contextlib.nullcontext()

    def quantize(self, grid: Grid) -> Operator:
        """float -> held"""
        return grid.centred

    def dequantize(self, grid: Grid) -> Operator:
        """held -> float"""
        return grid.value

    def hold(self, grid: Grid) -> Operator:
        """centred integers in fp32 -> held"""
        return torch.clone

    def centred(self, grid: Grid) -> Operator:
        """held -> centred integers in fp32"""
        return torch.clone

    def kernels(self, layer: IntegerLayer) -> tuple[str, ...]:
        """The kernels that may run a layer, the best first. The last is always exact."""
        return (FLOAT32,)

    def layer(self, layer: IntegerLayer, kernel: str) -> Operator:
        """held -> held, or float where the layer has no output grid"""
        return layer

    def additions(self, a: Grid, b: Grid, y: Grid, bounds: Bounds) -> list[tuple[str, Operator]]:
        """Ways to add, (held, held) -> held: the sum, clamped to bounds, on grid y. Best first; the last is exact."""
        lo, hi = (limit - int(y.zero_point) for limit in integer_bounds(y, bounds))
        return [(FLOAT32, lambda p, q: y.centred(a.value(p) + b.value(q)).clamp_(lo, hi))]

    def requantize(self, x: Grid, y: Grid) -> Operator:
        """held on grid x -> held on grid y"""
        dequantize, quantize = self.dequantize(x), self.quantize(y)
        return lambda p: quantize(dequantize(p))

    def relu(self, grid: Grid) -> Operator:
        """held -> held, negative values to zero"""
        return torch.relu

    def in_float(self, grid: Grid) -> tuple[Operator, Operator] | None:
        """(held -> centred fp32, and back) where torch's max-pool and padding do not take what is held."""
        return None
