"""Torch's operators in fp32, in those of a runtime."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quant.engines.nhwc_builder import Builder, NotThere, Value
from quant.engines.nhwc_moves import pair, pooled, reshape

aten = torch.ops.aten


def binary(to: Builder, kind, p, q):
    p, q = (torch.tensor([x]) if isinstance(x, int | float) else x for x in (p, q))
    rank = max(len(p.shape), len(q.shape))
    p, q = (to.in_float(_of_rank(to, x, rank)) for x in (p, q))
    new = to.graph.value(torch.broadcast_shapes(p.shape, q.shape))
    to.elementwise(kind, [p, q], new)
    return new


def _of_rank(to: Builder, x, rank: int):
    """With axes of size 1 in front, as torch broadcasts: runtimes do so along the order in which values are stored."""
    if len(x.shape) == rank or math.prod(x.shape) == 1:
        return x
    return reshape(to, x, [1] * (rank - len(x.shape)) + [*x.shape])


def unary(to: Builder, kind, x):
    x = to.in_float(x)
    new = to.graph.value(x.shape)
    to.elementwise(kind, [x], new)
    return new


def hardsigmoid(to: Builder, x):
    x = binary(to, "Add", x, 3.0)
    return binary(to, "Div", bounded(to, x, 0.0, 6.0), 6.0)


def bounded(to: Builder, x, low=None, high=None):
    x = to.in_float(x)
    new = to.graph.value(x.shape)
    to.bounded(x, -math.inf if low is None else low, math.inf if high is None else high, new)
    return new


def silu(to: Builder, x):
    return binary(to, "Multiply", x, unary(to, "Sigmoid", x))


def elu(to: Builder, x, alpha=1.0, scale=1.0, inner=1.0):
    """scale (max(x, 0) + min(alpha (exp(inner x) - 1), 0))"""
    below = binary(to, "Multiply", bounded(to, x, high=0.0), inner)
    below = binary(to, "Subtract", unary(to, "Exp", below), 1.0)
    below = binary(to, "Multiply", below, alpha)
    return binary(to, "Multiply", binary(to, "Add", bounded(to, x, 0.0), below), scale)


def leaky_relu(to: Builder, x, slope=0.01):
    return prelu(to, x, torch.tensor([slope]))


def prelu(to: Builder, x, slope):
    slope = slope.reshape(1, -1, *[1] * (len(x.shape) - 2)) if slope.numel() > 1 else slope
    below = binary(to, "Multiply", bounded(to, x, high=0.0), slope)
    return binary(to, "Add", bounded(to, x, 0.0), below)


def softplus(to: Builder, x, beta=1.0, threshold=20.0):
    """(max(z, 0) + log(1 + exp(-|z|))) / beta, z = beta x: what torch computes too, before and after its threshold."""
    z = binary(to, "Multiply", x, beta)
    tail = unary(to, "Exp", unary(to, "Negate", unary(to, "Abs", z)))
    tail = unary(to, "Log", binary(to, "Add", tail, 1.0))
    return binary(to, "Div", binary(to, "Add", bounded(to, z, 0.0), tail), beta)


def mish(to: Builder, x):
    return binary(to, "Multiply", x, unary(to, "Tanh", softplus(to, x)))


def power(to: Builder, x, exponent):
    if exponent != int(exponent) or not 1 <= exponent <= 8:
        raise NotThere(f"{to.runtime} has no power of {exponent}")
    found = x = to.in_float(x)
    for _ in range(int(exponent) - 1):
        found = binary(to, "Multiply", found, x)
    return found


def gelu(to: Builder, x, approximate="none"):
    if approximate == "none":
        return unary(to, "Gelu", x)
    cube = binary(to, "Multiply", power(to, x, 3), 0.044715)
    inner = binary(to, "Multiply", binary(to, "Add", x, cube), math.sqrt(2 / math.pi))
    half = binary(to, "Multiply", x, 0.5)
    return binary(to, "Multiply", half, binary(to, "Add", unary(to, "Tanh", inner), 1.0))


def mean(to: Builder, x, axes=None, keep=False):
    """Of the integers of maps: exact sums, divided."""
    axes = sorted(axis % len(x.shape) for axis in (axes or range(len(x.shape))))
    if len(x.shape) != 4 or axes != [2, 3]:
        raise NotThere(f"{to.runtime} has no such mean")
    area = x.shape[2] * x.shape[3]
    whole = averaged(to, x, torch.ones(1, area), (1, 1), torch.tensor([float(area)]))
    return whole if keep else reshape(to, whole, x.shape[:2])


def averaged(to: Builder, x, windows: Tensor, size: Sequence[int], *divisors: Tensor) -> Value:
    """The averages over `windows` [H' W', H W] of ones and zeros: sums by a linear layer, then divisions as torch's."""
    x = to.in_float(x)
    n, c, h, w = x.shape
    rows = to.graph.value((n, c, h * w))
    flat = to.reshaped(x, (n, h * w, c))
    to.transposed(flat, (0, 2, 1), rows)
    sums = to.linear(rows, windows, None, torch.zeros(len(windows)))
    means = functools.reduce(functools.partial(binary, to, "Div"), divisors, sums)
    back = to.transposed(means, (0, 2, 1), to.graph.value((n, len(windows), c)))
    return to.reshaped(back, (n, c, *size))


