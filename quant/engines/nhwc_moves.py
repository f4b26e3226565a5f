"""Torch's operators that move or select values, in those of a runtime. They keep the grid of what they read."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from quant.engines.nhwc_builder import Builder, NotThere, OnGrid, Value, order, place

aten = torch.ops.aten


def relu(to: Builder, x):
    if isinstance(x, OnGrid):
        return to.rectified(x)
    read, new, made = to.moved(x, x.shape)
    to.bounded(read, 0.0, math.inf, new)
    return made(new)


def max_pool2d(to: Builder, x, size, stride=(), padding=(0, 0), dilation=(1, 1), ceil_mode=False):
    size, stride, padding, dilation = pair(size), pair(stride or size), pair(padding), pair(dilation)
    axes = zip(x.shape[2:], size, stride, padding, dilation, strict=True)
    windows, ends = zip(*(pooled(n, k, s, p, d, ceil_mode) for n, k, s, p, d in axes), strict=True)
    read, new, made = to.moved(x, (*x.shape[:2], *windows))
    to.max_pooled(read, size, stride, padding, ends, dilation, new)
    return made(new)


def reshape(to: Builder, x, shape):
    known = -math.prod(shape)
    shape = [math.prod(x.shape) // known if n == -1 else n for n in shape] if -1 in shape else [*shape]
    if isinstance(x, Tensor):
        return x.reshape(shape)
    read, _, made = to.moved(x, x.shape)
    if len(read.shape) == 4 and math.prod(read.shape[2:]) > 1:
        plain = to.graph.value(read.shape, read.scale, read.zero_point, plain=True)
        read = to.transposed(read, (0, 3, 1, 2), plain)
    if len(shape) != 4 or math.prod(shape[2:]) == 1:
        return made(to.reshaped(read, shape))
    plain = to.graph.value(shape, read.scale, read.zero_point, plain=True)
    return made(to.as_map(to.stored_as(read, shape, plain)))


def flatten(to: Builder, x, start=0, end=-1):
    end = end % len(x.shape)
    return reshape(to, x, [*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]])


def squeeze(to: Builder, x, axes):
    gone = {axis % len(x.shape) for axis in ([axes] if isinstance(axes, int) else axes)}
    return reshape(to, x, [n for i, n in enumerate(x.shape) if i not in gone or n != 1])


def unsqueeze(to: Builder, x, axis):
    shape = [*x.shape]
    shape.insert(axis % (len(shape) + 1), 1)
    return reshape(to, x, shape)


def permute(to: Builder, x, axes):
    """Maps stay maps, with their axes stored as torch has them in between."""
    axes = [axis % len(axes) for axis in axes]
    read, _, made = to.moved(x, x.shape)
    shape = [x.shape[axis] for axis in axes]
    source = [0, 3, 1, 2] if len(axes) == 4 else [*range(len(axes))]  # where each axis of torch is stored
    order_of = [0, 2, 3, 1] if len(axes) == 4 else [*range(len(axes))]  # which of the new axes is stored where
    return made(to.transposed(read, [source[axes[i]] for i in order_of], to.like(read, shape)))


def transpose(to: Builder, x, one, other):
    axes = [*range(len(x.shape))]
    axes[one], axes[other] = axes[other], axes[one]
    return permute(to, x, axes)


def same(to: Builder, x, *rest, **named):
    return x


def cast(to: Builder, x, *given, **named):
    """To another device or to fp32, which values here have."""
    if any(isinstance(one, torch.dtype) and one != torch.float32 for one in (*given, *named.values())):
        raise NotThere(f"{to.runtime} has no other types of numbers here")
    return x


def joined(to: Builder, values, axis=0):
    axis %= len(values[0].shape)
    shape = [*values[0].shape]
    shape[axis] = sum(x.shape[axis] for x in values)
    if len(values) > to.most_joined:
        return joined(to, [joined(to, values[: to.most_joined], axis), *values[to.most_joined :]], axis)
    if len(values) == 1:
        return values[0]
    grids = {(x.scale, x.zero_point) if isinstance(x, OnGrid) else None for x in values}
    on_grid = len(grids) == 1 and None not in grids
    reads = to.alike(values) if on_grid else [to.in_float(x) for x in values]
    new = to.like(reads[0], shape)
    to.concatenated(reads, place(axis, shape), new)
    return OnGrid(new, values[0].scale, values[0].zero_point) if on_grid else new


def sliced(to: Builder, x, axis=0, start=None, end=None, step=1):
    size, axis = x.shape[axis], axis % len(x.shape)
    start, end, _ = slice(start, end).indices(size)
    if step > 1 and isinstance(x, OnGrid) and len(x.shape) == 4 and axis > 1:
        return strided(to, sliced(to, x, axis, start, end) if (start, end) != (0, size) else x, axis, step)
    if step > 1:
        return stepped(to, x, axis, start, end, step)
    if (start, end) == (0, size):
        return x
    shape = [*x.shape]
    shape[axis] = end - start
    read, new, made = to.moved(x, shape)
    offsets = [0] * len(shape)
    offsets[place(axis, shape)] = start
    to.cut(read, offsets, order(shape), new)
    return made(new)


def stepped(to: Builder, x, axis: int, start: int, end: int, step: int):
    """Every step-th index of an axis, which is split into two for that: (index // step, index % step)."""
    size, stored = x.shape[axis], order(x.shape)
    if size % step:
        raise NotThere(f"{to.runtime} has no slices with a step that does not divide the size")
    at, shape = place(axis, x.shape), [*x.shape]
    shape[axis] = size // step
    split_up = _stored_as(to, x, (*stored[:at], size // step, step, *stored[at + 1 :]))
    every = _stored_as(to, sliced(to, split_up, at + 1, start % step, start % step + 1), shape)
    return sliced(to, every, axis, start // step, start // step - (start - end) // step)


def strided(to: Builder, x: OnGrid, axis: int, step: int) -> OnGrid:
    """Every step-th row or column: a depthwise convolution with ones."""
    c, shape = x.shape[1], [*x.shape]
    shape[axis] = -(-shape[axis] // step)
    geometry = [step if axis == 2 else 1, step if axis == 3 else 1, 0, 0, 1, 1, c]
    return to.picked(x, shape, geometry)


def chunk(to: Builder, x, count, axis=0):
    return split(to, x, -(-x.shape[axis] // count), axis)


def split(to: Builder, x, sizes, axis=0):
    whole = x.shape[axis]
    sizes = [min(sizes, whole - i) for i in range(0, whole, sizes)] if isinstance(sizes, int) else sizes
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [sliced(to, x, axis, end - size, end) for size, end in zip(sizes, ends, strict=True)]


def item(to: Builder, x, index):
    return x[index]


def select(to: Builder, x, axis, index):
    index %= x.shape[axis]
    return squeeze(to, sliced(to, x, axis, index, index + 1), axis)


def padded(to: Builder, x, ends, mode="constant", value=None):
    if mode != "constant" or min(ends) < 0:
        raise NotThere(f"{to.runtime} has no padding of the mode {mode}, or by less than nothing")
    shape, before, after = [*x.shape], [0] * len(x.shape), [0] * len(x.shape)
    for i in range(len(ends) // 2):
        axis = len(shape) - 1 - i
        shape[axis] += ends[2 * i] + ends[2 * i + 1]
        before[place(axis, shape)], after[place(axis, shape)] = ends[2 * i], ends[2 * i + 1]
    x = x if not value else to.in_float(x)
    read, new, made = to.moved(x, shape)
    to.surrounded(read, before, after, float(value or 0), new)
    return made(new)


def expand(to: Builder, x, shape, **unused):
    """A product with ones, exact in integers, too."""
    new_axes = len(shape) - len(x.shape)
    shape = [x.shape[i - new_axes] if n == -1 else n for i, n in enumerate(shape)]
    if isinstance(x, Tensor):
        return x.expand(shape)
    x = reshape(to, x, [1] * new_axes + [*x.shape]) if new_axes else x
    sides = [1 if n == m else n for n, m in zip(shape, x.shape, strict=True)]
    if math.prod(sides) == 1:
        return x
    read, new, made = to.moved(x, shape)
    on_grid = isinstance(x, OnGrid)
    ones = torch.ones(sides, dtype=torch.int8 if on_grid else torch.float32)
    stored = ones.permute(0, 2, 3, 1) if len(sides) == 4 else ones
    step = 1.0 if on_grid else None
    to.elementwise("Multiply", [read, Value(to.graph.constant(stored, step), tuple(sides), step)], new)
    return made(new)


def unbind(to: Builder, x, axis=0):
    return [select(to, x, axis, i) for i in range(x.shape[axis])]


def stack(to: Builder, values, axis=0):
    return joined(to, [unsqueeze(to, x, axis) for x in values], axis)


def roll(to: Builder, x, shifts, axes):
    for shift, axis in zip(shifts, axes, strict=True):
        cut = -shift % x.shape[axis]
        x = joined(to, [sliced(to, x, axis, cut), sliced(to, x, axis, 0, cut)], axis) if cut else x
    return x


def dropout(to: Builder, x, share, is_training):
    if is_training:
        raise NotThere(f"{to.runtime} has no dropout")
    return x


def nearest(to: Builder, x, size=None, factors=None):
    """Each column, then each row, as often as its size grows: copies behind one another, read as another shape."""
    size = [int(n * f) for n, f in zip(x.shape[2:], factors, strict=True)] if size is None else size
    high, wide = (n // whole for n, whole in zip(size, x.shape[2:], strict=True))
    if [high * x.shape[2], wide * x.shape[3]] != [*size]:
        raise NotThere(f"{to.runtime} has no nearest upsampling by other than whole factors")
    n, c, h, w = x.shape
    columns = joined(to, [_stored_as(to, x, (n, h * w, c))] * wide, 2)
    rows = joined(to, [_stored_as(to, columns, (n, h, w * wide * c))] * high, 2)
    return _stored_as(to, rows, (n, c, *size))


def _stored_as(to: Builder, x, shape):
    """The stored values of x, read as another shape."""
    read, _, made = to.moved(x, x.shape)
    return made(to.reshaped(read, shape))


def pair(numbers: int | Sequence[int]) -> list[int]:
    numbers = [numbers] if isinstance(numbers, int) else [*numbers]
    return numbers * 2 if len(numbers) == 1 else numbers


def pooled(n: int, k: int, s: int, p: int, d: int, ceil_mode: bool) -> tuple[int, int]:
    """(the number of windows, the padding behind the last value) of a pool along an axis."""
    reach = d * (k - 1) + 1
    windows = (n + 2 * p - reach + (s - 1 if ceil_mode else 0)) // s + 1
    if ceil_mode and (windows - 1) * s >= n + p:
        windows -= 1
    return windows, max(p, (windows - 1) * s + reach - n - p)


MOVES: dict[Any, Callable] = {
    operator.getitem: item,
    aten.relu.default: relu,
    aten.max_pool2d.default: max_pool2d,
    aten.reshape.default: reshape,
    aten.view.default: reshape,
    aten.flatten.using_ints: flatten,
    aten.squeeze.dim: squeeze,
    aten.squeeze.dims: squeeze,
    aten.unsqueeze.default: unsqueeze,
    aten.transpose.int: transpose,
    aten.permute.default: permute,
    aten.alias.default: same,
    aten.dropout.default: dropout,
    aten.expand.default: expand,
    aten.expand_as.default: lambda to, x, other: expand(to, x, [*other.shape]),
    aten.new_zeros.default: lambda to, x, shape, **unused: torch.zeros(shape),
    aten.roll.default: roll,
    aten.unbind.int: unbind,
    aten.stack.default: stack,
    aten.swapaxes.default: transpose,
    aten.clone.default: same,
    aten.to.dtype: cast,
    aten.to.device: cast,
    aten._assert_tensor_metadata.default: same,
    aten.upsample_nearest2d.vec: nearest,
    aten.contiguous.default: same,
    aten.cat.default: joined,
    aten.slice.Tensor: sliced,
    aten.select.int: select,
    aten.chunk.default: chunk,
    aten.split.Tensor: split,
    aten.split_with_sizes.default: split,
    aten.pad.default: padded,
    aten.constant_pad_nd.default: lambda to, x, ends, value=0: padded(to, x, ends, "constant", value),
}
