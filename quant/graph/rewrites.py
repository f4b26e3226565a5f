"""Operators without weights, each written in one form: one node for what several nodes compute, views as reshapes."""

import copy
import operator
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import fx, nn

from quant.graph.node_view import NodeView, has_tensor_and_constant, is_constant, target
from quant.graph.op_table import OPERATORS, name_of
from quant.graph.plain_classes import plain_class

AS_MODULES = dict(pair for row in OPERATORS.values() for pair in row.as_modules)
"""The module that a function becomes where its flag is self.training."""
TRAINING_FLAGS: dict[Any, tuple[int, str]] = dict.fromkeys(AS_MODULES, (2, "training"))
TRAINING_FLAGS |= {F.batch_norm: (5, "training"), torch.dropout: (2, "train")}
"""Functions with a flag for train mode -> its position and name. Tracing freezes the flag."""
FOLLOWS_TRAINING = "follows training"
"""The key of Node.meta that tells that a node's flag is self.training (graph/trace.py)."""
PADDING_MODES: dict[type[nn.Module] | None, str] = {
    nn.ZeroPad1d: "constant",
    nn.ZeroPad2d: "constant",
    nn.ConstantPad1d: "constant",
    nn.ConstantPad2d: "constant",
    nn.ReflectionPad1d: "reflect",
    nn.ReflectionPad2d: "reflect",
    nn.ReplicationPad1d: "replicate",
    nn.ReplicationPad2d: "replicate",
    nn.CircularPad1d: "circular",
    nn.CircularPad2d: "circular",
}


def attribute(traced: fx.GraphModule, node: fx.Node) -> Any:
    """The Parameter, buffer or other tensor that a get_attr node reads."""
    owner, _, name = target(node).rpartition(".")
    return getattr(traced.get_submodule(owner), name)


def constant_value(traced: fx.GraphModule, node: fx.Node) -> torch.Tensor | None:
    """The value of a constant of the model; None if it depends on a Parameter, which may be trained."""
    if node.op == "get_attr":
        value = attribute(traced, node)
        return value if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter) else None
    read = {one: constant_value(traced, one) for one in node.all_input_nodes}
    if any(value is None for value in read.values()):
        return None
    return called(node)(*fx.node.map_arg(node.args, read.__getitem__), **fx.node.map_arg(node.kwargs, read.__getitem__))


def called(node: fx.Node) -> Callable[..., Any]:
    """The function or method that a node calls."""
    return getattr(torch.Tensor, node.target) if isinstance(node.target, str) else node.target


def rewrite_node(traced: fx.GraphModule, node: fx.Node) -> None:
    """Write one node in its form."""
    _first_argument_by_position(node)
    _dropout_as_module(traced, node)
    _view_as_reshape(node)
    _axis_by_position(node)
    _padding_as_function(traced, node)
    _prelu_as_function(traced, node)
    _tensor_before_constant(node)
    _maximum_without_indices(traced, node)


def rewrite_groups(traced: fx.GraphModule) -> None:
    """Write as one node what several nodes compute together."""
    for node in list(traced.graph.nodes):
        _shuffle_as_module(traced, node)
        _means_as_one(node)
        _parts_by_index(traced, node)
    traced.graph.eliminate_dead_code(_may_have_effects)


def _first_argument_by_position(node: fx.Node) -> None:
    if node.op.startswith("call_") and not node.args and node.kwargs:
        first = next((key for key in ("input", "self", "x", "tensors") if key in node.kwargs), next(iter(node.kwargs)))
        node.args, node.kwargs = (node.kwargs[first],), {k: v for k, v in node.kwargs.items() if k != first}


def remove_identity(traced: fx.GraphModule, node: fx.Node) -> None:
    """nn.Identity returns its input: its readers read the input."""
    if node.op == "call_module" and plain_class(traced.get_submodule(target(node))) is nn.Identity:
        node.replace_all_uses_with(node.all_input_nodes[0])
        traced.graph.erase_node(node)


def _dropout_as_module(traced: fx.GraphModule, node: fx.Node) -> None:
    """A dropout function whose flag is self.training becomes a module, which follows train() and eval().

    With a fixed False it drops nothing and leaves the graph; with a fixed True it always drops and stays as it is.
    """
    if node.op != "call_function" or node.target not in AS_MODULES:
        return
    if node.meta.get(FOLLOWS_TRAINING):
        rate = NodeView(node).argument(1, "p", 0.5)
        name = f"{node.name}_module"
        traced.add_submodule(name, AS_MODULES[node.target](rate))
        node.op, node.target, node.args, node.kwargs = "call_module", name, node.args[:1], {}
    elif not NodeView(node).argument(*TRAINING_FLAGS[node.target], True):
        node.replace_all_uses_with(node.all_input_nodes[0])
        traced.graph.erase_node(node)


