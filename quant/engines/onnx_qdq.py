"""The engine of ONNX files in the QDQ format: float operators between DequantizeLinear and QuantizeLinear.

Runtimes recognize this pattern and run it as an integer operator. A convolution, for example, reads DequantizeLinear of
its input (uint8), of its weights (int8, one scale per channel) and of its bias (int32, scale s_x s_c), and
QuantizeLinear reads its result. Grids keep their zero points. If a grid has fewer than 8 bits, or an activation clamps
its range, a uint8 Clip stands between QuantizeLinear and DequantizeLinear. (A Clip before QuantizeLinear would prevent
fusion in ONNX Runtime.)

What a runtime fuses, it rounds in its own way. That is harmless for layers, whose sums lie off all ties
(core/integer_layer.py). It is not for a sum of two tensors, whose 65,536 pairs of integers come too near to ties, nor
for products and averages. They are written so that no runtime fuses their rounding: in float, with the multiplication
by 1 / scale and Round as operators of their own before a QuantizeLinear of scale 1, and what is added or averaged read
through a Max that changes nothing. So every rounding is the simulation's, on each CPU; products and averages are those
of integers, and therefore exact. A function of one tensor is fused, on a scale moved off the ties of its 256 values;
where they leave no room, it is a table.

`QdqEngine` makes a graph of the operators of engines/qdq_operators.py. engines/onnx_writer.py writes it as a file.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quant.core.grid import Grid
from quant.core.integer_layer import IntegerLayer
from quant.core.integer_operator import IntegerOperator, average, exact_average, function, mul
from quant.engines.base import Engine, Operator
from quant.engines.qdq_operators import on_grid
from quant.graph import operator_row

FAR_FROM_TIES = 2e-4
"""How far, in steps, the values of a fused function have to be from a tie. Runtimes compute the functions of the table
of operators in ways of their own, which differ by up to 7e-5 steps of 8 bits."""
qdq = torch.ops.qdq


class QdqEngine(Engine):
    """Native tensors are floats on the grid: the values between a DequantizeLinear and the next QuantizeLinear.

    symmetric: the file has int8 with zero point 0 instead of uint8; all grids must be so (core/symmetric.py).
    """

    name = "onnx"

    def __init__(self, symmetric: bool = False):
        self.symmetric = symmetric

    def stored(self, grid: Grid) -> Grid:
        """The grid with the least and greatest integer of the type that the file has for it, where that is int8.

        Kernels are also tried on other grids, which no file has.
        """
        fits = grid.q_min >= -128 and grid.q_max <= 127
        return Grid(grid.scale, grid.zero_point, -128, 127) if self.symmetric and fits else grid

    def quantize(self, grid: Grid) -> Operator:
        return Rounded(float(grid.scale), *on_grid(self.stored(grid), grid.q_min, grid.q_max))

    def dequantize(self, grid: Grid) -> Operator:
        return lambda x: x

    def to_native(self, grid: Grid) -> Operator:
        return grid.value

    def from_native(self, grid: Grid) -> Operator:
        return grid.centred

    def kernels(self, layer: IntegerLayer) -> tuple[str, ...]:
        return (self.name,)

    def layer(self, layer: IntegerLayer, kernel: str) -> Operator:
        g = layer.geometry
        geometry = [] if g.linear else [*g.stride, *g.padding, *g.dilation, g.groups]
        weight, bias = layer.weight.to(torch.int8), layer.bias.to(torch.int32)
        weight = weight.t().contiguous() if g.linear else weight.contiguous()
        x_scale, x_zero_point, _, _ = on_grid(self.stored(layer.x), 0, 0)
        given = (weight, layer.scale, bias, layer.accumulator_scale(), x_scale, x_zero_point, geometry)
        if layer.y is None:
            return lambda x: qdq.last_layer(x, *given)
        output = on_grid(self.stored(layer.y), layer.lo, layer.hi)
        return lambda x: qdq.layer(x, *given, *output)

    def operators(self, op: IntegerOperator) -> list[tuple[str, Operator]]:
        x, y = tuple(map(self.stored, op.x)), None if op.y is None else self.stored(op.y)
        return [(self.name, _OPERATORS.get(op.arithmetic, written_in_float)(replace(op, x=x, y=y)))]

    def concatenate(self, grid: Grid, axis: int) -> Operator:
        scale, zero_point, _, _ = on_grid(self.stored(grid), 0, 0)
        return lambda values: qdq.concatenate(values, axis, scale, zero_point)

    def shuffle(self, grid: Grid, groups: int) -> Operator:
        keep = _kept(self.stored(grid))
        return lambda x: keep(_shuffled(x, groups))

    def relu(self, grid: Grid) -> Operator:
        keep = _kept(self.stored(grid))
        return lambda x: keep(torch.relu(x))

    def conversions_around(self, grid: Grid, row: operator_row.Operator) -> tuple[Operator, Operator]:
        """Quantize again after each pass-through operator.

        Runtimes only fuse an operator that has a Dequantize and a Quantize to itself.
        """
        return (lambda x: x), _kept(self.stored(grid))


@dataclass(frozen=True)
class Rounded:
    """float values / step -> values on a grid of `scale`; see qdq_operators.py for both forms."""

    step: float
    scale: float
    zero_point: int
    lo: int
    hi: int
    to_fuse: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        write = qdq.to_fuse if self.to_fuse else qdq.quantize
        return write(x, self.step, self.scale, self.zero_point, self.lo, self.hi)


def _kept(grid: Grid) -> Operator:
    scale, zero_point, _, _ = on_grid(grid, 0, 0)
    return lambda x: qdq.kept(x, scale, zero_point)


def _shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.reshape(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def written_in_float(op: IntegerOperator) -> Operator:
    """The operator on float values: what core/integer_operator.py computes for a sum."""
    rounded = Rounded(float(op.output_grid.scale), *on_grid(op.output_grid, op.lo, op.hi))
    grids = [on_grid(grid, 0, 0)[:2] for grid in op.x]
    return lambda *values: rounded(op.run(*(qdq.unfused(x, *grid) for x, grid in zip(values, grids, strict=True))))


def _on_integers(op: IntegerOperator) -> Callable[..., list[Tensor]]:
    """The operator float values -> the integers that it computes on, one tensor each."""
    grids = [on_grid(grid, 0, 0)[:2] for grid in op.x]
    return lambda *values: [qdq.integers(x, *grid) for x, grid in zip(values, grids, strict=True)]


def _divided(op: IntegerOperator) -> Rounded:
    """Integers / op.divisor() -> values on the output's grid."""
    return Rounded(float(op.divisor()), *on_grid(op.output_grid, op.lo, op.hi))


