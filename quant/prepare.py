"""prepare: a float model becomes one that trains, and in eval computes, as its integer twin will."""

import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from quant.integer import UNBOUNDED
from quant.layers import QuantAverage, QuantLayer
from quant.method import Method
from quant.plan import FLOAT, Decision, Edge, Plan
from quant.quantizer import Quantizer
from quant.trace import bounds_of, hands_on, roles, trace
from utils.config import QuantSettings

OUT_OF_PLACE = {operator.iadd: operator.add, "add_": "add"}


def prepare(model: nn.Module, spec: QuantSettings, method: Method) -> fx.GraphModule:
    """Trace `model` and put the quantizers of `method` in, as quant/plan.py says.

    Every Parameter of the model stays the same object under the same name, so an optimizer that was running before
    keeps its state. Layers become QuantLayers under their own names; other quantizers live under `quantizers`. Raises
    UserError if the model cannot be traced.
    """
    own = set(model.modules())
    traced = trace(model)
    role = roles(traced)
    decisions = Plan(traced, role, spec).decisions()
    editor = _Editor(traced, role, spec, method)
    for decision in decisions:
        editor.put(decision)
    for module in set(traced.modules()) - own:
        module.training = model.training
    traced.graph.lint()
    traced.recompile()
    return traced


def quantizers(prepared: nn.Module) -> dict[str, Quantizer]:
    """All quantizers of a prepared model by name."""
    return {name: m for name, m in prepared.named_modules() if isinstance(m, Quantizer)}


class _Editor:
    """Changes the graph chain by chain, in topological order."""

    def __init__(self, traced: fx.GraphModule, role: dict[fx.Node, str], spec: QuantSettings, method: Method):
        self.traced, self.graph, self.role = traced, traced.graph, role
        self.spec, self.method = spec, method
        self.source: dict[fx.Node, tuple[str, Edge, bool]] = {}  # value -> its quantizer's name, edge, signed
        self.second: dict[tuple[fx.Node, Edge], fx.Node] = {}

    def put(self, decision: Decision) -> None:
        if decision.role == "layer":
            self._put_layer(decision)
        else:
            self._put_operator(decision)

    def _put_layer(self, decision: Decision) -> None:
        chain, written = decision.chain, decision.written
        name = chain.head.target
        layer = self._layer(name, decision)
        if written.bits != FLOAT:
            layer.output = self._quantizer(written, decision.signed)
            layer.bounds = UNBOUNDED if chain.act is None else bounds_of(self.traced, chain.act)
        _replace(self.traced, name, layer)
        x = self._as_wanted(chain.head.args[0], decision.read)
        with self.graph.inserting_before(chain.head):
            source = self._source(x)
            norm = chain.norm and self.graph.get_attr(chain.norm.target)
            node = self.graph.call_module(name, (x, source and self.graph.get_attr(source[0]), norm))
        fused = [part for part in (chain.act if written.bits != FLOAT else None, chain.norm, chain.head) if part]
        fused[0].replace_all_uses_with(node)  # an activation of a float output stays a node of its own
        for part in fused:
            self.graph.erase_node(part)
        if written.bits != FLOAT:
            self.source[node] = (f"{name}.output", written, decision.signed)

    def _layer(self, name: str, decision: Decision) -> QuantLayer:
        layer, bits, gradient = self.traced.get_submodule(name), decision.weight_bits, None
        weight = None if bits == FLOAT else self.method.weight(self.spec, bits, len(layer.weight))
        if decision.hidden and min(bits, decision.read.bits) < FLOAT:
            gradient = self.method.gradient(self.spec)
        return QuantLayer(layer, weight, gradient, self.spec.weight_limit)

    def _quantizer(self, edge: Edge, signed: bool) -> Quantizer:
        return (self.method.activation if edge.hidden else self.method.residual)(self.spec, edge.bits, signed)

    def _put_operator(self, decision: Decision) -> None:
        chain = decision.chain
        chain.head.target = OUT_OF_PLACE.get(chain.head.target, chain.head.target)
        if decision.role == "add":
            chain.head.args = tuple(self._as_wanted(a, decision.read) for a in chain.head.args)
        if decision.role == "average":
            self._put_average(chain.head)
        if decision.written.bits != FLOAT:
            self._quantize(chain.end, decision.written, decision.signed, f"quantizers.{chain.end.name}", True)

    def _put_average(self, head: fx.Node) -> None:
        """The pool as a module that is given the grid of its input."""
        source = self._source(head.args[0])
        average = self.traced.get_submodule(head.target) if head.op == "call_module" else _function_of(head)
        name = head.target if head.op == "call_module" else head.name
        _replace(self.traced, name, QuantAverage(average))
        with self.graph.inserting_before(head):
            quantizer = source and self.graph.get_attr(source[0])
        head.op, head.target, head.args, head.kwargs = "call_module", name, (head.args[0], quantizer), {}

    def _as_wanted(self, value: fx.Node, edge: Edge) -> fx.Node:
        """The value as its reader wants it: itself, or a second quantizer's output if its grid is wider or foreign."""
        source = self._source(value)
        if source is None or (edge.bits >= source[1].bits and not self._foreign(edge, source[1])):
            return value
        edge = Edge(min(edge.bits, source[1].bits), edge.hidden)
        if (value, edge) not in self.second:
            name = f"quantizers.{value.name.removeprefix('quantizers_')}_to_{edge.bits}"
            name = name if edge.hidden else f"{name}_residual"
            self.second[value, edge] = self._quantize(value, edge, source[2], name, False)
        return self.second[value, edge]

    def _foreign(self, wanted: Edge, found: Edge) -> bool:
        """Whether a hidden layer would read a grid that the method makes for other readers alone."""
        apart = self.method.activation is not self.method.residual
        return apart and wanted.bits != FLOAT and wanted.hidden and not found.hidden

    def _quantize(self, value: fx.Node, edge: Edge, signed: bool, name: str, every_reader: bool) -> fx.Node:
        self.traced.add_submodule(name, self._quantizer(edge, signed))
        with self.graph.inserting_after(value):
            node = self.graph.call_module(name, (value,))
        if every_reader:
            value.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)
        self.source[node] = (name, edge, signed)
        return node

    def _source(self, value: fx.Node) -> tuple[str, Edge, bool] | None:
        """The quantizer whose grid a value lies on, seen through the nodes that hand it on."""
        while value not in self.source and value in self.role and hands_on(self.traced, self.role, value):
            value = value.args[0]
        return self.source.get(value)


def _function_of(node: fx.Node) -> Callable[[Tensor], Tensor]:
    """What a function or method node does to its first argument."""
    function = getattr(torch.Tensor, node.target) if node.op == "call_method" else node.target
    rest, kwargs = node.args[1:], dict(node.kwargs)
    return lambda x: function(x, *rest, **kwargs)


def _replace(traced: fx.GraphModule, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(traced.get_submodule(parent), child, module)
