"""prepare: a float model becomes one that trains, and in eval computes, as its integer twin will."""

import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from quant.integer import UNBOUNDED
from quant.layers import QuantAverage, QuantLayer
from quant.method import Method
from quant.plan import FLOAT, Decision, Plan
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
        self.source: dict[fx.Node, tuple[str, int, bool]] = {}  # value -> its quantizer's name, bits, signed
        self.narrowed: dict[tuple[fx.Node, int], fx.Node] = {}

    def put(self, decision: Decision) -> None:
        if decision.role == "layer":
            self._put_layer(decision)
        else:
            self._put_operator(decision)

    def _put_layer(self, decision: Decision) -> None:
        chain, written = decision.chain, decision.written
        name = chain.head.target
        layer = self._layer(name, decision.weight_bits)
        if written != FLOAT:
            layer.output = self.method.activation(self.spec, written, decision.signed)
            layer.bounds = UNBOUNDED if chain.act is None else bounds_of(self.traced, chain.act)
        _replace(self.traced, name, layer)
        x = self._narrow(chain.head.args[0], decision.read)
        with self.graph.inserting_before(chain.head):
            source = self._source(x)
            norm = chain.norm and self.graph.get_attr(chain.norm.target)
            node = self.graph.call_module(name, (x, source and self.graph.get_attr(source[0]), norm))
        fused = [part for part in (chain.act if written != FLOAT else None, chain.norm, chain.head) if part]
        fused[0].replace_all_uses_with(node)  # an activation of a float output stays a node of its own
        for part in fused:
            self.graph.erase_node(part)
        if written != FLOAT:
            self.source[node] = (f"{name}.output", written, decision.signed)

    def _layer(self, name: str, weight_bits: int) -> QuantLayer:
        layer = self.traced.get_submodule(name)
        quantizer = None
        if weight_bits != FLOAT:
            quantizer = self.method.weight(self.spec, weight_bits, len(layer.weight))
        return QuantLayer(layer, quantizer, limit=self.spec.weight_limit)

    def _put_operator(self, decision: Decision) -> None:
        chain = decision.chain
        chain.head.target = OUT_OF_PLACE.get(chain.head.target, chain.head.target)
        if decision.role == "add":
            chain.head.args = tuple(self._narrow(a, decision.read) for a in chain.head.args)
        if decision.role == "average":
            self._put_average(chain.head)
        if decision.written != FLOAT:
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

    def _narrow(self, value: fx.Node, bits: int) -> fx.Node:
        """The value on a grid of `bits`: itself, or a second quantizer's output if its own grid is wider."""
        source = self._source(value)
        if source is None or bits >= source[1]:
            return value
        if (value, bits) not in self.narrowed:
            name = f"quantizers.{value.name.removeprefix('quantizers_')}_to_{bits}"
            self.narrowed[value, bits] = self._quantize(value, bits, source[2], name, False)
        return self.narrowed[value, bits]

    def _quantize(self, value: fx.Node, bits: int, signed: bool, name: str, every_reader: bool) -> fx.Node:
        self.traced.add_submodule(name, self.method.activation(self.spec, bits, signed))
        with self.graph.inserting_after(value):
            node = self.graph.call_module(name, (value,))
        if every_reader:
            value.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)
        self.source[node] = (name, bits, signed)
        return node

    def _source(self, value: fx.Node) -> tuple[str, int, bool] | None:
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
