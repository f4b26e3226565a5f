"""From an nn.Module to a graph in which each operator is written in one way (graph/op_table.py reads it).

torch.fx traces the model; its modules and Parameters stay the same objects under the same names. Dropout functions
become modules, views become reshapes, and a channel shuffle becomes one module. Where an operator overwrites a tensor,
later readers of that tensor are redirected to the operator's result; Python's in-place operators become out of place.
"""

import itertools
from collections.abc import Iterator
from typing import TypeGuard

from torch import fx, nn

from quant.graph.node_view import NodeView, as_node, first_input, target
from quant.graph.op_table import OPERATORS, module_operator, name_of, operator_name
from quant.graph.tracer import NORM_ACT, PYTHON_IN_PLACE, Tracer
from utils.errors import UserError, first_line

AS_MODULES = dict(pair for row in OPERATORS.values() for pair in row.as_modules)
"""The module that a function becomes."""


def trace(model: nn.Module) -> fx.GraphModule:
    """The model as a graph on the same modules. Raises UserError, in one line, for what torch.fx cannot follow.

    Traced in train and in eval mode: torch.fx takes one side of `if self.training`, so the two must be the same graph.
    """
    _refuse_computed_weights(model)
    traced, in_eval = _traced(model, True), _traced(model, False)
    for ours, theirs in itertools.zip_longest(_written(traced), _written(in_eval)):
        if ours != theirs:
            cure = "use modules, such as nn.Dropout, instead of functions of self.training"
            if any("aux" in name.lower() for name, _ in model.named_children()):
                cure = "switch the auxiliary heads off (model.aux_logits=false)"
            raise UserError(
                f"model {type(model).__name__}: its graph in train mode is not that in eval mode (at {ours or theirs});"
                f" torch.fx freezes self.training: {cure}"
            )
    for name, module in model.named_modules():  # modules that forward never calls keep their state
        if name and any(True for _ in module.parameters(recurse=False)) and not _has(traced, name):
            traced.add_submodule(name, module)
    return traced


def _refuse_computed_weights(model: nn.Module) -> None:
    """Refuse torch's older weight_norm and pruning: they compute a weight at each call; it cannot be copied."""
    for name, module in model.named_modules():
        plain = type(module) in (nn.Conv2d, nn.Linear)
        if plain and not isinstance(module._parameters.get("weight"), nn.Parameter):
            raise UserError(
                f"{name}: its weight is computed at each call; make it plain first (torch.nn.utils.prune.remove, "
                "torch.nn.utils.remove_weight_norm)"
            )


def _written(traced: fx.GraphModule) -> list[str]:
    return [f"{node.name} = {name_of(node)}({node.args}, {node.kwargs})" for node in traced.graph.nodes]


def _traced(model: nn.Module, mode: bool) -> fx.GraphModule:
    training = {m: m.training for m in model.modules()}
    try:
        model.train(mode)
        traced = fx.GraphModule(model, Tracer().trace(model), type(model).__name__)
    except Exception as error:
        raise UserError(f"model {type(model).__name__}: torch.fx cannot trace it: {first_line(error)}") from error
    finally:
        for module, was in training.items():
            module.training = was
    split_names: dict[str, list[str]] = {}
    for node in list(traced.graph.nodes):
        _split_norm_and_act(traced, node, split_names)
        _remove_identity(traced, node)
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        _first_argument_by_position(node)
        _dropout_as_module(traced, node)
        _view_as_reshape(node)
        _axis_by_position(node)
        _redirect_readers(traced, node, order)
        node.target = PYTHON_IN_PLACE.get(node.target, node.target)
    for node in list(traced.graph.nodes):
        _shuffle_as_module(traced, node)
    traced.recompile()
    return traced


def _has(traced: fx.GraphModule, name: str) -> bool:
    try:
        traced.get_submodule(name)
    except AttributeError:
        return False
    return True


def _first_argument_by_position(node: fx.Node) -> None:
    if node.op.startswith("call_") and not node.args and node.kwargs:
        first = next((key for key in ("input", "self", "x", "tensors") if key in node.kwargs), next(iter(node.kwargs)))
        node.args, node.kwargs = (node.kwargs[first],), {k: v for k, v in node.kwargs.items() if k != first}


