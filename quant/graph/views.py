"""Typed views of a prepared model's nodes, and switches for its quantizers."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from quant.core.batch_norm import BatchNorm
from quant.core.quantizer import TINY, ActivationQuantizer, Quantizer, WeightQuantizer
from quant.graph.node_view import as_node, target
from quant.graph.quant_layers import QuantLayer, QuantOperator


@dataclass(frozen=True)
class LayerView:
    """A QuantLayer, the value `x` that it reads, the activation quantizer on whose grid x lies, and the batch norm
    after the layer; the last two may be None."""

    layer: QuantLayer
    x: fx.Node
    source: ActivationQuantizer | None
    norm: BatchNorm | None

    def quantizers(self) -> list[Quantizer]:
        """Those of its weights and of its input, which other readers of the same value share."""
        return [one for one in (self.layer.weight_quantizer, self.source) if one is not None]


@dataclass(frozen=True)
class OperatorView:
    """A QuantOperator, the values that it reads, the activation quantizer on whose grid each lies, or None, and the
    constants of the model that it reads."""

    operator: QuantOperator
    values: tuple[fx.Node, ...]
    sources: tuple[ActivationQuantizer | None, ...]
    constants: tuple[fx.Node, ...]


@dataclass(frozen=True)
class LayerArguments:
    """What a call of QuantLayer passes: nodes in the graph; when it runs, a tensor and two modules. The last two may be
    None."""

    x: Any
    source: Any
    norm: Any


@dataclass(frozen=True)
class OperatorArguments:
    """What a call of QuantOperator passes: nodes in the graph; when it runs, tensors, and modules or None."""

    values: Sequence[Any]
    sources: Sequence[Any]
    constants: Sequence[Any] = ()


def layer_arguments(args: Sequence[Any]) -> LayerArguments:
    """The arguments of a call of QuantLayer by name."""
    return LayerArguments(*args)


def operator_arguments(args: Sequence[Any]) -> OperatorArguments:
    """The arguments of a call of QuantOperator by name."""
    return OperatorArguments(*args)


def called_module(modules: Mapping[str, nn.Module], node: fx.Node) -> nn.Module | None:
    """The module that a node calls, of those of the model by name; None if it calls a function or a method."""
    return modules.get(target(node)) if node.op == "call_module" else None


def layer_view(modules: Mapping[str, nn.Module], node: fx.Node) -> LayerView | None:
    """A node of a prepared graph as a layer; None if it is none. modules: those of the model, by name."""
    layer = called_module(modules, node)
    if not isinstance(layer, QuantLayer):
        return None
    given = layer_arguments(node.args)
    return LayerView(layer, as_node(given.x), _quantizer(modules, given.source), _batch_norm(modules, given.norm))


def operator_view(modules: Mapping[str, nn.Module], node: fx.Node) -> OperatorView | None:
    """A node of a prepared graph as an operator without weights; None if it is none."""
    operator = called_module(modules, node)
    if not isinstance(operator, QuantOperator):
        return None
    given = operator_arguments(node.args)
    sources = tuple(_quantizer(modules, source) for source in given.sources)
    return OperatorView(operator, tuple(map(as_node, given.values)), sources, tuple(map(as_node, given.constants)))


def _quantizer(modules: Mapping[str, nn.Module], argument: object) -> ActivationQuantizer | None:
    """The activation quantizer that the graph passes to a layer or operator, or None."""
    module = None if argument is None else modules[target(as_node(argument))]
    if module is not None and not isinstance(module, ActivationQuantizer):
        raise TypeError(f"{type(module).__name__} is not an activation quantizer")
    return module


def _batch_norm(modules: Mapping[str, nn.Module], argument: object) -> BatchNorm | None:
    """The batch norm that the graph passes to a layer, or None."""
    module = None if argument is None else modules[target(as_node(argument))]
    if module is not None and not isinstance(module, BatchNorm):
        raise TypeError(f"{type(module).__name__} is not a batch norm")
    return module


def layers(prepared: fx.GraphModule) -> dict[str, LayerView]:
    """The layers of a prepared model by name, in topological order."""
    modules = dict(prepared.named_modules())
    views = ((node, layer_view(modules, node)) for node in prepared.graph.nodes)
    return {target(node): view for node, view in views if view is not None}


def quantizers(prepared: nn.Module) -> dict[str, Quantizer]:
    """All quantizers of a prepared model by name."""
    return {name: module for name, module in prepared.named_modules() if isinstance(module, Quantizer)}


def without_range(prepared: nn.Module) -> list[str]:
    """The quantizers of which every scale is the least one: learned steps or ranges have come to zero or below."""
    kinds = (WeightQuantizer, ActivationQuantizer)
    ranged = {name: q for name, q in quantizers(prepared).items() if isinstance(q, kinds) and q.is_calibrated()}
    return [name for name, q in ranged.items() if bool((q.grid().scale <= TINY).all())]


def switch(some: Iterable[Quantizer], enabled: bool, observing: bool = False) -> None:
    """Enable or disable some quantizers, and let them observe in eval, or not."""
    for quantizer in some:
        quantizer.enabled = enabled
        quantizer.observing = observing


def set_enabled(prepared: nn.Module, enabled: bool) -> None:
    """Enable or disable all quantizers. Without them the prepared model computes as the float model does."""
    switch(quantizers(prepared).values(), enabled)


@contextlib.contextmanager
def only(prepared: nn.Module, some: Iterable[Quantizer]) -> Iterator[None]:
    """Enable these quantizers and disable all others; afterwards all are enabled."""
    set_enabled(prepared, False)
    switch(some, True)
    try:
        yield
    finally:
        set_enabled(prepared, True)


def without_quantizers(prepared: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Disable all quantizers, so that the model computes as the float model does; afterwards all are enabled."""
    return only(prepared, ())
