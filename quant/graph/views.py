"""Quantizers of a prepared model switched on and off: all of them, or those of single layers."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torch import fx, nn

from quant.core.quantizer import Quantizer
from quant.graph.prepare import quantizers
from quant.graph.quant_layers import QuantLayer


class Placed(NamedTuple):
    """A layer, the quantizer whose grid its input lies on, and the batch norm behind it; either may be None."""

    layer: QuantLayer
    source: Quantizer | None
    norm: nn.Module | None

    def own(self) -> list[Quantizer]:
        """The quantizers of its weights and of what it reads, which other readers of the same value share."""
        return [one for one in (self.layer.weight_quantizer, self.source) if one is not None]


def layers(prepared: fx.GraphModule) -> dict[str, Placed]:
    """The layers of a prepared model by name, in topological order."""
    modules = dict(prepared.named_modules())
    nodes = [node for node in prepared.graph.nodes if node.op == "call_module"]
    return {
        node.target: Placed(modules[node.target], *(given and modules[given.target] for given in node.args[1:]))
        for node in nodes
        if isinstance(modules[node.target], QuantLayer)
    }


def switch(some: Iterable[Quantizer], enabled: bool, observing: bool = False) -> None:
    for quantizer in some:
        quantizer.enabled.fill_(enabled)
        quantizer.observing = observing


def set_enabled(prepared: nn.Module, enabled: bool) -> None:
    """Switch all quantizers on, or off: the prepared net then computes as the float net does."""
    switch(quantizers(prepared).values(), enabled)


@contextlib.contextmanager
def only(prepared: nn.Module, some: Iterable[Quantizer]) -> Iterator[None]:
    """With these quantizers on and all others off; afterwards all are on."""
    set_enabled(prepared, False)
    switch(some, True)
    try:
        yield
    finally:
        set_enabled(prepared, True)
