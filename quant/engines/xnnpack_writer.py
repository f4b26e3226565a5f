"""Write a graph that engines/executorch.py made in XNNPACK's operators: those of engines/qdq_operators.py and
engines/xnnpack_operators.py here, torch's in xnnpack_moves.py and xnnpack_floats.py.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy
import torch
from torch import fx
from torch._ops import OpOverload

from quant.engines import xnnpack_operators  # noqa: F401  the operators of TABLE
from quant.engines.xnnpack_builder import MIDDLE, Builder, Known, NotThere, OnGrid, bounds, convolved_shape
from quant.engines.xnnpack_floats import FLOATS, binary
from quant.engines.xnnpack_graph import Value
from quant.engines.xnnpack_islands import ISLANDS
from quant.engines.xnnpack_moves import MOVES, joined

qdq = torch.ops.qdq


def quantize(to: Builder, x, step, scale, zero_point, lo, hi):
    return to.rounded(to.in_float(x), step, scale, zero_point, lo, hi)


def kept(to: Builder, x, scale, zero_point):
    return x if isinstance(x, OnGrid) else to.rounded(to.in_float(x), scale, scale, zero_point, 0, 255)


def unfused(to: Builder, x, scale, zero_point):
    return x


def integers(to: Builder, x, scale, zero_point):
    return to.converted(to.at_scale(kept(to, x, scale, zero_point), 1.0).value)


def concatenate(to: Builder, values, axis, scale, zero_point):
    return joined(to, [to.at_scale(kept(to, x, scale, zero_point), scale) for x in values], axis)


def sum_(to: Builder, p, q, scales, zero_points, sign, scale, zero_point, lo, hi):
    p, q = (to.at_scale(kept(to, *given), given[1]) for given in zip((p, q), scales, zero_points, strict=True))
    new = to.graph.value(torch.broadcast_shapes(p.shape, q.shape), scale, zero_point - MIDDLE)
    kind = "XNNAdd" if sign > 0 else "XNNSubtract"
    return _fused(to, kind, p.value, q.value, new, scale, lo, hi)


def product(to: Builder, p, q, scales, zero_points, step, scale, zero_point, lo, hi):
    tried = multiplier(scales, scales[0] * scales[1] * step)
    p, q = (kept(to, *given) for given in zip((p, q), scales, zero_points, strict=True))
    unit = output_scale((p.step, q.step), tried)
    if unit is None:
        unit = scales[0] * scales[1] * step
        p, q = (to.at_scale(x, grid_scale) for x, grid_scale in zip((p, q), scales, strict=True))
    new = to.graph.value(torch.broadcast_shapes(p.shape, q.shape), unit, zero_point - MIDDLE)
    return _fused(to, "XNNMultiply", p.value, q.value, new, scale, lo, hi)


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


def _fused(to: Builder, kind, p: Value, q: Value, new: Value, scale, lo, hi):
    clamp = None if (lo, hi) == (0, 255) else bounds(new, lo, hi)
    to.graph.node(kind, clamp, input1_id=p.id, input2_id=q.id, output_id=new.id)
    return OnGrid(new, scale)


def shuffle(to: Builder, x, groups, scale, zero_point):
    x = kept(to, x, scale, zero_point)
    n, c, h, w = x.shape
    parts = to.reshaped(x.value, (n, h, w, groups, c // groups))
    turned = to.transposed(parts, (0, 1, 2, 4, 3), to.like(parts, (n, h, w, c // groups, groups)))
    return OnGrid(to.reshaped(turned, x.shape), scale)


def layer(
    to: Builder, x, weight, weight_scale, bias, bias_scale, x_scale, x_zero_point, geometry, scale, zero_point, lo, hi
):
    weight = weight.unsqueeze(2) if geometry and weight.ndim == 3 else weight
    value = kept(to, x, x_scale, x_zero_point).value
    weight_scale = (weight_scale.double() * x_scale / value.scale).float()
    if not geometry:
        return OnGrid(to.linear(value, weight.t(), weight_scale, bias, (scale, zero_point - MIDDLE), lo, hi), scale)
    new = to.graph.value(convolved_shape(value.shape, weight, geometry), scale, zero_point - MIDDLE)
    to.convolved(value, new, weight, weight_scale, bias, geometry, lo, hi)
    return OnGrid(new, scale)


def last_layer(to: Builder, x, weight, weight_scale, bias, bias_scale, x_scale, x_zero_point, geometry):
    """In fp32 on integers, whose sums are exact, for XNNPACK rounds those of int8 to int8."""
    n = integers(to, x, x_scale, x_zero_point)
    weight, bias = weight.float(), bias.float()
    if geometry:
        weight = weight.unsqueeze(2) if weight.ndim == 3 else weight
        sums = to.graph.value(convolved_shape(n.shape, weight, geometry))
        to.convolved(n, sums, weight, None, bias, geometry)
        return binary(to, "XNNMultiply", sums, bias_scale.view(1, -1, 1, 1))
    return binary(to, "XNNMultiply", to.linear(n, weight.t(), None, bias), bias_scale)


INTEGERS: dict[Any, Callable] = {
    qdq.quantize.default: quantize,
    qdq.to_fuse.default: quantize,
    qdq.kept.default: kept,
    qdq.unfused.default: unfused,
    qdq.concatenate.default: concatenate,
    qdq.integers.default: integers,
    qdq.layer.default: layer,
    qdq.last_layer.default: last_layer,
    qdq.sum.default: sum_,
    qdq.product.default: product,
    qdq.shuffle.default: shuffle,
}
TABLE = INTEGERS | MOVES | FLOATS | ISLANDS
"""For each operator of an exported module, the function that writes it."""


def write(to: Builder, module: fx.GraphModule, inputs: Sequence[Known]) -> Known:
    """Write an exported module with these inputs. Returns its output. Raises NotThere where XNNPACK has no operator."""
    known: dict[fx.Node, Any] = {}
    given = iter(inputs)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            known[node] = next(given)
        elif node.op == "get_attr":
            known[node] = operator.attrgetter(node.target)(module)
        elif node.op == "call_function":
            known[node] = _written(to, node, known)
        elif node.op == "output":
            (last,) = node.args[0]
            return known[last]
    raise ValueError("a graph without an output")


def _written(to: Builder, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    called: Any = node.target
    arguments = fx.node.map_arg(node.args, known.__getitem__)
    named = fx.node.map_arg(node.kwargs, known.__getitem__)
    if not any(isinstance(known[read], Value | OnGrid | list) for read in node.all_input_nodes):
        return called(*arguments, **named)  # of constants alone
    target = _not_in_place(called)
    if target not in TABLE:
        raise NotThere(f"XNNPACK has no {called}")
    found = TABLE[target](to, *arguments, **named)
    if target is not called:
        known[node.all_input_nodes[0]] = found
    return found


def _not_in_place(target: Any) -> Any:
    """relu for relu_: the operator that returns what this one overwrites."""
    if not isinstance(target, OpOverload) or not target._schema.name.endswith("_"):
        return target
    packet = getattr(torch.ops.aten, target._schema.name.removeprefix("aten::").removesuffix("_"))
    return getattr(packet, target._schema.overload_name or "default")
