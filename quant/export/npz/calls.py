"""Calls of torch that a .npz file may ask for: the functions of the table of operators (graph/op_table.py), by name.

A name that the table does not have is refused, when a file is written and when it is read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from quant.core.integer_operator import IntegerOperator
from quant.graph.node_view import NodeView
from quant.graph.op_table import OPERATORS, name_of, operator_name
from quant.graph.quant_layers import TENSOR, FloatOperator, FunctionCall, normalize
from utils.errors import UserError


@dataclass(frozen=True)
class Call:
    """The function of a row of OPERATORS with its last arguments. Called with the arguments that come before them.

    Raises ValueError for a name without a row, or a row without a function.
    """

    name: str
    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self.function()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function()(*args, *self.args, **self.kwargs, **kwargs)

    def function(self) -> Callable:
        function = OPERATORS[self.name].function if self.name in OPERATORS else None
        if function is None:
            raise ValueError(f"{self.name!r} is not a call that a file may ask for")
        return function


def call_of_operator(operator: FloatOperator | IntegerOperator) -> Call:
    """The float function of an operator without weights. Raises UserError if a file cannot represent it."""
    run = operator.run
    if not isinstance(run, FunctionCall):
        return _call_of_module(operator.name, run)
    if run.function is normalize:
        return call_of_norm(run.args[1])
    tensors = [value is TENSOR for value in run.args]
    if tensors != sorted(tensors, reverse=True):  # such as 1 - x
        raise refused(operator.name)
    return Call(operator.name, tuple(run.args[sum(tensors) :]), run.kwargs)


def call_of_node(node: fx.Node, module: nn.Module | None) -> Call:
    """The function that a node calls, without the arguments in the node; `module` is the module that it calls, or None.

    Raises UserError if a file cannot represent it.
    """
    name = operator_name(NodeView(node, module))
    if name is None or OPERATORS[name].function is None:
        raise refused(name_of(node) if module is None else type(module).__name__)
    if name == "batch_norm" and isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return call_of_norm(module)
    return Call(name) if module is None else _call_of_module(name, module)


def call_of_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> Call:
    """A batch norm in eval."""
    training, momentum = False, 0.0
    tensors = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return Call("batch_norm", (*tensors, training, momentum, norm.eps))


def _call_of_module(name: str, module: Any) -> Call:
    return Call(name, kwargs={attribute: getattr(module, attribute) for attribute in OPERATORS[name].attributes})


def refused(name: str) -> UserError:
    return UserError(f"export: a .npz file has no place for {name}; export=FOLDER or FILE.onnx take it")
