"""A node of a float graph as the table of operators sees it, and the conditions that its rows put on calls."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from quant.core.activation import ClampedAffine

HEIGHT_AND_WIDTH = ({2, 3}, {-2, -1})
NOT_CONSTANT = "not constant"
"""The key of Node.meta of nodes that `is_constant` has found to depend on the image."""


@dataclass(frozen=True)
class NodeView:
    """A node of a float graph, and the module that it calls (None for a function or a method)."""

    node: fx.Node
    module: nn.Module | None = None

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument that is no tensor: the module's attribute, or what the call passes by position or by name."""
        if self.module is not None:
            return getattr(self.module, name)
        given = self.node.args[position] if position < len(self.node.args) else None
        found = self.node.kwargs.get(name, given)
        return default if found is None else found

    def others(self) -> list[Any]:
        """All arguments of a function or method but the first."""
        return [] if self.module is not None else [*self.node.args[1:], *self.node.kwargs.values()]


def target(node: fx.Node) -> str:
    """The name of the module, Parameter or method that a node reads or calls."""
    if not isinstance(node.target, str):
        raise TypeError(f"{node.name} calls a function, which is no name")
    return node.target


def as_node(argument: object) -> fx.Node:
    """An argument of a call that is known to be a tensor or the quantizer of one."""
    if not isinstance(argument, fx.Node):
        raise TypeError(f"{argument!r} is not a node of the graph")
    return argument


def first_input(node: fx.Node) -> fx.Node | None:
    """The tensor that a call passes first, or None where its first argument is something else."""
    first = node.args[0] if node.args else None
    return first if isinstance(first, fx.Node) else None


def inputs(node: fx.Node) -> list[fx.Node]:
    """The tensors that a call passes by position."""
    return [value for value in node.args if isinstance(value, fx.Node)]


def concatenated_axis(node: fx.Node) -> int:
    """The axis of a concatenation; tracing passes it by position (graph/trace.py)."""
    axis = node.args[1]
    if not isinstance(axis, int):
        raise TypeError(f"{node.name}: the axis {axis!r} is not a number")
    return axis


def any_call(view: NodeView) -> bool:
    return True


def no_call(view: NodeView) -> bool:
    return False


def why_layer_is_float(view: NodeView) -> str:
    """Why a convolution or linear layer cannot run in integers; empty if it can."""
    layer = view.module
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return "padding without zeros of a fixed number"
    return "it has hooks" if has_hooks(layer) else ""


def has_hooks(module: nn.Module | None) -> bool:
    return module is not None and bool(module._forward_hooks or module._forward_pre_hooks)


def tracks_statistics(view: NodeView) -> bool:
    return bool(view.argument(0, "track_running_stats"))


def clamp_between(low: str, high: str, default: tuple[float, float]) -> Callable[[NodeView], ClampedAffine | None]:
    """The ClampedAffine between two arguments of those names."""

    def bounds(view: NodeView) -> ClampedAffine | None:
        found = view.argument(1, low, default[0]), view.argument(2, high, default[1])
        return None if any(isinstance(bound, fx.Node) for bound in found) else ClampedAffine(*map(float, found))

    return bounds


def is_constant(value: object) -> bool:
    """Whether an argument is a Parameter or another tensor of the model, or computed from such tensors alone."""
    if not isinstance(value, fx.Node):
        return False
    waiting = [value]
    while waiting:
        node = waiting.pop()
        computed = node.op in ("call_function", "call_method") and bool(node.all_input_nodes)
        if node.meta.get(NOT_CONSTANT) or not (computed or node.op == "get_attr"):
            value.meta[NOT_CONSTANT] = True  # what reads it later need not look further back
            return False
        waiting += node.all_input_nodes
    return True


def _kinds(view: NodeView) -> list[str]:
    """What the arguments of a call of two are: tensor, constant, number or other; empty for other calls."""
    args = view.node.args if len(view.node.args) == 2 and not view.node.kwargs else ()
    return [_kind(value) for value in args]


def _kind(value: object) -> str:
    if isinstance(value, fx.Node):
        return "constant" if is_constant(value) else "tensor"
    return "number" if isinstance(value, int | float) else "other"


def has_two_tensors(view: NodeView) -> bool:
    return _kinds(view) == ["tensor", "tensor"]


def has_tensor_and_number(view: NodeView) -> bool:
    return sorted(_kinds(view)) == ["number", "tensor"]


def has_tensor_then_number(view: NodeView) -> bool:
    return _kinds(view) == ["tensor", "number"]


def has_tensor_and_constant(view: NodeView) -> bool:
    return sorted(_kinds(view)) == ["constant", "tensor"]


def has_tensor_then_constant(view: NodeView) -> bool:
    return _kinds(view) == ["tensor", "constant"]


def nothing(view: NodeView) -> None:
    return None


def first_argument(view: NodeView) -> Any:
    return next(iter(view.node.args), None)


def second_argument(view: NodeView) -> Any:
    return view.argument(1, "other")


def is_positive_power(view: NodeView) -> bool:
    """Whether a power has a positive integer as its exponent."""
    exponent = view.argument(1, "exponent")
    return has_tensor_then_number(view) and isinstance(exponent, int) and exponent > 0


def has_plain_arguments(view: NodeView) -> bool:
    return not any(isinstance(value, fx.Node) for value in view.others())


def reduces_within_images(view: NodeView) -> bool:
    """Whether the axes are numbers, and the first axis, that of the images, is not one of them."""
    axes = view.argument(1, "dim")
    axes = [axes] if isinstance(axes, int) else axes
    numbers = isinstance(axes, list | tuple) and bool(axes) and all(isinstance(axis, int) for axis in axes)
    return has_plain_arguments(view) and numbers and 0 not in axes


def is_mean_within_images(view: NodeView) -> bool:
    return reduces_within_images(view) and "dtype" not in view.node.kwargs


def is_mean_over_height_and_width(view: NodeView) -> bool:
    axes = view.argument(1, "dim")
    return isinstance(axes, list | tuple) and set(axes) in HEIGHT_AND_WIDTH


def flattens_all_but_batch(view: NodeView) -> bool:
    """Only flatten(x, 1) and nn.Flatten(): the axis as a keyword, or with an end axis, does not count."""
    plain = view.module is not None or (len(view.node.args) == 2 and not view.node.kwargs)
    return plain and (view.argument(1, "start_dim", 0), view.argument(2, "end_dim", -1)) == (1, -1)


def pads_zeros(view: NodeView) -> bool:
    return _padding_mode(view) == "constant" and view.argument(3, "value", 0) == 0


def pads_number(view: NodeView) -> bool:
    return _padding_mode(view) == "constant" and isinstance(view.argument(3, "value", 0), int | float)


def pads_copies(view: NodeView) -> bool:
    """Whether the padding repeats values of the image."""
    return _padding_mode(view) in ("reflect", "replicate", "circular")


def _padding_mode(view: NodeView) -> str:
    return view.argument(2, "mode", "constant") if has_plain_arguments(view) else "computed"


def copies_nearest(view: NodeView) -> bool:
    return view.argument(3, "mode", "nearest") in ("nearest", "nearest-exact")


def returns_no_indices(view: NodeView) -> bool:
    in_call = view.module is None and bool(view.node.kwargs.get("return_indices"))
    return not (in_call or getattr(view.module, "return_indices", False))


def joins_tensors(view: NodeView) -> bool:
    values = view.node.args[0]
    return isinstance(values, list | tuple) and all(isinstance(value, fx.Node) for value in values)


def reads_shape(view: NodeView) -> bool:
    return view.node.args[1] in ("shape", "ndim")
