"""Write a graph that engines/executorch.py or litert.py made in the operators of its runtime: those of
engines/qdq_operators.py and pair_operators.py here, torch's in nhwc_moves.py, nhwc_floats.py and nhwc_islands.py.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from quant.engines import pair_operators  # noqa: F401  the operators of TABLE
from quant.engines.nhwc_builder import Builder, Known, NotThere, OnGrid, Value, convolved_shape
from quant.engines.nhwc_floats import FLOATS, binary
from quant.engines.nhwc_islands import ISLANDS
from quant.engines.nhwc_moves import MOVES, joined

qdq = torch.ops.qdq


def quantize(to: Builder, x, step, scale, zero_point, lo, hi):
    return to.rounded(to.in_float(x), step, scale, zero_point, lo, hi)


def kept(to: Builder, x, scale, zero_point):
    return x if isinstance(x, OnGrid) else to.rounded(to.in_float(x), scale, scale, zero_point, 0, 255)


def unfused(to: Builder, x, scale, zero_point):
    return x


def integers(to: Builder, x, scale, zero_point):
    return to.integers(kept(to, x, scale, zero_point))


def concatenate(to: Builder, values, axis, scale, zero_point):
    return joined(to, [to.at_scale(kept(to, x, scale, zero_point), scale) for x in values], axis)


def sum_(to: Builder, p, q, scales, zero_points, sign, *on_grid):
    p, q = (to.at_scale(kept(to, *given), given[1]) for given in zip((p, q), scales, zero_points, strict=True))
    return to.fused("Add" if sign > 0 else "Subtract", p, q, on_grid[0], on_grid)


def product(to: Builder, p, q, scales, zero_points, step, *on_grid):
    p, q = (kept(to, *given) for given in zip((p, q), scales, zero_points, strict=True))
    return to.product(p, q, scales, step, on_grid)


def shuffle(to: Builder, x, groups, scale, zero_point):
    x = kept(to, x, scale, zero_point)
    n, c, h, w = x.shape
    parts = to.reshaped(x.value, (n, h, w, groups, c // groups))
    turned = to.transposed(parts, (0, 1, 2, 4, 3), to.like(parts, (n, h, w, c // groups, groups)))
    return OnGrid(to.reshaped(turned, x.shape), scale, zero_point)


def look_up(to: Builder, x, table, x_scale, x_zero_point, scale, zero_point):
    return to.looked_up(kept(to, x, x_scale, x_zero_point), table, scale, zero_point)


def layer(to: Builder, x, weight, weight_scale, bias, bias_scale, x_scale, x_zero_point, geometry, *on_grid):
    weight = weight.unsqueeze(2) if geometry and weight.ndim == 3 else weight
    value = kept(to, x, x_scale, x_zero_point).value
    weight_scale = (weight_scale.double() * x_scale / value.scale).float()
    if geometry:
        shape = convolved_shape(value.shape, weight, geometry)
        new = to.convolved(value, shape, weight, weight_scale, bias, geometry, on_grid)
    else:
        new = to.linear(value, weight.t(), weight_scale, bias, on_grid)
    return OnGrid(new, *on_grid[:2])


def last_layer(to: Builder, x, weight, weight_scale, bias, bias_scale, x_scale, x_zero_point, geometry):
    """In fp32 on integers, whose sums are exact, for runtimes round those of int8 to int8."""
    n = integers(to, x, x_scale, x_zero_point)
    weight, bias = weight.float(), bias.float()
    if geometry:
        weight = weight.unsqueeze(2) if weight.ndim == 3 else weight
        sums = to.convolved(n, convolved_shape(n.shape, weight, geometry), weight, None, bias, geometry)
        return binary(to, "Multiply", sums, bias_scale.view(1, -1, 1, 1))
    return binary(to, "Multiply", to.linear(n, weight.t(), None, bias), bias_scale)


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
    qdq.look_up.default: look_up,
}
TABLE = INTEGERS | MOVES | FLOATS | ISLANDS
"""For each operator of an exported module, the function that writes it."""


def write(to: Builder, module: fx.GraphModule, inputs: Sequence[Known]) -> Known:
    """Write an exported module with these inputs. Returns its output. Raises NotThere for what the runtime lacks."""
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
        first = _first_of_torch(node)
        raise NotThere(f"{to.runtime} has no {first}" + (", or computes it otherwise" if first != called else ""))
    try:
        found = TABLE[target](to, *arguments, **named)
    except TypeError as error:  # an argument that is not written, such as alpha
        raise NotThere(f"{to.runtime}: {called} with {', '.join(named) or 'these arguments'} is not written") from error
    if target is not called:
        known[node.all_input_nodes[0]] = found
    return found


def _first_of_torch(node: fx.Node) -> Any:
    """The operator that a node calls or, of our own that stands around one, the first of torch's behind it."""
    while str(node.target).startswith("qdq.") and node.users:
        node = next(iter(node.users))
    return node.target


def _not_in_place(target: Any) -> Any:
    """relu for relu_: the operator that returns what this one overwrites."""
    if not isinstance(target, OpOverload) or not target._schema.name.endswith("_"):
        return target
    packet = getattr(torch.ops.aten, target._schema.name.removeprefix("aten::").removesuffix("_"))
    return getattr(packet, target._schema.overload_name or "default")
