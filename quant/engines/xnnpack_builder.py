"""Build XNNPACK's graph of a model from values on grids (engines/xnnpack_graph.py has the format).

XNNPACK's multiplier of a convolution is s_x s_w / s_y of the scales that its values have in the file; those need not
be the grid's. A value that was rounded with another step has that step, and the layer that reads it gets weight scales
that make its multiplier the simulation's again.
"""

import math
from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from quant.engines.nhwc_builder import MIDDLE, Bounded, Builder, Known, NotThere, OnGrid, Value, single
from quant.engines.xnnpack_graph import ABSENT, Graph, Loaded


class XnnpackBuilder(Builder):
    """A graph, and what all operators need to be written into it."""

    runtime = "XNNPACK"
    most_joined = 4
    graph: Graph

    def __init__(self) -> None:
        self.graph = Graph()

    def input(self, shape: Sequence[int]) -> Value:
        """A new input in fp32."""
        return self.as_map(self.graph.input(shape))

    def input_on_grid(self, shape: Sequence[int], scale: float, zero_point: int) -> OnGrid:
        """A new input in int8."""
        return OnGrid(self.as_map(self.graph.input(shape, scale, zero_point - MIDDLE)), scale, zero_point)

    def output(self, x: Known) -> None:
        """Make a value an output of the program: int8 if it is on a grid."""
        value = x.value if isinstance(x, OnGrid) else self.in_float(x)
        plain = self.in_order_of_torch(value) if len(value.shape) == 4 else self._copied(value)
        self.graph.output(plain, len(self.graph.inputs))

    def program(self, texts: dict[str, str] | None = None) -> bytes:
        """The .pte file."""
        return self.graph.program()

    def loaded(self) -> Loaded:
        return Loaded(self.program())

    def _copied(self, value: Value) -> Value:
        """A value of its own, for an output: it may not be an input, nor a value that others read."""
        new = self.like(value)
        self._unary("XNNCopy", value, new)
        return new

    def _unary(self, kind: str, x: Value, new: Value, clamp=None, **arguments) -> None:
        self.graph.node(kind, clamp, input_id=x.id, output_id=new.id, **arguments)

    def elementwise(self, kind: str, inputs: Sequence[Value], new: Value, clamp=None) -> None:
        ids = [x.id for x in inputs]
        read = {"input_id": ids[0]} if len(ids) == 1 else {"input1_id": ids[0], "input2_id": ids[1]}
        self.graph.node(f"XNN{kind}", clamp, **read, output_id=new.id)

    def bounded(self, x: Value, low: float, high: float, new: Value) -> None:
        self._unary("XNNClamp", x, new, (low, high))

    def rectified(self, x: OnGrid) -> OnGrid:
        new = self.like(x.value)
        self.bounded(x.value, 0.0, math.inf, new)
        return OnGrid(new, x.scale, x.zero_point)

    def transposed(self, value: Value, axes: Sequence[int], new: Value) -> Value:
        self._unary("XNNStaticTranspose", value, new, num_dims=len(axes), perm=[*axes])
        return new

    def stored_as(self, value: Value, stored: Sequence[int], new: Value) -> Value:
        self._unary("XNNStaticReshape", value, new, num_dims=len(stored), new_shape=[*stored])
        return new

    def concatenated(self, values: Sequence[Value], axis: int, new: Value) -> None:
        ids = {f"input{i + 1}_id": values[i].id if i < len(values) else ABSENT for i in range(5)}
        self.graph.node(f"XNNConcatenate{len(values)}", None, axis=axis, output_id=new.id, **ids)

    def cut(self, x: Value, offsets: Sequence[int], sizes: Sequence[int], new: Value) -> None:
        self._unary("XNNStaticSlice", x, new, num_dims=len(sizes), offsets=[*offsets], sizes=[*sizes])

    def surrounded(self, x: Value, before: Sequence[int], after: Sequence[int], number: float, new: Value) -> None:
        sides = {"pre_paddings": [*before], "post_paddings": [*after]}
        self._unary("XNNStaticConstantPad", x, new, **sides, padding_value=number)

    def max_pooled(self, x: Value, size, stride, padding, ends, dilation, new: Value) -> None:
        if max(stride[0] - size[0], stride[1] - size[1]) > 0:
            raise NotThere("XNNPACK has no max-pool whose windows leave out rows")
        self._unary(
            "XNNMaxPooling2d",
            x,
            new,
            **sides(padding, ends),
            pooling_height=size[0],
            pooling_width=size[1],
            stride_height=stride[0],
            stride_width=stride[1],
            dilation_height=dilation[0],
            dilation_width=dilation[1],
        )

    def softmax(self, value: Value, new: Value) -> None:
        self._unary("XNNSoftmax", value, new)

    def matmul(self, p: Value, q: Value, new: Value) -> None:
        self.elementwise("BatchMatrixMultiply", [p, q], new)

    def converted(self, value: Value) -> Value:
        new = self.graph.value(value.shape)
        self._unary("XNNConvert", value, new)
        return new

    def integers(self, x: OnGrid) -> Value:
        return self.converted(self.at_scale(x, 1.0).value)

    def rounded(self, x: Value, step: float, scale: float, zero_point: int, lo: int, hi: int) -> OnGrid:
        new = self.graph.value(x.shape, step, zero_point - MIDDLE)
        self._unary("XNNConvert", x, new)
        return OnGrid(self._clamped(new, lo, hi), scale, zero_point)

    def _clamped(self, value: Value, lo: int, hi: int) -> Value:
        if (lo, hi) == (0, 255):
            return value
        new = self.like(value)
        self.bounded(value, *bounds(value, lo, hi), new)
        return new

    def at_scale(self, x: OnGrid, scale: float) -> OnGrid:
        """With another scale: a depthwise convolution with ones."""
        if x.step == single(scale):
            return x
        shape = x.shape if len(x.shape) == 4 else (1, x.shape[-1], 1, math.prod(x.shape[:-1]))
        value = x.value if len(x.shape) == 4 else self.reshaped(x.value, shape)
        new = self.graph.value(shape, scale, value.zero_point)
        self._copied_by_ones(value, new, torch.full((shape[1],), scale / x.step), [1, 1, 0, 0, 1, 1, shape[1]])
        return OnGrid(new if len(x.shape) == 4 else self.reshaped(new, x.shape), x.scale, x.zero_point)

    def picked(self, x: OnGrid, shape: Sequence[int], geometry: Sequence[int]) -> OnGrid:
        new = self.like(x.value, shape)
        self._copied_by_ones(x.value, new, torch.ones(x.shape[1]), geometry)
        return OnGrid(new, x.scale, x.zero_point)

    def _copied_by_ones(self, value: Value, new: Value, unit: Tensor, geometry: Sequence[int]) -> None:
        ones = torch.ones(len(unit), 1, 1, 1, dtype=torch.int8)
        self._convolution(value, new, ones, unit, torch.zeros(len(unit)), geometry)

    def fully_connected(self, x: Value, weight: Tensor, weight_scale, bias: Tensor, y: Bounded | None) -> Value:
        new = self._new((*x.shape[:-1], len(weight)), y, plain=True)
        self.graph.node(
            "XNNFullyConnected",
            bounds(new, *_limits(y)),
            input1_id=x.id,
            filter_id=self.graph.constant(weight, weight_scale),
            bias_id=self._bias(x, weight_scale, bias),
            output_id=new.id,
        )
        return new

    def _new(self, shape: Sequence[int], y: Bounded | None, plain: bool = False) -> Value:
        return (
            self.graph.value(shape, plain=plain) if y is None else self.graph.value(shape, y[0], y[1] - MIDDLE, plain)
        )

    def _bias(self, x: Value, weight_scale, bias: Tensor) -> int:
        if weight_scale is None:
            return self.graph.constant(bias)
        return self.graph.constant(bias.to(torch.int32), weight_scale * x.scale)

    def convolved(
        self, x: Value, shape, weight: Tensor, weight_scale, bias: Tensor, geometry, y: Bounded | None = None, ends=None
    ) -> Value:
        new = self._new(shape, y)
        self._convolution(x, new, weight, weight_scale, bias, geometry, *_limits(y), ends)
        return new

    def _convolution(self, x: Value, new: Value, weight, weight_scale, bias, geometry, lo=0, hi=255, ends=None) -> None:
        outputs, inputs, height, width = weight.shape
        stride, padding, dilation, groups = geometry[:2], geometry[2:4], geometry[4:6], geometry[6]
        depthwise = inputs == 1
        stored = weight.permute(1, 2, 3, 0) if depthwise else weight.permute(0, 2, 3, 1)
        self.graph.node(
            "XNNDepthwiseConv2d" if depthwise else "XNNConv2d",
            bounds(new, lo, hi),
            **sides(padding, ends),
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

    def fused(self, kind: str, p: OnGrid, q: OnGrid, unit: float, y: Bounded) -> OnGrid:
        scale, zero_point, lo, hi = y
        new = self.graph.value(torch.broadcast_shapes(p.shape, q.shape), unit, zero_point - MIDDLE)
        self.elementwise(kind, [p.value, q.value], new, None if (lo, hi) == (0, 255) else bounds(new, lo, hi))
        return OnGrid(new, scale, zero_point)

    def product(self, p: OnGrid, q: OnGrid, scales: Sequence[float], step: float, y: Bounded) -> OnGrid:
        unit = output_scale((p.step, q.step), multiplier(scales, scales[0] * scales[1] * step))
        if unit is None:
            unit = scales[0] * scales[1] * step
            p, q = (self.at_scale(x, scale) for x, scale in zip((p, q), scales, strict=True))
        return self.fused("Multiply", p, q, unit, y)


def _limits(y: Bounded | None) -> tuple[int, int]:
    return (0, 255) if y is None else y[2:]


def bounds(value: Value, lo: int, hi: int) -> tuple[float, float]:
    """The values of the least and the greatest integer that an operator may return; without bounds in fp32."""
    if value.scale is None:
        return -math.inf, math.inf
    zero_point = value.zero_point + MIDDLE
    return (lo - zero_point) * value.scale, (hi - zero_point) * value.scale


def sides(before: Sequence[int], after: Sequence[int] | None = None) -> dict[str, int]:
    after = before if after is None else after
    return {
        "padding_top": before[0],
        "padding_left": before[1],
        "padding_bottom": after[0],
        "padding_right": after[1],
    }


def multiplier(scales: Sequence[float], unit: float) -> numpy.float32:
    """What XNNPACK multiplies a product of integers by, in fp32: s_p s_q / s_y, of which s_y is `unit`."""
    p, q = map(numpy.float32, scales)
    return p * q / numpy.float32(unit)


def output_scale(scales: Sequence[float], wanted: numpy.float32) -> float | None:
    """The s_y for which XNNPACK multiplies by exactly `wanted`, the multiplier with which the product was tried.

    A step of a value may be another than its grid's, and near a tie the last bit of the multiplier decides. None if no
    s_y gives it.
    """
    p, q = map(numpy.float32, scales)
    unit = p * q / wanted
    near = (unit, numpy.nextafter(unit, numpy.float32(0)), numpy.nextafter(unit, numpy.float32(numpy.inf)))
    return next((float(one) for one in near if multiplier(scales, float(one)) == wanted), None)