def written_product(op: IntegerOperator) -> Operator:
    integers, rounded = _on_integers(op), _divided(op)
    return lambda p, q: rounded(op.run(*integers(p, q)))


def written_average(op: IntegerOperator) -> Operator:
    integers, zero_point = _on_integers(op), on_grid(op.x[0], 0, 0)[1]
    rounded = op.x[0].value if op.y is None else _divided(op)

    def run(x: Tensor) -> Tensor:
        [n] = integers(x)
        mean = exact_average(op.run, n)
        if zero_point or mean.shape[2:].numel() != 1:  # OpenVINO averages uint8 in its own way, but for whole maps
            mean = exact_average(op.run, qdq.unfused(n, 1.0, zero_point))
        return rounded(mean)

    return run


def _function(op: IntegerOperator) -> Operator:
    """A function in float, to be fused, on a step that is far from all ties; else a table."""
    scale, zero_point, lo, hi = on_grid(op.output_grid, op.lo, op.hi)
    step, table = step_off_ties(op), op.table()
    if step is not None:
        rounded = Rounded(step, scale, zero_point, lo, hi, to_fuse=True)
        return lambda x: rounded(op.run(x))
    entries, x = (table + zero_point).to(torch.uint8), on_grid(op.x[0], 0, 0)[:2]
    return lambda values: qdq.look_up(values, entries, *x, scale, zero_point)


def step_off_ties(op: IntegerOperator) -> float | None:
    """A step near the output's scale, by which all values of a function round as in its table, far from ties; or None.

    A value v rounds to n on each step s for which v / s lies between the ties n - 1/2 and n + 1/2. So v / tie bounds s
    from below at the tie that is farther from zero, and from above at the other. Values that are clamped may lie
    anywhere beyond.
    """
    x, y, n = op.x[0], op.output_grid, op.table().double()
    v = op.run(x.value(torch.arange(x.q_min, x.q_max + 1.0) - int(x.zero_point))).double()
    above, below = n < op.hi - int(y.zero_point), n > op.lo - int(y.zero_point)
    n, v, ties = (torch.cat([a[above], b[below]]) for a, b in ((n, n), (v, v), (n + 0.5, n - 0.5)))
    outer = ties.abs() > n.abs()
    if outer.all() or not outer.any():
        return float(y.scale)
    low, high = 0.5 / y.scale.double(), 2 / y.scale.double()
    for _ in range(60):  # the distance to outer ties falls with 1 / step, to inner ones it rises: where do they meet?
        middle = (low + high) / 2
        distances = (ties - v * middle) * (ties - n).sign()
        if distances[outer].min() > distances[~outer].min():
            low = middle
        else:
            high = middle
    return float(1 / middle) if distances.min() >= FAR_FROM_TIES else None


_OPERATORS: dict[Callable, Callable[[IntegerOperator], Operator]] = {
    mul: written_product,
    average: written_average,
    function: _function,
}
"""Arithmetic of an operator -> how it is written; others are written in float."""
