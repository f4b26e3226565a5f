"""In-place operators of a traced graph: later readers of an overwritten tensor read the operator's result."""

from collections.abc import Iterator

from torch import fx

from quant.graph.node_view import NodeView, as_node, first_input, target
from quant.graph.op_table import OPERATORS, module_operator, name_of, operator_name
from quant.graph.tracer import PYTHON_IN_PLACE
from utils.errors import UserError


def redirect_readers(traced: fx.GraphModule, node: fx.Node, order: dict[fx.Node, int]) -> None:
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
