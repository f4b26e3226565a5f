"""How much of a model runs in integers: the share of its multiply-accumulates, without reading an image.

The graph is run on tensors without data (torch's meta device), and torch's FlopCounterMode counts the
multiply-accumulates of each node. Those of layers with integer weights and inputs run in integers; all others, and
those of functions without an integer form, in float. For a float model, graph/bit_allocation.py says which layers these
are.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from quant.core.batch_norm import BatchNorm
from quant.core.method import AnyMethod
from quant.core.quantizer import Quantizer
from quant.core.settings import ResolvedQuant
from quant.graph.bit_allocation import BitAllocation, Decision
from quant.graph.node_view import target
from quant.graph.quant_layers import QuantLayer, QuantOperator
from quant.graph.trace import trace
from quant.graph.typed_graph import TypedGraph
from quant.graph.views import LayerView, layer_view, operator_arguments
from utils.errors import UserError
from utils.sections import FLOAT_BITS

MAX_NAMED = 4
"""How many operators in float `text` names."""


@dataclass(frozen=True)
class IntegerShare:
    """Multiply-accumulates of one image: all of them, those that run in float, {name: (count, why)}, the most first,
    and all by the name of the layer or operator."""

    macs: int
    in_float: dict[str, tuple[int, str]]
    by_name: dict[str, int] = field(default_factory=dict)

    def percent_of(self, name: str) -> float:
        """Of 100 multiply-accumulates, how many are in this layer or operator."""
        return 100.0 * self.by_name.get(name, self.by_name.get(f"operators.{name}", 0)) / max(self.macs, 1)

    @property
    def percent(self) -> float:
        """Of 100 multiply-accumulates, how many run in integers."""
        return 100.0 * (self.macs - sum(count for count, _ in self.in_float.values())) / max(self.macs, 1)

    def __str__(self) -> str:
        """'98.7 % of MACs in integers; in float: body.7 (1.3 %, its weights stay in float)'."""
        named = [f"{name} ({100 * count / self.macs:.1f} %, {why})" for name, (count, why) in self.in_float.items()]
        more = f" and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
        share = f"{self.percent:.1f} % of MACs in integers"
        return f"{share}; in float: {', '.join(named[:MAX_NAMED])}{more}" if named else share


def planned_integer_share(
    model: nn.Module, spec: ResolvedQuant, method: AnyMethod, image_size: int, channels: int = 3
) -> IntegerShare:
    """The IntegerShare that a float model will have once it is prepared with a resolved spec, for square images of this
    size. The model stays as it is. Raises UserError if it cannot be traced."""
    traced = trace(model, method.trains_quantized(spec))
    decisions = BitAllocation(TypedGraph(traced), spec).decisions()
    return _share(
        traced, (channels, image_size, image_size), {one.chain.head for one in decisions if _will_be_integer(one)}
    )


def integer_share(prepared: fx.GraphModule, image_size: int, channels: int = 3) -> IntegerShare:
    """The IntegerShare of a prepared model."""
    modules = dict(prepared.named_modules())
    views = {node: layer_view(modules, node) for node in prepared.graph.nodes}
    integers = {node for node, view in views.items() if view is not None and _is_integer(view)}
    return _share(prepared, (channels, image_size, image_size), integers)


def _share(module: fx.GraphModule, image_shape: tuple[int, int, int], integers: set[fx.Node]) -> IntegerShare:
    counter, graph = _Counter(module), TypedGraph(module)
    with torch.no_grad():
        counter.run(torch.empty(2, *image_shape, device="meta"))
    by_name: dict[str, int] = {}
    for node, count in counter.macs.items():
        by_name[_name(node)] = by_name.get(_name(node), 0) + count
    found = {_name(node): (count, _why(node, graph)) for node, count in counter.macs.items() if node not in integers}
    in_float = dict(sorted(found.items(), key=lambda pair: -pair[1][0]))
    return IntegerShare(sum(counter.macs.values()), in_float, by_name)


def _name(node: fx.Node) -> str:
    return target(node) if node.op == "call_module" else node.name


def check_integer_share(share: IntegerShare, spec: ResolvedQuant) -> None:
    """Raise UserError if less of a model runs in integers than quant.min_integer_share, and the setting did not ask for
    that itself."""
    asked = FLOAT_BITS not in (spec.weight_bits, spec.act_bits) and "float" not in spec.layers.values()
    if asked and share.percent < 100 * spec.min_integer_share:
        raise UserError(
            f"quant.min_integer_share: {share}; at least {100 * spec.min_integer_share:g} % are asked for "
            f"(quant.min_integer_share={int(share.percent) / 100:g} takes it as it is)"
        )


def _will_be_integer(decision: Decision) -> bool:
    return decision.role == "layer" and FLOAT_BITS not in (decision.weight_bits, decision.read.bits)


def _is_integer(view: LayerView) -> bool:
    return view.layer.weight_quantizer is not None and view.source is not None


def _why(node: fx.Node, graph: TypedGraph) -> str:
    if graph.roles[node] == "layer" or isinstance(graph.submodule(node), QuantLayer):
        return "its weights or inputs stay in float"
    return graph.why_float(node) or "no integer form"


class _Counter(fx.Interpreter):
    """Runs a graph on the meta device and counts multiply-accumulates of one image, by node."""

    def __init__(self, traced: fx.GraphModule):
        super().__init__(traced)
        self.macs: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            value = super().run_node(n)
        if counter.get_total_flops():
            self.macs[n] = counter.get_total_flops() // 4  # two operations each, and two images
        return value

    def call_module(self, target: Any, args: tuple, kwargs: dict) -> Any:
        """A prepared layer or operator without its quantizers; other modules as they are."""
        module = super().fetch_attr(target)
        if isinstance(module, QuantLayer):
            return module.geometry(args[0], module.weight.to("meta"))
        if isinstance(module, QuantOperator):
            given = operator_arguments(args)
            return module.bound(given.constants)(*given.values)
        if isinstance(module, Quantizer):
            return args[0]
        return self._on_meta(module)(*args, **kwargs)

    def fetch_attr(self, target: str) -> Any:
        value = super().fetch_attr(target)
        if isinstance(value, torch.Tensor):
            return value.to("meta")
        return self._on_meta(value) if isinstance(value, BatchNorm) else value

    def _on_meta(self, module: nn.Module) -> Callable[..., Any]:
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        meta = {name: value.to("meta") for name, value in tensors.items()}
        return lambda *args, **kwargs: functional_call(module, meta, args, kwargs)
