"""The arithmetic of integer operators without weights. The simulation computes it; engines must reproduce it.

On centred integers n = q - z of grids with scales s, output scale s_y:

    add        n_y = round((s_a n_a + s_b n_b) / s_y)
    sub        n_y = round((s_a n_a - s_b n_b) / s_y)
    mul        n_y = round(n_a n_b / t),      t = s_y / (s_a s_b)
    average    n_y = round(mean(n) / t),      t = s_y / s_x
    function   n_y = round(f(s_x n) / s_y),   a table: one output for each input integer
    elementwise  the same where f has constants for each channel or place, such as the slopes of PReLU: no table

ties to even, clamped to the output grid and to the range of the activation after it. Divisions are multiplications
with the fp32 inverse, as in torch.quantize_per_tensor. Sums of an average are exact, in whatever order they are added.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.core.activation import ClampedAffine
from quant.core.grid import Grid
from quant.core.integer_layer import EXACT, integer_bounds
from quant.core.numbers import is_host


@dataclass(frozen=True)
class IntegerOperator:
    """arithmetic: one of the functions below. run: the operator in float. x: the grids of its inputs; y: the
    grid of its output (None for an average whose output is float). lo and hi bound the output's integers. name: the row
    of the table of operators (graph/op_table.py) that it was made from."""

    name: str
    arithmetic: "Arithmetic"
    run: Callable[..., Tensor]
    x: tuple[Grid, ...]
    y: Grid | None
    lo: int = 0
    hi: int = 0

    def __call__(self, *n: Tensor) -> Tensor:
        """Centred output integers, fp32, of centred input integers; float values where there is no output grid."""
        return self.arithmetic(self, *n)

    @property
    def output_grid(self) -> Grid:
        """y. Raises ValueError where the output is float."""
        if self.y is None:
            raise ValueError(f"{self.name}: an operator whose output is float has no output grid")
        return self.y

    def divisor(self) -> Tensor:
        """t, fp32: the divisor of a product or an average."""
        return self.output_grid.scale / torch.stack([grid.scale for grid in self.x]).prod()

    def clamped(self, n: Tensor) -> Tensor:
        zero_point = int(self.output_grid.zero_point)
        return n.clamp_(self.lo - zero_point, self.hi - zero_point)

    def table(self) -> Tensor:
        """The lookup table of a function: centred output integers, fp32, for each input integer from q_min up."""
        x = self.x[0]
        every = torch.arange(x.q_min, x.q_max + 1.0, device=x.scale.device) - int(x.zero_point)
        return self.clamped(self.output_grid.centred(self.run(x.value(every))))


Arithmetic = Callable[..., Tensor]
"""(operator, centred integers of each input) -> centred integers of the output."""


def integer_operator(
    name: str,
    arithmetic: Arithmetic,
    run: Callable[..., Tensor],
    x: tuple[Grid, ...],
    y: Grid | None,
    activation: ClampedAffine,
) -> IntegerOperator:
    lo, hi = (0, 0) if y is None else integer_bounds(y, activation)
    return IntegerOperator(name, arithmetic, run, x, y, lo, hi)


def add(op: IntegerOperator, p: Tensor, q: Tensor) -> Tensor:
    return op.clamped(op.output_grid.centred(op.x[0].value(p) + op.x[1].value(q)))


def sub(op: IntegerOperator, p: Tensor, q: Tensor) -> Tensor:
    return op.clamped(op.output_grid.centred(op.x[0].value(p) - op.x[1].value(q)))


def mul(op: IntegerOperator, p: Tensor, q: Tensor) -> Tensor:
    return op.clamped((p * q).mul_(1.0 / op.divisor()).round_())


def average(op: IntegerOperator, n: Tensor) -> Tensor:
    mean = exact_average(op.run, n)
    return op.x[0].value(mean) if op.y is None else op.clamped((mean * (1.0 / op.divisor())).round_())


def function(op: IntegerOperator, n: Tensor) -> Tensor:
    return look_up(op.x[0], op.table(), n)


def elementwise(op: IntegerOperator, n: Tensor) -> Tensor:
    return op.clamped(op.output_grid.centred(op.run(op.x[0].value(n))))


def look_up(x: Grid, table: Tensor, n: Tensor) -> Tensor:
    """The entries of an IntegerOperator's table for centred integers n on the grid x."""
    return table[(n + (int(x.zero_point) - x.q_min)).long()]


def exact_average(pool: Callable[[Tensor], Tensor], n: Tensor) -> Tensor:
    """The average of centred integers; in fp64 where sums could exceed 2^24, or where a device may multiply them by an
    inverse, which in fp32 is not the same as to divide them."""
    if not is_host(n) or n.shape[-1] * n.shape[-2] * 256 >= EXACT:
        return pool(n.double()).float()
    mean = pool(n)
    return pool(n.double()).float() if n.numel() // max(mean.numel(), 1) * 256 >= EXACT else mean
