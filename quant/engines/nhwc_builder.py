"""What is common to the graphs that are written directly: XNNPACK's (engines/xnnpack_builder.py) and LiteRT's
(engines/litert_builder.py).

Both store maps in the order N, H, W, C; shapes here are torch's, [N, C, H, W]. Integers are int8, and each has a scale
and a zero point in the file. A `Builder` writes what a runtime has; engines/nhwc_writer.py, nhwc_moves.py,
nhwc_floats.py and nhwc_islands.py make torch's operators and ours of that.
"""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy
from torch import Tensor

MIDDLE = 128
"""Integers of a grid, 0 .. 255, are stored less this."""
Bounded = tuple[float, int, int, int]
"""(scale, zero point, lo, hi) of integers, as engines/qdq_operators.py has them."""


class NotThere(NotImplementedError):
    """A runtime has no operator for something in a graph."""


@dataclass(frozen=True)
class Value:
    """A value of the graph. shape: as torch has it. scale, zero_point: of int8 values; scale None: fp32."""

    id: int
    shape: tuple[int, ...]
    scale: float | None = None
    zero_point: int = 0


@dataclass(frozen=True)
class OnGrid:
    """Integers in int8, and the grid, 0 .. 255, that they are on; scale and zero point in the file may be others."""

    value: Value
    scale: float
    zero_point: int

    @property
    def step(self) -> float:
        """The scale that the file has for the value."""
        if self.value.scale is None:
            raise ValueError("a value in fp32 is on no grid")
        return self.value.scale

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape


Known = Value | OnGrid | Tensor
"""What an operator reads: a value in fp32, one on a grid, or a constant."""


class Graph(Protocol):
    """A graph of a runtime."""

    def value(
        self, shape: Sequence[int], scale: float | None = None, zero_point: int = 0, plain: bool = False
    ) -> Value:
        """A new value. plain: in torch's order of axes, even if it is a map."""

    def constant(self, tensor: Tensor, scale: Tensor | float | None = None, zero_point: int = 0, axis: int = 0) -> int:
        """The id of a new constant, in the order of axes given. scale: one of int8, or one for each index of `axis`."""


