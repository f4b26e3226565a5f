"""What stays in float, in the operators of a runtime: attention, softmax, norms and sums along axes.

Runtimes add in another order than torch, so these are near torch's values, not equal to them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from quant.engines.nhwc_builder import Builder, Known, NotThere, Value
from quant.engines.nhwc_floats import binary, unary
from quant.engines.nhwc_moves import reshape

aten = torch.ops.aten


def plain(to: Builder, x: Known) -> Value:
    """A value in fp32, stored in torch's order of axes."""
    if isinstance(x, Tensor):
        return Value(to.graph.constant(x.float()), tuple(x.shape))
    value = to.in_float(x)
    return to.in_order_of_torch(value) if len(value.shape) == 4 else value


def along_last(to: Builder, x: Known, axis: int, run: Callable[[Value], Value]) -> Value:
    """`run` on a value whose axis `axis` has been made the last one. It may change the size of that axis."""
    value, rank = plain(to, x), len(x.shape)
    axes = [i for i in range(rank) if i != axis % rank] + [axis % rank]
    back = [axes.index(i) for i in range(rank)]
    return to.as_map(_permuted(to, run(_permuted(to, value, axes)), back))


def _permuted(to: Builder, value: Value, axes: Sequence[int]) -> Value:
    if list(axes) == sorted(axes):
        return value
    return to.transposed(value, axes, to.graph.value([value.shape[i] for i in axes], plain=True))


def softmax(to: Builder, x, axis, dtype=None):
    return along_last(to, x, axis, lambda value: _softmax(to, value))


def _softmax(to: Builder, value: Value) -> Value:
    new = to.graph.value(value.shape, plain=True)
    to.softmax(value, new)
    return new


def _sum_of_last(to: Builder, value: Value) -> Value:
    return to.fully_connected(value, torch.ones(1, value.shape[-1]), None, torch.zeros(1), None)


def sum_(to: Builder, x, axes, keep=False):
    axes = sorted(axis % len(x.shape) for axis in ([axes] if isinstance(axes, int) else axes))
    for axis in axes:
        x = along_last(to, x, axis, lambda value: _sum_of_last(to, value))
    return x if keep else reshape(to, x, [n for i, n in enumerate(x.shape) if i not in axes])


def vector_norm(to: Builder, x, order=2, axes=None, keep=False):
    """The square root of the sum of squares."""
    if order != 2 or axes is None:
        raise NotThere(f"{to.runtime} has no such norm of vectors")
    return unary(to, "SquareRoot", sum_(to, unary(to, "Square", x), axes, keep))


def layer_norm(to: Builder, x, shape, weight=None, bias=None, eps=1e-5, *unused):
    """(x - mean) / sqrt(variance + eps) weight + bias, along the last axis."""
    if len(shape) != 1:
        raise NotThere(f"{to.runtime} has no layer norm over several axes")
    x, count = to.in_float(x), float(shape[0])
    centred = binary(to, "Subtract", x, binary(to, "Div", sum_(to, x, -1, True), count))
    variance = binary(to, "Div", sum_(to, unary(to, "Square", centred), -1, True), count)
    found = binary(to, "Div", centred, unary(to, "SquareRoot", binary(to, "Add", variance, eps)))
    found = found if weight is None else binary(to, "Multiply", found, weight)
    return found if bias is None else binary(to, "Add", found, bias)


def matmul(to: Builder, p, q):
    if len(p.shape) != len(q.shape) or len(p.shape) < 3:
        raise NotThere(f"{to.runtime} has no product of matrices of different ranks")
    return to.as_map(_matmul(to, plain(to, p), plain(to, q)))


def _matmul(to: Builder, p: Value, q: Value) -> Value:
    batch = torch.broadcast_shapes(p.shape[:-2], q.shape[:-2])
    new = to.graph.value((*batch, p.shape[-2], q.shape[-1]), plain=True)
    to.matmul(p, q, new)
    return new


def attention(to: Builder, query, key, value, mask=None, dropout=0.0, is_causal=False, scale=None, enable_gqa=False):
    """softmax(query key^T scale + mask) value"""
    if dropout or is_causal or enable_gqa:
        raise NotThere(f"{to.runtime} has no attention that is causal, grouped or with dropout here")
    rank = len(query.shape)
    turned = _permuted(to, plain(to, key), [*range(rank - 2), rank - 1, rank - 2])
    query = binary(to, "Multiply", query, 1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    scores = to.as_map(_matmul(to, plain(to, query), turned))
    scores = scores if mask is None else binary(to, "Add", scores, mask)
    return to.as_map(_matmul(to, _softmax(to, plain(to, scores)), plain(to, value)))


def linear(to: Builder, x, weight, bias=None):
    return to.linear(to.in_float(x), weight, None, torch.zeros(len(weight)) if bias is None else bias)


ISLANDS: dict[Any, Callable] = {
    aten.softmax.int: softmax,
    aten.sum.dim_IntList: sum_,
    aten.linalg_vector_norm.default: vector_norm,
    aten.layer_norm.default: layer_norm,
    aten.matmul.default: matmul,
    aten.bmm.default: matmul,
    aten.scaled_dot_product_attention.default: attention,
    aten.linear.default: linear,
}