def adaptive_avg_pool2d(to: Builder, x, size):
    size = [whole if part is None else part for part, whole in zip(pair(size), x.shape[2:], strict=True)]
    if size == [1, 1]:
        return mean(to, x, [2, 3], True)
    rows, columns = (adaptive_windows(*sides) for sides in zip(x.shape[2:], size, strict=True))
    high, wide = rows.sum(1)[:, None], columns.sum(1)[None]  # of each window
    counts = (high.expand(size).flatten(), wide.expand(size).flatten())
    return averaged(to, x, torch.kron(rows, columns), size, *counts)


def avg_pool2d(to: Builder, x, size, stride=(), padding=(0, 0), ceil_mode=False, count_include_pad=True, divisor=None):
    """Sums by a depthwise convolution with ones, divided by the counts that torch divides by."""
    size, stride, padding = pair(size), pair(stride or size), pair(padding)
    x = to.in_float(x)
    c, axes = x.shape[1], zip(x.shape[2:], size, stride, padding, strict=True)
    windows, ends = zip(*(pooled(n, k, s, p, 1, ceil_mode) for n, k, s, p in axes), strict=True)
    geometry = [*stride, *padding, 1, 1, c]
    shape = (x.shape[0], c, *windows)
    sums = to.convolved(x, shape, torch.ones(c, 1, *size), None, torch.zeros(c), geometry, ends=ends)
    ones = torch.ones(1, 1, *x.shape[2:])
    pool = functools.partial(F.avg_pool2d, ones, size, stride, padding, ceil_mode, count_include_pad)
    return binary(to, "Div", sums, (pool(divisor_override=1) / pool(divisor_override=divisor)).round())


def adaptive_windows(whole: int, parts: int) -> Tensor:
    """[parts, whole]: ones where torch's adaptive pools average."""
    windows = torch.zeros(parts, whole)
    for i in range(parts):
        windows[i, i * whole // parts : -(-(i + 1) * whole // parts)] = 1
    return windows


SELU = 1.6732632423543772, 1.0507009873554805
"""alpha and scale of SELU."""


def _unary(kind: str) -> Callable:
    return lambda to, x: unary(to, kind, x)


def _binary(kind: str) -> Callable:
    return lambda to, p, q: binary(to, kind, p, q)


FLOATS: dict[Any, Callable] = {
    aten.add.Tensor: _binary("Add"),
    aten.sub.Tensor: _binary("Subtract"),
    aten.mul.Tensor: _binary("Multiply"),
    aten.div.Tensor: _binary("Div"),
    aten.sigmoid.default: _unary("Sigmoid"),
    aten.tanh.default: _unary("Tanh"),
    aten.hardswish.default: _unary("Hardswish"),
    aten.abs.default: _unary("Abs"),
    aten.neg.default: _unary("Negate"),
    aten.square.default: _unary("Square"),
    aten.gelu.default: gelu,
    aten.elu.default: elu,
    aten.selu.default: lambda to, x: elu(to, x, *SELU),
    aten.celu.default: lambda to, x, alpha=1.0: elu(to, x, alpha, 1.0, 1 / alpha),
    aten.leaky_relu.default: leaky_relu,
    aten.prelu.default: prelu,
    aten.softplus.default: softplus,
    aten.mish.default: mish,
    aten.pow.Tensor_Scalar: power,
    aten.rsub.Tensor: lambda to, p, q: binary(to, "Subtract", q, p),
    aten.rsub.Scalar: lambda to, p, q: binary(to, "Subtract", q, p),
    aten.hardsigmoid.default: hardsigmoid,
    aten.hardtanh.default: bounded,
    aten.clamp.default: bounded,
    aten.clamp_min.default: bounded,
    aten.silu.default: silu,
    aten.mean.dim: mean,
    aten.mean.default: mean,
    aten.adaptive_avg_pool2d.default: adaptive_avg_pool2d,
    aten.avg_pool2d.default: avg_pool2d,
}