def _padding_as_function(traced: fx.GraphModule, node: fx.Node) -> None:
    """A padding module becomes F.pad(x, pad, mode, value)."""
    module: Any = traced.get_submodule(target(node)) if node.op == "call_module" else None
    mode = None if module is None else PADDING_MODES.get(plain_class(module))
    if mode is not None:
        value = getattr(module, "value", 0)
        args = (node.args[0], list(module.padding), mode, *([value] if mode == "constant" else []))
        node.op, node.target, node.args, node.kwargs = "call_function", F.pad, args, {}


def _prelu_as_function(traced: fx.GraphModule, node: fx.Node) -> None:
    """nn.PReLU becomes F.prelu(x, weight), which is a function of a constant of the model."""
    if node.op == "call_module" and plain_class(traced.get_submodule(target(node))) is nn.PReLU:
        with traced.graph.inserting_before(node):
            weight = traced.graph.get_attr(f"{node.target}.weight")
        node.op, node.target, node.args = "call_function", F.prelu, (node.args[0], weight)


def _tensor_before_constant(node: fx.Node) -> None:
    """c + x, c * x and c - x, where c is a constant of the model, as x + c, x * c and rsub(x, c)."""
    name = name_of(node)
    if not has_tensor_and_constant(NodeView(node)) or not is_constant(node.args[0]):
        return
    if name in ("add", "mul"):
        node.args = node.args[::-1]
    elif name == "sub":
        node.op, node.target, node.args = "call_function", torch.rsub, node.args[::-1]


def _maximum_without_indices(traced: fx.GraphModule, node: fx.Node) -> None:
    """Where only the maxima are read of an operator that also returns their indices, it returns the maxima alone."""
    plain = _WITHOUT_INDICES.get(node.target) if node.op != "call_module" else None
    module = traced.get_submodule(target(node)) if node.op == "call_module" else None
    pools = getattr(module, "return_indices", False) or node.target in _POOLS_WITH_INDICES
    along_axis = plain is not None and isinstance(NodeView(node).argument(1, "dim"), int)
    if not (pools or along_axis) or not node.users or not all(map(_reads_first, node.users)):
        return
    if along_axis and plain is not None:
        node.op, node.target = "call_function", plain
    elif module is not None:
        same: Any = copy.copy(module)
        same.return_indices = False
        traced.add_submodule(f"{node.name}_module", same)
        node.target = f"{node.name}_module"
    else:
        node.target = _POOLS_WITH_INDICES[node.target]
        node.kwargs = {key: value for key, value in node.kwargs.items() if key != "return_indices"}
    for user in list(node.users):
        user.replace_all_uses_with(node)
        traced.graph.erase_node(user)


_WITHOUT_INDICES: dict[Any, Callable] = {
    torch.max: torch.amax,
    "max": torch.amax,
    torch.min: torch.amin,
    "min": torch.amin,
}
_POOLS_WITH_INDICES: dict[Any, Callable] = {
    F.max_pool2d_with_indices: F.max_pool2d,
    F.adaptive_max_pool2d_with_indices: F.adaptive_max_pool2d,
}


def _reads_first(user: fx.Node) -> bool:
    """Whether a node reads the first part of a tuple: [0] or .values."""
    name = user.args[1] if _calls(user, "getitem") or _calls(user, "getattr") else None
    return name in (0, "values") and type(name) in (int, str)


def _means_as_one(node: fx.Node) -> None:
    """mean(mean(x, a), b) becomes mean(x, (a, b))."""
    first = node.args[0] if _calls(node, "mean") else None
    if not _calls(first, "mean") or len(first.users) > 1 or not isinstance(first.args[0], fx.Node):
        return
    (a, keep), (b, keep_too) = (_one_axis(mean) for mean in (first, node))
    if a is None or b is None or keep is not keep_too or (a < 0) is not (b < 0):
        return
    if not keep:  # b counts the axes that are left
        b = b + 1 if 0 <= a <= b else b - 1 if b <= a < 0 else b
    node.args, node.kwargs = (first.args[0], (a, b)), {"keepdim": keep}


