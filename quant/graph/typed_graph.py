"""A traced graph, read with the table of operators (graph/op_table.py)."""

import operator

from torch import fx, nn

from quant.core.activation import ClampedAffine
from quant.core.batch_norm import BatchNorm
from quant.graph.node_view import NodeView, as_node, is_constant, target, why_layer_is_float
from quant.graph.op_table import FLOAT_OPERATOR, OPERATORS, RELU, operator_name
from quant.graph.operator_row import Operator, Role
from quant.graph.plain_classes import plain_class

COMPUTES = ("norm", "activation", "binary", "average", "function", "pass")
"""Roles of operators without weights of their own that have an integer form."""


class TypedGraph:
    """The role of each node of a float or prepared graph, and what else the table knows of it.

    Nodes that are added later have no role; those of the modules that `prepare` puts in have role float.
    """

    def __init__(self, module: fx.GraphModule):
        self.module, self.nodes = module, list(module.graph.nodes)
        self.views = {node: NodeView(node, self.submodule(node)) for node in self.nodes}
        self.names: dict[fx.Node, str | None] = {node: operator_name(view) for node, view in self.views.items()}
        self.roles: dict[fx.Node, Role] = {}
        for node in self.nodes:
            self.roles[node] = self._role(node)
        self.divisors: set[fx.Node] = set()
        for node in reversed(self.nodes):
            divisor = self.operator(node).divides_by(self.views[node])
            if isinstance(divisor, fx.Node):
                self._keep_in_float(divisor)

    def _keep_in_float(self, divisor: fx.Node) -> None:
        """Keep a value in float that something is divided by, and what is read for it alone, back to a layer."""
        if self.roles[divisor] in COMPUTES:
            self.roles[divisor] = "float"
            self.divisors.add(divisor)
            for value in divisor.all_input_nodes:
                if all(user in self.divisors for user in value.users):
                    self._keep_in_float(value)

    def _role(self, node: fx.Node) -> Role:
        if node.op in ("placeholder", "output"):
            return "image" if node.op == "placeholder" else "output"
        if is_constant(node):
            return "constant"
        read = {self.roles[value] for value in node.all_input_nodes}
        if read == {"shape"}:
            return "shape"  # arithmetic with sizes
        part = node.target is operator.getitem and isinstance(node.args[1], int)
        if part and self.roles[as_node(node.args[0])] == "float":
            return "float"  # a part of a tuple that an operator returned, not of a tensor on a grid
        return self.operator(node).role

    def submodule(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, or None if it calls a function or a method."""
        return self.module.get_submodule(target(node)) if node.op == "call_module" else None

    def layer(self, node: fx.Node) -> nn.Conv2d | nn.Linear:
        """The convolution or linear layer that a node of role layer calls."""
        layer = self.submodule(node)
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            raise TypeError(f"{node.name} is not a convolution or linear layer")
        return layer

    def batch_norm(self, node: fx.Node) -> BatchNorm:
        """The batch norm that a node of role norm calls."""
        norm = self.submodule(node)
        if not isinstance(norm, BatchNorm):
            raise TypeError(f"{node.name} is not a batch norm")
        return norm

    def name(self, node: fx.Node) -> str:
        """The name of a node's row of the table. Raises ValueError where the table has none."""
        found = self.names[node]
        if found is None:
            raise ValueError(f"{node.name} is not in the table of operators")
        return found

    def operator(self, node: fx.Node) -> Operator:
        """The node's row of the table of operators; FLOAT_OPERATOR where there is none."""
        name = self.names.get(node)
        return FLOAT_OPERATOR if name is None else OPERATORS[name]

    def activation(self, node: fx.Node) -> ClampedAffine | None:
        """What an activation computes; None for any other node."""
        activation = self.operator(node).activation
        return None if activation is None else activation(self.views[node])

    def flattens(self, node: fx.Node) -> bool:
        """Whether a node makes feature maps [N, C, H, W] a matrix in which each channel's values stay together."""
        return self.operator(node).flattens(self.views[node])

    def preserves_qparams(self, node: fx.Node) -> bool:
        """Whether a node's output is on its inputs' grid. ReLU by itself is such a node: zero is on every grid."""
        return self.roles.get(node) == "pass" or (
            self.roles.get(node) == "activation" and self.activation(node) == RELU
        )

    def signed(self, node: fx.Node, inputs_signed: list[bool]) -> bool:
        """Whether the value of a node can be negative, if its inputs can."""
        activation = self.activation(node)
        if activation is not None:
            return activation.low < 0
        known = self.roles[node] in ("binary", "average", "function", "pass")
        return self.operator(node).signed(inputs_signed) if known else True

    def why_float(self, node: fx.Node) -> str:
        """Why a node stays in float, if it is a layer, or its value is a divisor; empty for other nodes."""
        if node in self.divisors:
            return "a divisor, or the argument of a root or logarithm"
        layer = self.submodule(node)
        if isinstance(layer, nn.Conv2d | nn.Linear) and plain_class(layer) is not None:
            return why_layer_is_float(self.views[node])
        known = isinstance(layer, nn.modules.conv._ConvNd | nn.Linear)
        return f"{type(layer).__name__} has no integer form here" if known else ""


def data_inputs(node: fx.Node) -> list[fx.Node]:
    """The tensors that a node that moves values works on: one, or all that a concatenation joins."""
    first = node.args[0] if node.args else None
    return [value for value in (first if isinstance(first, list | tuple) else [first]) if isinstance(value, fx.Node)]
