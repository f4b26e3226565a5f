"""prepare: a float model becomes one that trains, and in eval computes, as its integer twin will."""

import operator

from torch import fx, nn

from quant.layers import QuantLayer
from quant.method import Method
from quant.plan import FLOAT, Chain, Plan
from quant.quantizer import Quantizer
from quant.trace import bounds_of, roles, trace
from utils.config import QuantSettings

OUT_OF_PLACE = {operator.iadd: operator.add, "add_": "add"}


def prepare(model: nn.Module, spec: QuantSettings, method: Method) -> fx.GraphModule:
    """Trace `model` and put the quantizers of `method` in, as quant/plan.py says.

    Every Parameter of the model stays the same object under the same name, so an optimizer that was running before
    keeps its state. Layers become QuantLayers under their own names; other quantizers live under `quantizers`. Raises
    UserError if the model cannot be traced.
    """
    traced = trace(model)
    role = roles(traced)
    editor = _Editor(traced, Plan(traced, role, spec), spec, method)
    for chain, weight_bits, read, written, signed in editor.decisions():
        editor.put(chain, weight_bits, read, written, signed)
    traced.graph.lint()
    traced.recompile()
    return traced


def quantizers(prepared: nn.Module) -> dict[str, Quantizer]:
    """All quantizers of a prepared model by name."""
    return {name: m for name, m in prepared.named_modules() if isinstance(m, Quantizer)}


class _Editor:
    """Changes the graph chain by chain, in topological order."""

    def __init__(self, traced: fx.GraphModule, plan: Plan, spec: QuantSettings, method: Method):
        self.traced, self.graph, self.plan = traced, traced.graph, plan
        self.spec, self.method = spec, method
        self.source: dict[fx.Node, tuple[str, int, bool]] = {}  # value -> its quantizer's name, bits, signed
        self.narrowed: dict[tuple[fx.Node, int], fx.Node] = {}

    def decisions(self) -> list[tuple[Chain, int, int, int, bool]]:
        """All that depends on the graph as it was, taken before the first change."""
        plan = self.plan
        return [
            (
                chain,
                plan.weight_bits(chain) if plan.role[chain.head] == "layer" else FLOAT,
                plan.bits_read(chain.head),
                plan.bits_written(chain),
                plan.signed(chain.end),
            )
            for chain in plan.chains
        ]

    def put(self, chain: Chain, weight_bits: int, read: int, written: int, signed: bool) -> None:
        if self.plan.role[chain.head] == "layer":
            self._put_layer(chain, weight_bits, read, written, signed)
        else:
            self._put_operator(chain, read, written, signed)

    def _put_layer(self, chain: Chain, weight_bits: int, read: int, written: int, signed: bool) -> None:
        name = chain.head.target
        layer = self._layer(name, chain, weight_bits)
        if written != FLOAT:
            layer.output = self.method.activation(self.spec, written, signed)
        _replace(self.traced, name, layer)
        x = self._narrow(chain.head.args[0], read, chain.head)
        with self.graph.inserting_before(chain.head):
            source = self._source(x)
            norm = chain.norm and self.graph.get_attr(chain.norm.target)
            node = self.graph.call_module(name, (x, source and self.graph.get_attr(source[0]), norm))
        chain.end.replace_all_uses_with(node)
        for old in (chain.act, chain.norm, chain.head):
            if old is not None:
                self.graph.erase_node(old)
        if written != FLOAT:
            self.source[node] = (f"{name}.output", written, signed)

    def _layer(self, name: str, chain: Chain, weight_bits: int) -> QuantLayer:
        layer = self.traced.get_submodule(name)
        quantizer = None
        if weight_bits != FLOAT:
            quantizer = self.method.weight(self.spec, weight_bits, len(layer.weight))
        prepared = QuantLayer(layer, quantizer, limit=63 if self.spec.reduce_range else 127)
        if chain.act is not None:
            prepared.bounds = bounds_of(self.traced, chain.act)
        return prepared.train(layer.training)

    def _put_operator(self, chain: Chain, read: int, written: int, signed: bool) -> None:
        chain.head.target = OUT_OF_PLACE.get(chain.head.target, chain.head.target)
        if self.plan.role[chain.head] == "add":
            chain.head.args = tuple(self._narrow(a, read, chain.head) for a in chain.head.args)
        if written != FLOAT:
            self._quantize(chain.end, written, signed, f"quantizers.{chain.end.name}")

    def _narrow(self, value: fx.Node, bits: int, reader: fx.Node) -> fx.Node:
        """The value on a grid of `bits`: itself, or a second quantizer's output if its own grid is wider."""
        source = self._source(value)
        if source is None or bits >= source[1]:
            return value
        if (value, bits) not in self.narrowed:
            name = f"quantizers.{source[0].removeprefix('quantizers.').replace('.', '_')}_to_{bits}"
            self.narrowed[value, bits] = self._quantize(value, bits, source[2], name, only=reader)
        return self.narrowed[value, bits]

    def _quantize(self, value: fx.Node, bits: int, signed: bool, name: str, only: fx.Node | None = None) -> fx.Node:
        self.traced.add_submodule(name, self.method.activation(self.spec, bits, signed).train(self.traced.training))
        with self.graph.inserting_after(value):
            node = self.graph.call_module(name, (value,))
        if only is None:
            value.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)
        self.source[node] = (name, bits, signed)
        return node

    def _source(self, value: fx.Node) -> tuple[str, int, bool] | None:
        """The quantizer whose grid a value lies on, seen through the nodes that hand it on."""
        while value not in self.source and value in self.plan.role and self.plan.passes(value):
            value = value.args[0]
        return self.source.get(value)


def _replace(traced: fx.GraphModule, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(traced.get_submodule(parent), child, module)