class Builder(abc.ABC):
    """A graph, and what all operators need to be written into it."""

    runtime: str
    """Its name, for messages."""
    most_joined: int
    """How many values one of its operators puts one after another."""
    graph: Graph

    @abc.abstractmethod
    def input(self, shape: Sequence[int]) -> Value:
        """A new input in fp32."""

    @abc.abstractmethod
    def input_on_grid(self, shape: Sequence[int], scale: float, zero_point: int) -> OnGrid:
        """A new input in int8."""

    @abc.abstractmethod
    def output(self, x: Known) -> None:
        """Make a value an output of the program: int8, of the grid less 128, if it is on one."""

    @abc.abstractmethod
    def program(self, texts: dict[str, str] | None = None) -> bytes:
        """The file of the graph so far. texts: of its metadata by name, where files have some."""

    @abc.abstractmethod
    def loaded(self) -> Callable[..., list[Tensor]]:
        """The graph so far as a function: tensors -> its outputs, in torch's order of axes."""

    @abc.abstractmethod
    def elementwise(self, kind: str, inputs: Sequence[Value], new: Value) -> None:
        """A function, or a sum, difference or product, with broadcasting. kind: XNNPACK's name, Add say."""

    @abc.abstractmethod
    def bounded(self, x: Value, low: float, high: float, new: Value) -> None:
        """Values clamped to what fp32 numbers stand for."""

    @abc.abstractmethod
    def rectified(self, x: OnGrid) -> OnGrid:
        """relu, in integers."""

    @abc.abstractmethod
    def transposed(self, value: Value, axes: Sequence[int], new: Value) -> Value:
        """axes: of what is stored."""

    @abc.abstractmethod
    def stored_as(self, value: Value, stored: Sequence[int], new: Value) -> Value:
        """The stored values, read as another shape of what is stored."""

    @abc.abstractmethod
    def concatenated(self, values: Sequence[Value], axis: int, new: Value) -> None:
        """At most most_joined values; axis: of what is stored."""

    @abc.abstractmethod
    def cut(self, x: Value, offsets: Sequence[int], sizes: Sequence[int], new: Value) -> None:
        """A block of what is stored."""

    @abc.abstractmethod
    def surrounded(self, x: Value, before: Sequence[int], after: Sequence[int], number: float, new: Value) -> None:
        """A number around what is stored: in integers, the zero point."""

    @abc.abstractmethod
    def max_pooled(self, x: Value, size, stride, padding, ends, dilation, new: Value) -> None:
        """padding, ends: rows and columns before the first and behind the last."""

    @abc.abstractmethod
    def fully_connected(self, x: Value, weight: Tensor, weight_scale, bias: Tensor, y: Bounded | None) -> Value:
        """Along the last axis of what is stored, in fp32 or, with weight_scale, in integers. weight: [O, I]."""

    @abc.abstractmethod
    def convolved(
        self, x: Value, shape, weight: Tensor, weight_scale, bias: Tensor, geometry, y: Bounded | None = None, ends=None
    ) -> Value:
        """A convolution of integers or, without weight_scale, of fp32. weight: [O, I/g, kh, kw]. shape: of the result.

        ends: the padding behind the last row and column, where it is not that of the geometry.
        """

    @abc.abstractmethod
    def softmax(self, value: Value, new: Value) -> None:
        """Along the last axis of what is stored."""

    @abc.abstractmethod
    def matmul(self, p: Value, q: Value, new: Value) -> None:
        """Products of matrices, along the last two axes of what is stored."""

    @abc.abstractmethod
    def converted(self, value: Value) -> Value:
        """scale (integer - zero point), of the scale that the file has."""

    @abc.abstractmethod
    def integers(self, x: OnGrid) -> Value:
        """The integers less their zero point in fp32."""

    @abc.abstractmethod
    def rounded(self, x: Value, step: float, scale: float, zero_point: int, lo: int, hi: int) -> OnGrid:
        """Integers of x / step, clamped, as values on a grid of `scale`."""

    @abc.abstractmethod
    def at_scale(self, x: OnGrid, scale: float) -> OnGrid:
        """The same integers, of which the file says that they have this scale."""

    @abc.abstractmethod
    def picked(self, x: OnGrid, shape: Sequence[int], geometry: Sequence[int]) -> OnGrid:
        """The middles of the windows of a convolution: every n-th row or column."""

    @abc.abstractmethod
    def fused(self, kind: str, p: OnGrid, q: OnGrid, unit: float, y: Bounded) -> OnGrid:
        """A sum, difference or product as one integer kernel. unit: the scale of the result in the file."""

    @abc.abstractmethod
    def product(self, p: OnGrid, q: OnGrid, scales: Sequence[float], step: float, y: Bounded) -> OnGrid:
        """A product as one integer kernel, multiplied by what it is multiplied by where both have `scales`."""

    def alike(self, values: Sequence[OnGrid]) -> list[Value]:
        """Integers of one grid, with one scale and one zero point in the file."""
        return [self.at_scale(x, x.scale).value for x in values]

    def looked_up(self, x: OnGrid, table: Tensor, scale: float, zero_point: int) -> OnGrid:
        """The entry of a table, uint8, for each integer of x."""
        raise NotThere(f"{self.runtime} has no tables")

    def as_map(self, value: Value) -> Value:
        """A value in torch's order of axes, in the one that maps have here."""
        return self.transposed(value, (0, 2, 3, 1), self.like(value)) if len(value.shape) == 4 else value

    def in_order_of_torch(self, value: Value) -> Value:
        plain = self.graph.value(value.shape, value.scale, value.zero_point, plain=True)
        return self.transposed(value, (0, 3, 1, 2), plain)

    def like(self, value: Value, shape: Sequence[int] | None = None) -> Value:
        return self.graph.value(value.shape if shape is None else shape, value.scale, value.zero_point)

    def moved(self, x: Known, shape: Sequence[int]) -> tuple[Value, Value, Callable[[Value], Known]]:
        """(the value to read, a new one of that shape, what to make of it) of an operator that keeps a grid."""
        if isinstance(x, OnGrid):
            return x.value, self.like(x.value, shape), lambda new: OnGrid(new, x.scale, x.zero_point)
        value = self.in_float(x)
        return value, self.like(value, shape), lambda new: new

    def in_float(self, x: Known) -> Value:
        """A value in fp32: of integers, scale times integer."""
        if isinstance(x, Value):
            return x
        if isinstance(x, OnGrid):
            return self.converted(self.at_scale(x, x.scale).value)
        if isinstance(x, Tensor):
            stored = x.float().permute(0, 2, 3, 1) if x.ndim == 4 else x.float()
            return Value(self.graph.constant(stored), tuple(x.shape))
        raise NotThere(f"{self.runtime} has no {type(x).__name__} as a tensor")

    def reshaped(self, value: Value, shape: Sequence[int]) -> Value:
        return self.stored_as(value, order(shape), self.like(value, shape))

    def linear(self, x: Value, weight: Tensor, weight_scale, bias: Tensor, y: Bounded | None = None) -> Value:
        """A linear layer along torch's last axis, of integers or, without weight_scale, of fp32. weight: [O, I]."""
        x = self.in_order_of_torch(x) if len(x.shape) == 4 else x
        return self.as_map(self.fully_connected(x, weight, weight_scale, bias, y))


def single(scale: float | None) -> float | None:
    """A scale in fp32, as the file has it. Whoever writes the file may round a tie the other way."""
    return None if scale is None else float(numpy.float32(scale))


def order(shape: Sequence[int]) -> list[int]:
    """The sizes of a value [N, C, H, W] as it is stored; others as they are."""
    n = list(shape)
    return [n[0], n[2], n[3], n[1]] if len(n) == 4 else n


def place(axis: int, shape: Sequence[int]) -> int:
    """Where an axis of torch is in the order in which values are stored."""
    return (0, 3, 1, 2)[axis] if len(shape) == 4 else axis


def convolved_shape(shape: Sequence[int], weight: Tensor, geometry: Sequence[int]) -> list[int]:
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(shape[2:], weight.shape[2:], geometry[:2], geometry[2:4], geometry[4:6], strict=True)
    ]
    return [shape[0], weight.shape[0], *size]
