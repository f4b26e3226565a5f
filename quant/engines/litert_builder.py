"""Build LiteRT's graph of a model from values on grids (engines/litert_graph.py has the format).

As in XNNPACK's graph, a value that was rounded with another step than its grid's has that step as its scale in the
file. Its zero point is the grid's less 128, or another one: LiteRT's int8 kernels clamp at -128 and 127, and with RELU
at the zero point. So a grid of fewer bits is stored shifted, with its greatest integer at 127; where RELU does not
clamp its least one, it is stored again with that at -128.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from quant.engines.litert_graph import Graph, Loaded
from quant.engines.nhwc_builder import MIDDLE, Bounded, Builder, Known, NotThere, OnGrid, Value, single

LEAST, GREATEST = -128, 127
KINDS = {
    "Add": "ADD",
    "Subtract": "SUB",
    "Multiply": "MUL",
    "Div": "DIV",
    "Sigmoid": "LOGISTIC",
    "Tanh": "TANH",
    "Hardswish": "HARD_SWISH",
    "Abs": "ABS",
    "Negate": "NEG",
    "Square": "SQUARE",
    "Exp": "EXP",
    "Log": "LOG",
    "SquareRoot": "SQRT",
    "Gelu": "GELU",
}
"""XNNPACK's names of operators, which the shared files use, and LiteRT's."""
SAME, VALID, NONE, RELU = 0, 1, 0, 1
"""Of the schema: kinds of padding and of fused activations."""
EXACT_IN_HALF = 2048
"""Integers up to here are exact in fp16."""


class LitertBuilder(Builder):
    """A graph, and what all operators need to be written into it."""

    runtime = "LiteRT"
    most_joined = 4
    """More are no operator of XNNPACK's."""
    graph: Graph

    def __init__(self) -> None:
        self.graph = Graph()

    def input(self, shape: Sequence[int]) -> Value:
        return self.graph.input(shape)

    def input_on_grid(self, shape: Sequence[int], scale: float, zero_point: int) -> OnGrid:
        return OnGrid(self.graph.input(shape, scale, zero_point - MIDDLE), scale, zero_point)

    def output(self, x: Known) -> None:
        value = self.alike([x], x.zero_point - MIDDLE)[0] if isinstance(x, OnGrid) else self.in_float(x)
        self.graph.output(value)

    def program(self, texts: dict[str, str] | None = None) -> bytes:
        return self.graph.program(texts)

    def loaded(self) -> Loaded:
        return Loaded(self.program())

    def elementwise(self, kind: str, inputs: Sequence[Value], new: Value, activation: int = NONE) -> None:
        fused = {"fusedActivationFunction": activation} if activation else {}
        self.graph.node(KINDS[kind], [x.id for x in inputs], new, **fused)

    def bounded(self, x: Value, low: float, high: float, new: Value) -> None:
        if (low, high) == (0.0, math.inf):
            self.graph.node("RELU", [x.id], new)
            return
        within = self.like(x) if math.isfinite(low) and math.isfinite(high) else new
        if math.isfinite(low):
            self.graph.node("MAXIMUM", [x.id, self._number(low)], within)
        if math.isfinite(high):
            self.graph.node("MINIMUM", [within.id if math.isfinite(low) else x.id, self._number(high)], new)

    def _number(self, number: float) -> int:
        return self.graph.constant(torch.tensor([number], dtype=torch.float32))

    def rectified(self, x: OnGrid) -> OnGrid:
        """Stored again, with 0 as the least integer of int8."""
        return OnGrid(self._with_zero(x.value, LEAST), x.scale, x.zero_point)

    def _with_zero(self, value: Value, zero_point: int) -> Value:
        """Integers with another zero point in the file, clamped by int8."""
        if value.zero_point == zero_point:
            return value
        new = self.graph.value(value.shape, value.scale, zero_point)
        self.graph.node("QUANTIZE", [value.id], new)
        return new

    def transposed(self, value: Value, axes: Sequence[int], new: Value) -> Value:
        self.graph.node("TRANSPOSE", [value.id, self._sizes(axes)], new)
        return new

    def stored_as(self, value: Value, stored: Sequence[int], new: Value) -> Value:
        self.graph.node("RESHAPE", [value.id, self._sizes(stored)], new)
        return new

    def _sizes(self, numbers: Sequence) -> int:
        return self.graph.constant(torch.tensor(numbers, dtype=torch.int32))

    def concatenated(self, values: Sequence[Value], axis: int, new: Value) -> None:
        self.graph.node("CONCATENATION", [x.id for x in values], new, axis=axis)

    def alike(self, values: Sequence[OnGrid], zero_point: int | None = None) -> list[Value]:
        """With this zero point, or with their own if all have it, or with the grid's, which leaves room for all."""
        zero_points = {x.value.zero_point for x in values}
        if zero_point is None:
            zero_point = zero_points.pop() if len(zero_points) == 1 else values[0].zero_point - MIDDLE
        return [self._with_zero(self.at_scale(x, x.scale).value, zero_point) for x in values]

    def cut(self, x: Value, offsets: Sequence[int], sizes: Sequence[int], new: Value) -> None:
        self.graph.node("SLICE", [x.id, self._sizes(offsets), self._sizes(sizes)], new)

    def surrounded(self, x: Value, before: Sequence[int], after: Sequence[int], number: float, new: Value) -> None:
        ends = self._sizes([*zip(before, after, strict=True)])
        self.graph.node(*(("PADV2", [x.id, ends, self._number(number)]) if number else ("PAD", [x.id, ends])), new)

    def max_pooled(self, x: Value, size, stride, padding, ends, dilation, new: Value) -> None:
        if max(dilation) > 1:
            raise NotThere("LiteRT has no max-pool with dilation")
        x, kind = self._padded(x, size, stride, padding, ends, new.shape, self._least)
        options = dict(zip(("filterHeight", "filterWidth", "strideH", "strideW"), (*size, *stride), strict=True))
        self.graph.node("MAX_POOL_2D", [x.id], new, padding=kind, **options)

    def _least(self, x: Value, ends: int, new: Value) -> None:
        """Put the least number around a value."""
        if x.zero_point == LEAST and x.scale is not None:
            self.graph.node("PAD", [x.id, ends], new)
            return
        number = torch.tensor([-3e38]) if x.scale is None else torch.tensor([LEAST], dtype=torch.int8)
        self.graph.node("PADV2", [x.id, ends, self.graph.constant(number, x.scale, x.zero_point)], new)

    def _zero(self, x: Value, ends: int, new: Value) -> None:
        self.graph.node("PAD", [x.id, ends], new)

    def _padded(self, x: Value, reach, stride, before, after, shape, around: Callable) -> tuple[Value, int]:
        """(a value with its padding, how the operator that reads it pads): by itself where it pads in the same way."""
        sides = [*zip(x.shape[2:], shape[2:], reach, stride, before, after, strict=True)]
        if not any((*before, *after)):
            return x, VALID
        if all(_as_same(*side) for side in sides):
            return x, SAME
        padded = [n + p + q for n, _, _, _, p, q in sides]
        new = self.like(x, (*x.shape[:2], *padded))
        around(x, self._sizes([(0, 0), *zip(before, after, strict=True), (0, 0)]), new)
        return new, VALID

    def softmax(self, value: Value, new: Value) -> None:
        self.graph.node("SOFTMAX", [value.id], new, beta=1.0)

    def matmul(self, p: Value, q: Value, new: Value) -> None:
        self.graph.node("BATCH_MATMUL", [p.id, q.id], new)

    def converted(self, value: Value) -> Value:
        new = self.graph.value(value.shape)
        self.graph.node("DEQUANTIZE", [value.id], new)
        return new

    def integers(self, x: OnGrid) -> Value:
        return self.converted(self.at_scale(x, 1.0).value)

    def rounded(self, x: Value, step: float, scale: float, zero_point: int, lo: int, hi: int) -> OnGrid:
        """XNNPACK divides as torch does, by a multiplication, and rounds ties to even."""

        def write(new: Value, activation: int) -> None:
            self.graph.node("QUANTIZE", [x.id], new)

        return OnGrid(self._within(x.shape, (step, zero_point, lo, hi), write, activates=False), scale, zero_point)

    def _within(self, shape, y: Bounded, write: Callable[[Value, int], None], activates=True, plain=False) -> Value:
        """The value that write(a new value, its activation) computes, clamped to lo .. hi."""
        scale, zero_point, lo, hi = y
        if not lo <= zero_point <= hi:
            return self._clamped(shape, y, write, plain)
        shifted = zero_point + GREATEST - hi  # so that hi is the greatest integer of int8
        new, least = self.graph.value(shape, scale, shifted, plain), lo + GREATEST - hi
        activation = RELU if activates and lo == zero_point and least > LEAST else NONE
        write(new, activation)
        return new if activation or least == LEAST else self._with_zero(new, zero_point + LEAST - lo)

    def _clamped(self, shape, y: Bounded, write: Callable[[Value, int], None], plain: bool) -> Value:
        """A grid whose zero point may not be returned: two more operators."""
        scale, zero_point, lo, hi = y
        new = self.graph.value(shape, scale, zero_point - MIDDLE, plain)
        write(new, NONE)
        for kind, bound in (("MAXIMUM", lo), ("MINIMUM", hi)):
            number = torch.tensor([bound - MIDDLE], dtype=torch.int8)
            bounded = self.graph.value(shape, scale, zero_point - MIDDLE, plain)
            self.graph.node(kind, [new.id, self.graph.constant(number, scale, zero_point - MIDDLE)], bounded)
            new = bounded
        return new

    def at_scale(self, x: OnGrid, scale: float) -> OnGrid:
        """With another scale: a product with 1."""
        if x.step == single(scale):
            return x
        new = self.graph.value(x.shape, scale, x.value.zero_point)
        one = self.graph.constant(torch.ones(1, dtype=torch.int8), scale / x.step)
        self.graph.node("MUL", [x.value.id, one], new)
        return OnGrid(new, x.scale, x.zero_point)

    def fully_connected(self, x: Value, weight: Tensor, weight_scale, bias: Tensor, y: Bounded | None) -> Value:
        inputs = [x.id, self._weight(weight, weight_scale), self._bias(x, weight_scale, bias)]

        def write(new: Value, activation: int) -> None:
            self.graph.node("FULLY_CONNECTED", inputs, new, fusedActivationFunction=activation, keepNumDims=True)

        shape = (*x.shape[:-1], len(weight))
        if y is not None:
            return self._within(shape, y, write, plain=True)
        new = self.graph.value(shape, plain=True)
        write(new, NONE)
        return new

    def _weight(self, weight: Tensor, scale: Tensor | None, axis: int = 0) -> int:
        """A constant; integers that an operator reads in fp32 are stored in fp16."""
        whole = weight.numel() > 1000 and bool((weight == weight.round()).all() & (weight.abs() <= EXACT_IN_HALF).all())
        if scale is not None or not whole:
            return self.graph.constant(weight, scale, axis=axis)
        new = self.graph.value(weight.shape, plain=True)
        self.graph.node("DEQUANTIZE", [self.graph.constant(weight.half())], new)
        return new.id

    def _bias(self, x: Value, weight_scale, bias: Tensor) -> int:
        if weight_scale is None:
            return self.graph.constant(bias)
        return self.graph.constant(bias.to(torch.int32), weight_scale * x.scale)

    def convolved(
        self, x: Value, shape, weight: Tensor, weight_scale, bias: Tensor, geometry, y: Bounded | None = None, ends=None
    ) -> Value:
        def write(new: Value, activation: int) -> None:
            self._convolution(x, new, weight, weight_scale, bias, geometry, activation, ends)

        if y is not None:
            return self._within(shape, y, write)
        new = self.graph.value(shape)
        write(new, NONE)
        return new

    def _convolution(
        self, x: Value, new: Value, weight, weight_scale, bias, geometry, activation=NONE, ends=None
    ) -> None:
        outputs, inputs, *size = weight.shape
        stride, padding, dilation, groups = geometry[:2], geometry[2:4], geometry[4:6], geometry[6]
        depthwise = inputs == 1 and groups > 1
        stored = weight.permute(1, 2, 3, 0) if depthwise else weight.permute(0, 2, 3, 1)
        bias_id = self._bias(x, weight_scale, bias)
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, size, strict=True)]
        x, kind = self._padded(x, reach, stride, padding, padding if ends is None else ends, new.shape, self._zero)
        self.graph.node(
            "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
            [x.id, self._weight(stored, weight_scale, 3 if depthwise else 0), bias_id],
            new,
            padding=kind,
            strideH=stride[0],
            strideW=stride[1],
            dilationHFactor=dilation[0],
            dilationWFactor=dilation[1],
            fusedActivationFunction=activation,
            **({"depthMultiplier": outputs // groups} if depthwise else {}),
        )

    def picked(self, x: OnGrid, shape: Sequence[int], geometry: Sequence[int]) -> OnGrid:
        new, c = self.like(x.value, shape), x.shape[1]
        ones = torch.ones(c, 1, 1, 1, dtype=torch.int8)
        self._convolution(x.value, new, ones, torch.ones(c), torch.zeros(c), geometry)
        return OnGrid(new, x.scale, x.zero_point)

    def fused(self, kind: str, p: OnGrid, q: OnGrid, unit: float, y: Bounded) -> OnGrid:
        def write(new: Value, activation: int) -> None:
            self.elementwise(kind, [p.value, q.value], new, activation)

        return OnGrid(self._within(torch.broadcast_shapes(p.shape, q.shape), y, write), *y[:2])

    def product(self, p: OnGrid, q: OnGrid, scales: Sequence[float], step: float, y: Bounded) -> OnGrid:
        p, q = (self.at_scale(x, scale) for x, scale in zip((p, q), scales, strict=True))
        return self.fused("Multiply", p, q, y[0], y)

    def looked_up(self, x: OnGrid, table: Tensor, scale: float, zero_point: int) -> OnGrid:
        places, numbers = self.graph.of_int32(x.value), self.graph.of_int32(x.value)
        new = self.graph.value(x.shape, scale, zero_point - MIDDLE)
        first = self._sizes([x.zero_point - x.value.zero_point])
        entries = (table.int() - MIDDLE).to(torch.int8)
        self.graph.node("CAST", [x.value.id], numbers)
        self.graph.node("ADD", [numbers.id, first], places)
        self.graph.node("GATHER", [self.graph.constant(entries, scale, zero_point - MIDDLE), places.id], new)
        return OnGrid(new, scale, zero_point)


def _as_same(n: int, windows: int, reach: int, stride: int, before: int, after: int) -> bool:
    """Whether LiteRT's padding SAME along an axis is `before` places, and what is needed behind."""
    whole = max((windows - 1) * stride + reach - n, 0)
    return windows == -(-n // stride) and whole // 2 == before and whole - whole // 2 <= after