def _parts_by_index(traced: fx.GraphModule, node: fx.Node) -> None:
    """Parts of a chunk or split that are read together, x.chunk(2, 1)[::-1], are read one by one."""
    some = node.args[1] if _calls(node, "getitem") else slice(None)
    parts = node.args[0] if _calls(node, "getitem") else node
    count = _count_of_parts(parts)
    if count is None or not isinstance(some, slice):
        return
    kept = range(count)[some]
    for user in list(node.users):
        if user.args[0] is not node:
            continue
        if _calls(user, "getitem") and type(user.args[1]) is int:
            user.args = (parts, kept[user.args[1]])
        elif _calls(user, "cat") or _calls(user, "concat"):
            with traced.graph.inserting_before(user):
                each = [traced.graph.call_function(operator.getitem, (parts, index)) for index in kept]
            user.args = (each, *user.args[1:])


def _count_of_parts(node: object) -> int | None:
    """How many parts a chunk, or a split by sizes, has; None where the graph does not tell."""
    if _calls(node, "chunk"):
        count = NodeView(node).argument(1, "chunks")
        return count if isinstance(count, int) else None
    if _calls(node, "split"):
        sizes = NodeView(node).argument(1, "split_size", NodeView(node).argument(1, "split_size_or_sections"))
        return len(sizes) if isinstance(sizes, list | tuple) else None
    return None


def _one_axis(mean: fx.Node) -> tuple[int | None, bool]:
    """(the axis of a mean over one axis, whether it is kept); None for other means."""
    view = NodeView(mean)
    axis, keep = view.argument(1, "dim"), view.argument(2, "keepdim", False)
    axis = axis[0] if isinstance(axis, list | tuple) and len(axis) == 1 else axis
    return (axis if isinstance(axis, int) and set(mean.kwargs) <= {"dim", "keepdim"} else None), keep


def _shuffle_as_module(traced: fx.GraphModule, node: fx.Node) -> None:
    """reshape(n, g, c / g, h, w), transpose(1, 2), reshape(n, c, h, w), written with the tensor's own sizes n, h and w,
    is a channel shuffle."""
    if not (_calls(node, "reshape") and len(node.args) == 5):
        return
    swap = node.args[0]
    swap = swap.args[0] if _calls(swap, "contiguous") else swap
    if not (_calls(swap, "transpose") and swap.args[1:] in ((1, 2), (2, 1))):
        return
    first = swap.args[0]
    if not (_calls(first, "reshape") and len(first.args) == 6):
        return
    x, n, groups, _, height, width = first.args
    sizes = [_size_of(size, x) for size in (n, height, width, node.args[1], *node.args[3:])]
    if sizes != [0, 2, 3, 0, 2, 3] or not isinstance(groups, int):
        return
    name = f"{node.name}_shuffle"
    traced.add_submodule(name, nn.ChannelShuffle(groups))
    node.op, node.target, node.args, node.kwargs = "call_module", name, (x,), {}


def _may_have_effects(node: fx.Node) -> bool:
    return node.op not in ("call_function", "call_method") or name_of(node).endswith("_")


def _calls(node: object, name: str) -> TypeGuard[fx.Node]:
    """Whether an argument is what a function or method of that name returns."""
    return isinstance(node, fx.Node) and node.op in ("call_function", "call_method") and name_of(node) == name


def _size_of(size: object, x: object) -> object:
    """i, if an argument is x.size(i), x.size()[i] or x.shape[i]; else None."""
    if _calls(size, "size") and size.args[0] is x and len(size.args) == 2:
        return size.args[1]
    if not _calls(size, "getitem"):
        return None
    shape, i = size.args
    whole = (_calls(shape, "size") and shape.args == (x,)) or (_calls(shape, "getattr") and shape.args == (x, "shape"))
    return i if whole else None


def _view_as_reshape(node: fx.Node) -> None:
    """view needs a layout that channels_last tensors do not have; reshape works on any."""
    if node.op == "call_method" and node.target == "view":
        node.target = "reshape"


def _axis_by_position(node: fx.Node) -> None:
    """Pass a concatenation's axis by position, whether it was named dim, axis or left out."""
    if node.target in OPERATORS["cat"].functions:
        named = node.kwargs.get("dim", node.kwargs.get("axis", 0))
        node.args, node.kwargs = (node.args[0], node.args[1] if len(node.args) > 1 else named), {}
