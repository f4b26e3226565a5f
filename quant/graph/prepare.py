"""prepare: from a float model to one that trains fake-quantized, and in eval computes as its integer model does."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from quant.core.activation import IDENTITY
from quant.core.contract import check_activation_quantizer, check_weight_quantizer
from quant.core.integer_operator import elementwise, function
from quant.core.method import AnyMethod
from quant.core.options import TrainingOptions
from quant.core.quantizer import ActivationQuantizer, Quantizer, WeightQuantizer
from quant.core.rounding_gradient import slope
from quant.core.settings import ResolvedQuant
from quant.core.symmetric import with_symmetric_activations
from quant.graph.bit_allocation import INTEGER_ROLES, BitAllocation, Decision, Precision
from quant.graph.layer_forms import child_name, free_name
from quant.graph.layer_modules import borrows
from quant.graph.node_view import as_node, inputs, is_constant, target
from quant.graph.op_table import OUT_OF_PLACE
from quant.graph.quant_layers import (
    CONSTANT,
    TENSOR,
    Correction,
    FunctionCall,
    QuantLayer,
    QuantOperator,
    normalize,
    share,
)
from quant.graph.rewrites import called
from quant.graph.trace import trace
from quant.graph.typed_graph import TypedGraph, data_inputs
from utils.sections import FLOAT_BITS


def prepare(model: nn.Module, spec: ResolvedQuant, method: AnyMethod) -> fx.GraphModule:
    """Trace `model` and put in the quantizers of `method`, as graph/bit_allocation.py decides.

    Every Parameter of the model stays the same object under the same name, so an optimizer that was running before
    keeps its state. Layers become QuantLayers under their own names; operators without weights live under `operators`,
    quantizers of other values, and those that several values share, under `quantizers`. Raises UserError if the model
    cannot be traced.
    """
    own = set(model.modules())
    traced = trace(model, trains=method.trains_quantized(spec))
    graph = TypedGraph(traced)
    editor = _Editor(graph, spec, with_symmetric_activations(method) if spec.symmetric_activations else method)
    for decision in BitAllocation(graph, spec).decisions():
        editor.apply(decision)
    for module in set(traced.modules()) - own:
        module.training = model.training
    traced.graph.lint()
    traced.recompile()
    return traced


class _Source(NamedTuple):
    """The quantizer on whose grid a value lies: its name, its precision, and whether the value can be negative."""

    name: str
    precision: Precision
    signed: bool


class _Editor:
    """Edits the graph, chain by chain in topological order."""

    def __init__(self, typed: TypedGraph, spec: ResolvedQuant, method: AnyMethod):
        self.typed, self.traced, self.graph = typed, typed.module, typed.module.graph
        self.spec, self.method = spec, method
        self.source: dict[fx.Node, _Source] = {}
        self.checked: set = set()
        self.second: dict[tuple[fx.Node, Precision], fx.Node] = {}
        self.shared: dict[str, ActivationQuantizer] = {}
        self.of_weights: dict[Tensor, WeightQuantizer] = {}
        self.operators, self.quantizers = free_name(self.traced, "operators"), free_name(self.traced, "quantizers")

    def apply(self, decision: Decision) -> None:
        """Carry out one decision: replace the chain's nodes, or add a quantizer."""
        head = decision.chain.head
        if head.op != "call_module":
            # out of place is safe: tracing made later readers of the overwritten tensor read this node
            head.target = OUT_OF_PLACE.get(head.target, head.target)
        if decision.role == "layer":
            self._replace_layer(decision)
        elif decision.role in INTEGER_ROLES and (decision.written.bits != FLOAT_BITS or decision.role == "average"):
            self._replace_operator(decision)
        elif decision.written.bits != FLOAT_BITS:
            self._quantize(decision)

    def _replace_layer(self, decision: Decision) -> None:
        chain, written = decision.chain, decision.written
        name = target(chain.head)
        layer = self._layer(decision)
        self.traced.set_submodule(name, layer)
        x = self._as_wanted(as_node(chain.head.args[0]), decision.read)
        with self.graph.inserting_before(chain.head):
            source = self._source(x)
            norm = chain.norm and self.graph.get_attr(target(chain.norm))
            node = self.graph.call_module(name, (x, source and self.graph.get_attr(source.name), norm))
        written_as = self._output(name, layer, decision) if written.bits != FLOAT_BITS else None
        self._replace_nodes(node, [chain.act if written.bits != FLOAT_BITS else None, chain.norm, chain.head])
        if written_as is not None:  # else the activation of a float output stays a separate node
            self.source[node] = _Source(written_as, written, decision.signed)

    def _output(self, name: str, module: QuantLayer | QuantOperator, decision: Decision) -> str:
        """Give a module its output's quantizer and its activation; returns the quantizer's name."""
        module.activation = decision.activation
        if decision.shared is None:
            module.output = self._quantizer(decision.written, decision.signed)
            return f"{name}.output"
        share(module, output=self._shared(decision.shared, decision))
        return decision.shared

    def _shared(self, name: str, decision: Decision) -> ActivationQuantizer:
        if name not in self.shared:
            self.shared[name] = self._quantizer(decision.written, decision.signed)
            self.shared[name].members = decision.members
            self.traced.add_submodule(name, self.shared[name])
        return self.shared[name]

    def _replace_nodes(self, new: fx.Node, old: list[fx.Node | None]) -> None:
        """Replace nodes, given from last to first, by a new one."""
        replaced = [node for node in old if node is not None]
        replaced[0].replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        for node in replaced:
            self.graph.erase_node(node)

    def _layer(self, decision: Decision) -> QuantLayer:
        """The prepared layer: with a weight quantizer, gradient quantizer and bias correction where it gets them."""
        layer, bits, gradient = self.typed.layer(decision.chain.head), decision.weight_bits, None
        first = self.of_weights.get(layer.weight)
        weight = None if bits == FLOAT_BITS or first else self._weight_quantizer(bits, layer.weight)
        if decision.hidden and min(bits, decision.read.bits) < FLOAT_BITS:
            gradient = self.method.gradient(self.spec)
        corrects = bits != FLOAT_BITS and self.method.corrects(self.spec.options)
        correction = Correction(len(layer.weight), isinstance(layer, nn.Linear)) if corrects else None
        made = QuantLayer(layer, weight, gradient, correction, self.spec.weight_limit, borrows(layer))
        if first:
            share(made, weight_quantizer=first)
        elif weight is not None:
            self.of_weights[layer.weight] = weight
        return made

    def _weight_quantizer(self, bits: int, weight: Tensor) -> WeightQuantizer:
        quantizer = self.method.weight(self.spec, bits, tuple(weight.shape))
        check_weight_quantizer(quantizer, weight, self.checked)
        self._set_slope(quantizer, of_weights=True)
        return quantizer

    def _quantizer(self, precision: Precision, signed: bool) -> ActivationQuantizer:
        make = self.method.activation if precision.hidden else self.method.residual
        quantizer = make(self.spec, precision.bits, signed)
        check_activation_quantizer(quantizer)
        self._set_slope(quantizer, of_weights=False)
        return quantizer

    def _set_slope(self, quantizer: Quantizer, of_weights: bool) -> None:
        """Give a quantizer the gradient of rounding that the spec asks for."""
        asked = self.spec.options
        if isinstance(asked, TrainingOptions):
            grid = quantizer.grid()
            steps = (grid.q_max - grid.q_min) / grid.step
            quantizer.slope = slope(asked.rounding_gradient, asked.gradient_strength, steps, of_weights)

    def _replace_operator(self, decision: Decision) -> None:
        chain, written, head = decision.chain, decision.written, decision.chain.head
        constants = [value for value in inputs(head) if is_constant(value)]
        values = [self._as_wanted(value, decision.read) for value in inputs(head) if value not in constants]
        name = child_name(self.operators, head.name)
        module = self._operator(head)
        self.traced.add_submodule(name, module)
        with self.graph.inserting_before(head):
            if decision.role == "norm":
                constants = [self.graph.get_attr(target(head))]
            sources = [self._source(value) for value in values]
            given = [source and self.graph.get_attr(source.name) for source in sources]
            arguments = (tuple(values), tuple(given), *([tuple(constants)] if constants else []))
            node = self.graph.call_module(name, arguments)
        written_as = self._output(name, module, decision) if written.bits != FLOAT_BITS else None
        self._replace_nodes(node, [chain.act if written.bits != FLOAT_BITS else None, head])
        if written_as is not None:
            self.source[node] = _Source(written_as, written, decision.signed)

    def _operator(self, head: fx.Node) -> QuantOperator:
        """The prepared form of an operator without weights."""
        row = self.typed.operator(head)
        if self.typed.roles[head] == "norm":
            run: Callable[..., Tensor] = FunctionCall(normalize, (TENSOR, CONSTANT), {})
            return QuantOperator("channel_affine", elementwise, run, IDENTITY)
        module = self.typed.submodule(head)
        run = _function_of(head) if module is None else _out_of_place(module)
        return QuantOperator(self.typed.name(head), row.arithmetic or function, run, IDENTITY)

    def _as_wanted(self, value: fx.Node, wanted: Precision) -> fx.Node:
        """The value as its reader needs it: itself, or a second quantizer's output if its grid is wider or meant for
        other readers."""
        source = self._source(value)
        if source is None:
            return value
        if wanted.bits >= source.precision.bits and not self._is_for_others(source.precision, wanted):
            return value
        wanted = Precision(min(wanted.bits, source.precision.bits), wanted.hidden)
        if (value, wanted) not in self.second:
            name = f"{self.quantizers}.{value.name.removeprefix('quantizers_')}_to_{wanted.bits}"
            name = name if wanted.hidden else f"{name}_residual"
            self.traced.add_submodule(name, self._quantizer(wanted, source.signed))
            with self.graph.inserting_after(value):
                self.second[value, wanted] = self.graph.call_module(name, (value,))
            self.source[self.second[value, wanted]] = _Source(name, wanted, source.signed)
        return self.second[value, wanted]

    def _is_for_others(self, found: Precision, wanted: Precision) -> bool:
        """Whether the found grid is one that the method makes for other readers, and a hidden layer would read it."""
        apart = self.method.activation is not self.method.residual
        return apart and wanted.bits != FLOAT_BITS and wanted.hidden and not found.hidden

    def _quantize(self, decision: Decision) -> None:
        """Put a quantizer after the image or a float operator."""
        value, written = decision.chain.end, decision.written
        name = decision.shared or child_name(self.quantizers, value.name)
        if decision.shared:
            self._shared(decision.shared, decision)
        else:
            self.traced.add_submodule(name, self._quantizer(written, decision.signed))
        with self.graph.inserting_after(value):
            node = self.graph.call_module(name, (value,))
        value.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)
        self.source[node] = _Source(name, written, decision.signed)

    def _source(self, value: fx.Node) -> _Source | None:
        """The quantizer whose grid a value lies on, also after nodes that preserve the grid."""
        if value in self.source or not self.typed.preserves_qparams(value):
            return self.source.get(value)
        values = data_inputs(value)
        sources = [source for source in map(self._source, values) if source is not None]
        if len(sources) < len(values) or len({source.name for source in sources}) > 1:
            return None
        signed = self.typed.roles[value] != "activation" and any(source.signed for source in sources)
        return sources[0]._replace(signed=signed)


def _out_of_place(module: nn.Module) -> nn.Module:
    """The module, or a copy that leaves its input alone: quantizers keep what they return for the backward pass."""
    if not getattr(module, "inplace", False):
        return module
    same: Any = copy.copy(module)
    same.inplace = False
    return same


def _function_of(node: fx.Node) -> Callable[..., Tensor]:
    """The function of a node's tensors and constants alone, out of place; its other arguments are fixed."""
    places = {value: CONSTANT if is_constant(value) else TENSOR for value in node.all_input_nodes}
    args = tuple(places[value] if isinstance(value, fx.Node) else value for value in node.args)
    return FunctionCall(
        called(node), args, dict(node.kwargs) | ({"inplace": False} if "inplace" in node.kwargs else {})
    )
