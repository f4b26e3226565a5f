"""Blocks of a prepared graph: from one value that every path runs through to another, found in the graph alone.

In the order of the graph, a node is such a point if no value from before it is read after it: behind a residual
addition, a concatenation, or each layer of a chain. A block reaches from point to point and holds at least one layer;
an element-wise function behind it belongs to it. Layers in a row are joined up to three, or to where a value is linear
(the bottlenecks of MobileNetV2): what is summed or squeezed there is worth more than what is between.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from quant.core.integer_operator import function
from quant.graph.quant_layers import QuantLayer
from quant.graph.typed_graph import TypedGraph
from quant.graph.views import operator_view

JOINED = 3
"""Layers in a row that make a block."""
BATCH = 128
"""Images computed at once."""


@dataclass(frozen=True)
class Section:
    """Nodes, in order, that make the value of `exit` out of that of `entry`. `layers`: the QuantLayers among them."""

    entry: fx.Node
    nodes: tuple[fx.Node, ...]
    exit: fx.Node
    layers: tuple[fx.Node, ...]

    def alone(self, layer: fx.Node) -> "Section":
        """One of its layers by itself."""
        return Section(layer.args[0], _with_given([layer]), layer, (layer,))

    def before(self, layer: fx.Node) -> "Section":
        """What makes the input of one of its layers."""
        return Section(self.entry, self.nodes[: self.nodes.index(layer)], layer.args[0], ())


class Run(fx.Interpreter):
    """Computes sections of a prepared model."""

    def __init__(self, prepared: fx.GraphModule):
        super().__init__(prepared, garbage_collect_values=False)

    def value(self, section: Section, x: Tensor) -> Tensor:
        """The value of `exit` where that of `entry` is x."""
        self.env = {section.entry: x}
        for node in section.nodes:
            self.env[node] = self.run_node(node)
        return self.env[section.exit]

    @torch.no_grad()
    def values(self, section: Section, x: Tensor) -> Tensor:
        """The same in batches; x stays as it is, whatever works in place."""
        return torch.cat([self.value(section, part.clone()) for part in x.split(BATCH)])


def blocks(prepared: fx.GraphModule, images: Tensor) -> list[Section]:
    """The blocks in order; images: two, to see which values have a row for each."""
    modules = dict(prepared.named_modules())
    layers = [node for node in prepared.graph.nodes if isinstance(_module(modules, node), QuantLayer)]
    found, row = [], []
    for entry, nodes, end in _between(prepared, modules, _points(prepared, images)):
        section = Section(entry, _with_given(nodes), end, tuple(node for node in nodes if node in layers))
        row.append(section)
        if len(section.layers) > 1:
            found, row = [*found, *_joined(row[:-1]), section], []
        elif len(row) == JOINED or _linear(modules, section):
            found, row = [*found, *_joined(row)], []
    return [*found, *_joined(row)]


def _points(prepared: fx.GraphModule, images: Tensor) -> list[fx.Node]:
    """Nodes that every path from the image to the logits runs through, both among them."""
    nodes, rows, found, furthest = _computing(prepared), _rows(prepared, images), [], 0
    place = {node: i for i, node in enumerate(nodes)}
    for i, node in enumerate(nodes):
        if furthest <= i and node in rows:
            found.append(node)
        furthest = max([furthest, *(place[user] for user in node.users if user in place)])
    return found


@torch.no_grad()
def _rows(prepared: fx.GraphModule, images: Tensor) -> set[fx.Node]:
    """The nodes whose values are tensors with a row for each image."""
    run = Run(prepared)
    run.run(images)
    return {
        node for node, value in run.env.items() if isinstance(value, Tensor) and value.shape[:1] == images.shape[:1]
    }


def _between(
    prepared: fx.GraphModule, modules: dict[str, nn.Module], points: list[fx.Node]
) -> Iterator[tuple[fx.Node, list[fx.Node], fx.Node]]:
    """(entry, nodes, exit) from point to point, each with layers and the functions behind them."""
    order, graph = _computing(prepared), TypedGraph(prepared)
    entry, inside, holds = points[0], [], False
    for before, point in itertools.pairwise(points):
        part = order[order.index(before) + 1 : order.index(point) + 1]
        if holds and not (len(part) == 1 and _is_function(modules, graph, point)):
            yield entry, inside, before
            entry, inside, holds = before, [], False
        inside = [*inside, *part]
        holds = holds or any(isinstance(_module(modules, node), QuantLayer) for node in part)
    if holds:
        yield entry, inside, points[-1]


def _computing(prepared: fx.GraphModule) -> list[fx.Node]:
    return [node for node in prepared.graph.nodes if node.op not in ("get_attr", "output")]


def _with_given(nodes: list[fx.Node]) -> tuple[fx.Node, ...]:
    """The nodes behind the quantizers and norms that they are given."""
    given = [value for node in nodes for value in node.all_input_nodes if value.op == "get_attr"]
    return (*dict.fromkeys(given), *nodes)


def _joined(row: list[Section]) -> list[Section]:
    """Sections in a row as one; none for none."""
    if not row:
        return []
    nodes = (node for section in row for node in section.nodes)
    layers = (layer for section in row for layer in section.layers)
    return [Section(row[0].entry, tuple(nodes), row[-1].exit, tuple(layers))]


def _linear(modules: dict[str, nn.Module], section: Section) -> bool:
    """Whether a layer writes the exit and nothing bounds it from below."""
    last = _module(modules, section.exit)
    return isinstance(last, QuantLayer) and math.isinf(last.activation.low)


def _is_function(modules: dict[str, nn.Module], graph: TypedGraph, node: fx.Node) -> bool:
    operator = operator_view(modules, node)
    return graph.roles[node] == "activation" or (operator is not None and operator.operator.arithmetic is function)


def _module(modules: dict[str, nn.Module], node: fx.Node) -> nn.Module | None:
    return modules.get(node.target) if node.op == "call_module" else None
