"""What an engine is: how values on a grid are held, and the operators that work on them.

`Held` stands for a tensor as the engine holds it. Operators are built once, at conversion, and are plain callables. The
reference engine below holds centred integers in fp32 and uses no quantized kernel: it is the oracle.
"""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quant.grid import Grid
from quant.integer import IntegerLayer
from quant.operators import IntegerOperator

if TYPE_CHECKING:
    from quant.convert import IntegerModel

Held = Tensor
FLOAT32 = "integers in float32"
"""The kernel that is always exact: quant/integer.py itself."""
Operator = Callable[..., Held]


class Engine:
    """The reference engine, and the interface of all others."""

    name = "reference"
    multiplies_like: str | None = None
    """The engine whose int8 kernels tell whether this one's are exact, if they cannot be asked."""
    layout = torch.channels_last
    """The memory format of images that it likes best."""

    def missing(self) -> str:
        """Why the engine cannot be used here; empty if it can."""
        return ""

    def available(self) -> bool:
        return not self.missing()

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

    def operators(self, op: IntegerOperator) -> list[tuple[str, Operator]]:
        """Ways to run an operator without weights, held -> held (float where it has no output grid). Best first; the
        last is exact."""
        return [(FLOAT32, self.in_float32(op))]

    def in_float32(self, op: IntegerOperator) -> Operator:
        """The operator's own arithmetic on what is held."""
        enter, leave = [self.centred(grid) for grid in op.x], (lambda n: n) if op.y is None else self.hold(op.y)
        if len(enter) == 1:
            return lambda held: leave(op(enter[0](held)))
        return lambda p, q: leave(op(enter[0](p), enter[1](q)))

    def requantize(self, x: Grid, y: Grid) -> Operator:
        """held on grid x -> held on grid y"""
        dequantize, quantize = self.dequantize(x), self.quantize(y)
        return lambda p: quantize(dequantize(p))

    def relu(self, grid: Grid) -> Operator:
        """held -> held, negative values to zero"""
        return torch.relu

    def concatenate(self, grid: Grid, axis: int) -> Operator:
        """list of held, on one grid -> held"""
        return lambda values: torch.cat(values, axis)

    def shuffle(self, grid: Grid, groups: int) -> Operator:
        """held [N, C, H, W] -> held, its channels as nn.ChannelShuffle orders them"""
        return lambda held: torch.channel_shuffle(held, groups)

    def interleave(self, grid: Grid) -> Operator:
        """(held, held), both [N, C, H, W] -> held [N, 2 C, H, W]: the shuffle in 2 groups of their concatenation"""
        concatenate, shuffle = self.concatenate(grid, 1), self.shuffle(grid, 2)
        return lambda p, q: shuffle(concatenate([p, q]))

    def finished(self, model: "IntegerModel") -> "IntegerModel":
        """What conversion hands out: the model itself, unless the engine runs it in a way of its own."""
        return model

    def around(self, grid: Grid, pools_or_pads: bool) -> tuple[Operator, Operator] | None:
        """What to do before and after a node that hands values on, if it does not take what is held as it is."""
        return None
