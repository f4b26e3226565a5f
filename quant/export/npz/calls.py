"""Calls of torch in plain values: what a .npz file may ask to be called, and how a graph's node becomes such a call.

A call is named by its row of the table of operators (graph/op_table.py), which has the function. A name that is not in
the table is refused, on writing and on reading.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from quant.graph.node_view import NodeView
from quant.graph.op_table import OPERATORS, name_of, operator_name
from quant.graph.quant_layers import TENSOR, FunctionCall, QuantOperator
from utils.errors import UserError


@dataclass(frozen=True)
class Call:
    """The function of a row, with its last arguments; the tensors come first, with each call."""

    name: str
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.name not in OPERATORS or OPERATORS[self.name].function is None:
            raise ValueError(f"{self.name!r} is not a call that a file may ask for")

    def __call__(self, *tensors: Any, **more: Any) -> Any:
        return OPERATORS[self.name].function(*tensors, *self.args, **self.kwargs, **more)


def call_of_operator(operator: QuantOperator) -> Call:
    """The call of an operator without weights. Raises UserError if a file has no place for it."""
    run = operator.run
    if not isinstance(run, FunctionCall):
        return _call_of_module(operator.name, run)
    tensors = [value is TENSOR for value in run.args]
    if tensors != sorted(tensors, reverse=True):  # 1 - x, say
        raise refused(operator.name)
    return _call(operator.name, tuple(run.args[sum(tensors) :]), run.kwargs)


def call_of_node(node: fx.Node, modules: dict[str, nn.Module]) -> Call:
    """The call, without the arguments that the node itself holds. Raises UserError if a file has no place for it."""
    view = NodeView(node, modules[node.target] if node.op == "call_module" else None)
    name = operator_name(view)
    if name is None:
        raise refused(name_of(node) if view.module is None else type(view.module).__name__)
    return _call(name) if view.module is None else _call_of_module(name, view.module)


def _call_of_module(name: str, module: nn.Module) -> Call:
    return _call(name, kwargs={attribute: getattr(module, attribute) for attribute in OPERATORS[name].attributes})


def _call(name: str, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Call:
    if OPERATORS[name].function is None:
        raise refused(name)
    return Call(name, args, dict(kwargs or {}))


def refused(name: str) -> UserError:
    return UserError(f"export: a .npz file has no place for {name}; export=FOLDER or FILE.onnx take it")


@dataclass(frozen=True)
class Value:
    """The value of another node, by its name."""

    of: str


def to_plain(value: Any) -> Any:
    """Arguments of a node as JSON holds them. Raises UserError for what it cannot hold."""
    if isinstance(value, fx.Node):
        return {"of": value.name}
    if isinstance(value, slice):
        return {"slice": [to_plain(part) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, tuple):
        return {"tuple": [to_plain(part) for part in value]}
    if isinstance(value, list):
        return [to_plain(part) for part in value]
    if isinstance(value, dict):
        return {"dict": {key: to_plain(part) for key, part in value.items()}}
    if value is None or isinstance(value, int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise refused(f"an argument {value!r}")


def from_plain(value: Any) -> Any:
    """to_plain's value again, with a Value for each node. Raises ValueError for anything else."""
    if isinstance(value, list):
        return [from_plain(part) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items()
    if kind == "of":
        return Value(str(inside))
    if kind == "dict":
        return {key: from_plain(part) for key, part in inside.items()}
    if kind in ("slice", "tuple"):
        return {"slice": lambda parts: slice(*parts), "tuple": tuple}[kind](from_plain(inside))
    raise ValueError(f"{kind!r} is no kind of argument")


def map_values(value: Any, function: Callable[[Value], Any]) -> Any:
    """from_plain's value with function(Value) instead of each Value."""
    if isinstance(value, Value):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)(map_values(part, function) for part in value)
    if isinstance(value, dict):
        return {key: map_values(part, function) for key, part in value.items()}
    if isinstance(value, slice):
        return slice(*(map_values(part, function) for part in (value.start, value.stop, value.step)))
    return value


def mentioned(value: Any) -> set[str]:
    """The names of the nodes whose values an argument holds."""
    found: set[str] = set()
    map_values(value, lambda node: found.add(node.of))
    return found
