"""Max-pooling of plain uint8. torch.max_pool2d counts the pixels of a uint8 map in uint8, and so refuses large maps."""

import functools
from typing import Any

import torch
import torch.nn.functional as F

from quant.engines.base import NativeTensor, Operator
from quant.graph.node_view import NodeView


def max_pooling(view: NodeView) -> Operator:
    """The operator native -> native that a call of max_pool2d is: the largest of shifted maps, rows first."""
    size = view.argument(1, "kernel_size")
    rest = view.argument(2, "stride") or size, view.argument(3, "padding", 0), view.argument(4, "dilation", 1)
    rows, columns = zip(*map(_pair, (size, *rest)), strict=True)
    ceil_mode = bool(view.argument(5, "ceil_mode", False))
    return lambda x: _largest(_largest(x, 2, rows, ceil_mode), 3, columns, ceil_mode)


def _largest(x: NativeTensor, axis: int, window: tuple[int, ...], ceil_mode: bool) -> NativeTensor:
    """The largest value in each window along an axis. Padding is 0, the least of uint8.

    window: size, stride, padding, dilation.
    """
    size, stride, padding, dilation = window
    length, reach = int(x.shape[axis]), dilation * (size - 1) + 1
    last = _last_start(length + 2 * padding - reach, stride, length + padding, ceil_mode)
    after = max(0, last + reach - length - padding)
    if padding or after:
        x = F.pad(x, (padding, after) if axis == 3 else (0, 0, padding, after))
    shifted = (x.narrow(axis, dilation * i, last + 1) for i in range(size))
    return functools.reduce(torch.maximum, (y[:, :, ::stride] if axis == 2 else y[..., ::stride] for y in shifted))


def _last_start(room: int, stride: int, end: int, ceil_mode: bool) -> int:
    """Where the last window starts, as torch.max_pool2d counts: before the `end` of the map and its first padding."""
    last = (-(-room // stride) if ceil_mode else room // stride) * stride
    return last - stride if last >= end else last


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
