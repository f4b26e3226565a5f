"""Build XNNPACK's graph of a model from values on grids (engines/xnnpack_graph.py has the format).

Integers are int8: those of the grid less 128. XNNPACK's multiplier of a convolution is s_x s_w / s_y of the scales that
its values have in the file; those need not be the grid's. A value that was rounded with another step has that step, and
the layer that reads it gets weight scales that make its multiplier the simulation's again.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.engines.xnnpack_graph import Graph, Value, order, single

MIDDLE = 128
"""Integers of a grid, 0 .. 255, are stored less this."""


class NotThere(NotImplementedError):
    """XNNPACK has no operator for something in a graph."""


@dataclass(frozen=True)
class OnGrid:
    """Integers in int8, and the scale of the grid that they are on; the value's own may be another."""

    value: Value
    scale: float

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


class Builder:
    """A graph, and what all operators need to be written into it."""

    def __init__(self) -> None:
        self.graph = Graph()

    def input(self, shape: Sequence[int]) -> Value:
        """A new input in fp32."""
        return self.as_map(self.graph.input(shape))

    def input_on_grid(self, shape: Sequence[int], scale: float, zero_point: int) -> OnGrid:
        """A new input in int8."""
        return OnGrid(self.as_map(self.graph.input(shape, scale, zero_point - MIDDLE)), scale)

    def output(self, x: Known) -> None:
        """Make a value an output of the program: int8 if it is on a grid."""
        value = x.value if isinstance(x, OnGrid) else self.in_float(x)
        self.graph.output(self.in_order_of_torch(value), len(self.graph.inputs))

    def as_map(self, value: Value) -> Value:
        """A value in torch's order of axes, in the one that maps have here."""
        return self.transposed(value, (0, 2, 3, 1), self.like(value)) if len(value.shape) == 4 else value

    def in_order_of_torch(self, value: Value) -> Value:
        if len(value.shape) != 4:
            return self.copied(value)
        plain = self.graph.value(value.shape, value.scale, value.zero_point, plain=True)
        return self.transposed(value, (0, 3, 1, 2), plain)

    def copied(self, value: Value) -> Value:
        """A value of its own, for an output: it may not be an input, nor a value that others read."""
        new = self.like(value)
        self.graph.node("XNNCopy", input_id=value.id, output_id=new.id)
        return new

    def transposed(self, value: Value, axes: Sequence[int], new: Value) -> Value:
        self.graph.node("XNNStaticTranspose", num_dims=len(axes), perm=[*axes], input_id=value.id, output_id=new.id)
        return new

    def like(self, value: Value, shape: Sequence[int] | None = None) -> Value:
        return self.graph.value(value.shape if shape is None else shape, value.scale, value.zero_point)

    def moved(self, x: Known, shape: Sequence[int]) -> tuple[Value, Value, Callable[[Value], Known]]:
        """(the value to read, a new one of that shape, what to make of it) of an operator that keeps a grid."""
        if isinstance(x, OnGrid):
            return x.value, self.like(x.value, shape), lambda new: OnGrid(new, x.scale)
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
        raise NotThere(f"XNNPACK has no {type(x).__name__} as a tensor")

    def converted(self, value: Value) -> Value:
        new = self.graph.value(value.shape)
        self.graph.node("XNNConvert", input_id=value.id, output_id=new.id)
        return new

    def rounded(self, x: Value, step: float, scale: float, zero_point: int, lo: int, hi: int) -> OnGrid:
        """Integers of x / step, clamped, as values on a grid of `scale`."""
        new = self.graph.value(x.shape, step, zero_point - MIDDLE)
        self.graph.node("XNNConvert", input_id=x.id, output_id=new.id)
        return OnGrid(self.clamped(new, lo, hi), scale)

    def clamped(self, value: Value, lo: int, hi: int) -> Value:
        if (lo, hi) == (0, 255):
            return value
        new = self.like(value)
        self.graph.node("XNNClamp", clamp=bounds(value, lo, hi), input_id=value.id, output_id=new.id)
        return new

    def at_scale(self, x: OnGrid, scale: float) -> OnGrid:
        """The same integers, of which the file says that they have this scale: a depthwise convolution with ones."""
        if x.step == single(scale):
            return x
        shape = x.shape if len(x.shape) == 4 else (1, x.shape[-1], 1, math.prod(x.shape[:-1]))
        value = x.value if len(x.shape) == 4 else self.reshaped(x.value, shape)
        new = self.graph.value(shape, scale, value.zero_point)
        ones = torch.ones(shape[1], 1, 1, 1, dtype=torch.int8)
        unit = torch.full((shape[1],), scale / x.step)
        self.convolved(value, new, ones, unit, torch.zeros(shape[1]), [1, 1, 0, 0, 1, 1, shape[1]])
        return OnGrid(new if len(x.shape) == 4 else self.reshaped(new, x.shape), x.scale)

    def reshaped(self, value: Value, shape: Sequence[int]) -> Value:
        new = self.like(value, shape)
        self.graph.node(
            "XNNStaticReshape", num_dims=len(shape), new_shape=order(shape), input_id=value.id, output_id=new.id
        )
        return new

    def linear(
        self, x: Value, weight, weight_scale, bias, y: tuple[float | None, int] = (None, 0), lo=0, hi=255
    ) -> Value:
        """A linear layer of integers or, without weight_scale, of fp32. weight: [O, I]. y: scale, zero point."""
        plain = len(x.shape) == 4  # along the last axis of torch
        x = self.in_order_of_torch(x) if plain else x
        new = self.graph.value((*x.shape[:-1], len(weight)), y[0], y[1], plain)
        self.graph.node(
            "XNNFullyConnected",
            bounds(new, lo, hi),
            input1_id=x.id,
            filter_id=self.graph.constant(weight, weight_scale),
            bias_id=self._bias(x, weight_scale, bias),
            output_id=new.id,
        )
        return self.as_map(new)

    def _bias(self, x: Value, weight_scale, bias) -> int:
        if weight_scale is None:
            return self.graph.constant(bias)
        return self.graph.constant(bias.to(torch.int32), weight_scale * x.scale)

    def convolved(self, x: Value, new: Value, weight, weight_scale, bias, geometry, lo=0, hi=255, ends=None) -> None:
        """A convolution of integers or, without weight_scale, of fp32. weight: [O, I/g, kh, kw]."""
        outputs, inputs, height, width = weight.shape
        stride, padding, dilation, groups = geometry[:2], geometry[2:4], geometry[4:6], geometry[6]
        depthwise = inputs == 1
        stored = weight.permute(1, 2, 3, 0) if depthwise else weight.permute(0, 2, 3, 1)
        self.graph.node(
            "XNNDepthwiseConv2d" if depthwise else "XNNConv2d",
            bounds(new, lo, hi),
            **sides("padding", padding, ends),
            kernel_height=height,
            kernel_width=width,
            subsampling_height=stride[0],
            subsampling_width=stride[1],
            dilation_height=dilation[0],
            dilation_width=dilation[1],
            group_input_channels=inputs,
            group_output_channels=outputs // groups,
            groups=groups,
            adjustment_height=0,
            adjustment_width=0,
            input1_id=x.id,
            filter_id=self.graph.constant(stored, weight_scale, axis=3 if depthwise else 0),
            bias_id=self._bias(x, weight_scale, bias),
            output_id=new.id,
        )


def bounds(value: Value, lo: int, hi: int) -> tuple[float, float]:
    """The values of the least and the greatest integer that an operator may return; without bounds in fp32."""
    if value.scale is None:
        return -math.inf, math.inf
    zero_point = value.zero_point + MIDDLE
    return (lo - zero_point) * value.scale, (hi - zero_point) * value.scale


def sides(name: str, before: Sequence[int], after: Sequence[int] | None = None) -> dict[str, int]:
    after = before if after is None else after
    return {
        f"{name}_top": before[0],
        f"{name}_left": before[1],
        f"{name}_bottom": after[0],
        f"{name}_right": after[1],
    }


def place(axis: int, shape: Sequence[int]) -> int:
    """Where an axis of torch is in the order in which values are stored."""
    return (0, 3, 1, 2)[axis] if len(shape) == 4 else axis


def convolved_shape(shape: Sequence[int], weight: Tensor, geometry: Sequence[int]) -> list[int]:
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(shape[2:], weight.shape[2:], geometry[:2], geometry[2:4], geometry[4:6], strict=True)
    ]
    return [shape[0], weight.shape[0], *size]