def _split_norm_and_act(traced: fx.GraphModule, node: fx.Node, split_names: dict[str, list[str]]) -> None:
    """Split timm's batch norm with an activation into a plain batch norm with the same tensors, and the activation.

    split_names: filled in here: the name of each such module -> the names of the modules inside, for its other calls.
    """
    if node.op != "call_module":
        return
    path = target(node)
    both = traced.get_submodule(path)
    if isinstance(both, nn.BatchNorm2d) and type(both).__name__ == NORM_ACT:
        inside = [name for name, module in both.named_children() if not isinstance(module, nn.Identity)]
        split_names[path] = [f"{path}.{name}" for name in inside]
        norm = nn.BatchNorm2d(both.num_features, both.eps, both.momentum, both.affine, both.track_running_stats)
        norm._parameters, norm._buffers, norm.training = both._parameters, both._buffers, both.training
        for name, module in both.named_children():
            norm.add_module(name, module)
        parent, _, child = path.rpartition(".")
        setattr(traced.get_submodule(parent), child, norm)
    last = node
    for name in split_names.get(path, ()):
        last = _call_after(traced, last, name)


def _call_after(traced: fx.GraphModule, node: fx.Node, name: str) -> fx.Node:
    """Insert a call of a module after a node; all other readers of the node then read the module's output."""
    with traced.graph.inserting_after(node):
        call = traced.graph.call_module(name, (node,))
    node.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)
    return call


def _remove_identity(traced: fx.GraphModule, node: fx.Node) -> None:
    """nn.Identity returns its input: its readers read the input."""
    if node.op == "call_module" and type(traced.get_submodule(target(node))) is nn.Identity:
        node.replace_all_uses_with(node.all_input_nodes[0])
        traced.graph.erase_node(node)


def _dropout_as_module(traced: fx.GraphModule, node: fx.Node) -> None:
    """Tracing froze self.training into F.dropout; a module follows train() and eval()."""
    if node.op == "call_function" and node.target in AS_MODULES:
        rate = NodeView(node).argument(1, "p", 0.5)
        name = f"{node.name}_module"
        traced.add_submodule(name, AS_MODULES[node.target](rate))
        node.op, node.target, node.args, node.kwargs = "call_module", name, node.args[:1], {}


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
    traced.graph.eliminate_dead_code(_may_have_effects)


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


def _redirect_readers(traced: fx.GraphModule, node: fx.Node, order: dict[fx.Node, int]) -> None:
    """Redirect the later readers of a tensor that a node overwrites to the node."""
    if node.op == "call_module":
        in_place = getattr(traced.get_submodule(target(node)), "inplace", False)
    else:
        in_place = node.kwargs.get("inplace", False) or _writes_to_its_input(node)
    written = first_input(node)
    if in_place and written is not None:
        _refuse_shared_memory(traced, node, written, order)
        for user in list(written.users):
            if order[user] > order[node]:
                user.replace_input_with(written, node)


def _writes_to_its_input(node: fx.Node) -> bool:
    """Whether a function or method overwrites its first argument. torch's names of those end in an underscore."""
    if node.target in PYTHON_IN_PLACE:
        return not _is_size(node)
    plain = node.target in PYTHON_IN_PLACE.values()  # operator.and_ and operator.or_
    return node.op in ("call_function", "call_method") and name_of(node).endswith("_") and not plain


def _is_size(node: fx.Node) -> bool:
    """Whether a node is a tensor's shape or a number computed from one, which Python's operators do not overwrite."""
    name, read = operator_name(NodeView(node)), node.all_input_nodes
    if name is not None and OPERATORS[name].role == "shape":
        return True
    return getattr(node.target, "__module__", "") == "_operator" and bool(read) and all(map(_is_size, read))


def _refuse_shared_memory(traced: fx.GraphModule, node: fx.Node, written: fx.Node, order: dict[fx.Node, int]) -> None:
    """Refuse an in-place operator on `written` if another tensor in the same memory is read later."""
    base = written
    while _is_view(traced, base):
        base = as_node(base.args[0])
    for other in (base, *_views(traced, base, order, node)):
        if other is not written and any(order[user] > order[node] for user in other.users):
            raise UserError(
                f"{node.name} works in place on {written.name}, which shares its memory with {other.name}, and that is "
                "read again"
            )


def _views(traced: fx.GraphModule, base: fx.Node, order: dict[fx.Node, int], until: fx.Node) -> Iterator[fx.Node]:
    """The views of a tensor, and views of them, that are taken before the node `until`."""
    for user in base.users:
        if order[user] < order[until] and _is_view(traced, user):
            yield user
            yield from _views(traced, user, order, until)


def _is_view(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node may return the memory of its first argument."""
    if first_input(node) is None:
        return False
    if node.op == "call_module":
        module = traced.get_submodule(target(node))
        return module_operator(module).is_view
    name = operator_name(NodeView(node))
    return name is not None and OPERATORS[name].is_view
