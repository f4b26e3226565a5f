"""A node of a float graph as the table of operators sees it, and the conditions that its rows put on calls."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from quant.core.activation import ClampedAffine

HEIGHT_AND_WIDTH = ({2, 3}, {-2, -1})


@dataclass(frozen=True)
class NodeView:
    """A node of a float graph, the module that it calls (None for a function or a method), and how often the graph
    calls that module."""

    node: fx.Node
    module: nn.Module | None = None
    calls: int = 1

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
    if layer is not None and (layer._forward_hooks or layer._forward_pre_hooks):
        return "it has hooks"
    return "" if view.calls == 1 else "called more than once"


def tracks_statistics(view: NodeView) -> bool:
    return bool(view.argument(0, "track_running_stats"))


def clamp_between(low: str, high: str, default: tuple[float, float]) -> Callable[[NodeView], ClampedAffine | None]:
    """The ClampedAffine between two arguments of those names."""

    def bounds(view: NodeView) -> ClampedAffine | None:
        found = view.argument(1, low, default[0]), view.argument(2, high, default[1])
        return None if any(isinstance(bound, fx.Node) for bound in found) else ClampedAffine(*map(float, found))

    return bounds


def has_two_tensors(view: NodeView) -> bool:
    args = view.node.args
    return len(args) == 2 and not view.node.kwargs and all(isinstance(value, fx.Node) for value in args)


def has_tensor_and_number(view: NodeView) -> bool:
    args = view.node.args
    if len(args) != 2 or view.node.kwargs:
        return False
    tensors, numbers = ([isinstance(value, kind) for value in args] for kind in (fx.Node, int | float))
    return sum(tensors) == sum(numbers) == 1


def has_plain_arguments(view: NodeView) -> bool:
    return not any(isinstance(value, fx.Node) for value in view.others())


def is_mean_over_height_and_width(view: NodeView) -> bool:
    axes = view.argument(1, "dim")
    return has_plain_arguments(view) and isinstance(axes, list | tuple) and set(axes) in HEIGHT_AND_WIDTH


def flattens_all_but_batch(view: NodeView) -> bool:
    """Only flatten(x, 1) and nn.Flatten(): the axis as a keyword, or with an end axis, does not count."""
    plain = view.module is not None or (len(view.node.args) == 2 and not view.node.kwargs)
    return plain and (view.argument(1, "start_dim", 0), view.argument(2, "end_dim", -1)) == (1, -1)


def pads_zeros(view: NodeView) -> bool:
    return view.argument(2, "mode", "constant") == "constant" and not view.argument(3, "value", 0)


def joins_tensors(view: NodeView) -> bool:
    values = view.node.args[0]
    return isinstance(values, list | tuple) and all(isinstance(value, fx.Node) for value in values)


def reads_shape(view: NodeView) -> bool:
    return view.node.args[1] in ("shape", "ndim")
