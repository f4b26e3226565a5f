"""Divide a prepared graph into blocks for reconstruction (ptq/brecq.py). Only the graph is read, no module names.

A cut point is a node through which every path from the image to the logits runs: no value from before it is read after
it. The output of a residual addition, a concatenation, or a layer in a chain is such a point. A block reaches from one
cut point to another and contains at least one layer. Element-wise functions after it belong to it.

Consecutive blocks of one layer each are merged, up to three layers. Merging also ends at a layer whose output is not
clamped from below (the linear bottlenecks of MobileNetV2): errors matter more there than at the values between.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from quant.core.integer_operator import function
from quant.graph.node_view import as_node
from quant.graph.quant_layers import QuantLayer
from quant.graph.typed_graph import TypedGraph
from quant.graph.views import called_module, layer_arguments, operator_view

MAX_CHAIN = 3
"""How many layers in a chain are merged into one block."""
BATCH = 128
"""How many images are computed at once."""


@dataclass(frozen=True)
class Block:
    """Part of a prepared graph: `nodes`, in order, compute the value of `exit` from that of `entry`.

    layers: the nodes among them that are QuantLayers.
    """

    entry: fx.Node
    nodes: tuple[fx.Node, ...]
    exit: fx.Node
    layers: tuple[fx.Node, ...]

    def single_layer(self, layer: fx.Node) -> "Block":
        """The block that consists of one of this block's layers."""
        return Block(as_node(layer_arguments(layer.args).x), _with_arguments([layer]), layer, (layer,))

    def up_to(self, layer: fx.Node) -> "Block":
        """The part of the block that computes the input of one of its layers. It may have no nodes."""
        return Block(self.entry, self.nodes[: self.nodes.index(layer)], as_node(layer_arguments(layer.args).x), ())


class BlockRunner(fx.Interpreter):
    """Runs blocks of a prepared model."""

    def __init__(self, prepared: fx.GraphModule):
        super().__init__(prepared, garbage_collect_values=False)

    def value(self, block: Block, x: Tensor) -> Tensor:
        """The value of `exit` if the value of `entry` is x. In-place operators may overwrite x."""
        self.env = {block.entry: x}
        for node in block.nodes:
            self.env[node] = self.run_node(node)
        return self.env[block.exit]

    @torch.no_grad()
    def values(self, block: Block, x: Tensor) -> Tensor:
        """Like `value`, but in batches and without gradients. x is not overwritten."""
        return torch.cat([self.value(block, batch.clone()) for batch in x.split(BATCH)])


def blocks(prepared: fx.GraphModule, images: Tensor) -> list[Block]:
    """The blocks of a prepared model, in order. Together they contain all its layers.

    images: two images [2, 3, H, W]. One run on them shows which values have a row for each image.
    """
    modules = dict(prepared.named_modules())
    layers = [node for node in prepared.graph.nodes if isinstance(called_module(modules, node), QuantLayer)]
    merged: list[Block] = []
    chain: list[Block] = []
    for entry, nodes, end in _between(prepared, modules, _cut_points(prepared, images)):
        block = Block(entry, _with_arguments(nodes), end, tuple(node for node in nodes if node in layers))
        chain.append(block)
        if len(block.layers) > 1:
            merged, chain = [*merged, *_merge(chain[:-1]), block], []
        elif len(chain) == MAX_CHAIN or _linear(modules, block):
            merged, chain = [*merged, *_merge(chain)], []
    return [*merged, *_merge(chain)]


def _cut_points(prepared: fx.GraphModule, images: Tensor) -> list[fx.Node]:
    """The nodes that every path from the image to the logits runs through, in order, including both ends."""
    nodes, batched, points, furthest = _computing(prepared), _batched(prepared, images), [], 0
    position = {node: i for i, node in enumerate(nodes)}
    for i, node in enumerate(nodes):
        if furthest <= i and node in batched:
            points.append(node)
        furthest = max([furthest, *(position[user] for user in node.users if user in position)])
    return points


@torch.no_grad()
def _batched(prepared: fx.GraphModule, images: Tensor) -> set[fx.Node]:
    """The nodes whose values are tensors with one row for each image."""
    run = BlockRunner(prepared)
    run.run(images)
    return {
        node for node, value in run.env.items() if isinstance(value, Tensor) and value.shape[:1] == images.shape[:1]
    }


def _between(
    prepared: fx.GraphModule, modules: dict[str, nn.Module], points: list[fx.Node]
) -> Iterator[tuple[fx.Node, list[fx.Node], fx.Node]]:
    """(entry, nodes, exit) of the smallest blocks: from cut point to cut point, with at least one layer in each."""
    order, graph = _computing(prepared), TypedGraph(prepared)
    nodes: list[fx.Node] = []
    entry, has_layers = points[0], False
    for before, point in itertools.pairwise(points):
        segment = order[order.index(before) + 1 : order.index(point) + 1]
        if has_layers and not (len(segment) == 1 and _is_function(modules, graph, point)):
            yield entry, nodes, before
            entry, nodes, has_layers = before, [], False
        nodes = [*nodes, *segment]
        has_layers = has_layers or any(isinstance(called_module(modules, node), QuantLayer) for node in segment)
    if has_layers:
        yield entry, nodes, points[-1]


def _computing(prepared: fx.GraphModule) -> list[fx.Node]:
    return [node for node in prepared.graph.nodes if node.op not in ("get_attr", "output")]


def _with_arguments(nodes: list[fx.Node]) -> tuple[fx.Node, ...]:
    """The nodes, after the get_attr nodes of the quantizers and batch norms that are passed to them."""
    arguments = [value for node in nodes for value in node.all_input_nodes if value.op == "get_attr"]
    return (*dict.fromkeys(arguments), *nodes)


def _merge(chain: list[Block]) -> list[Block]:
    """Consecutive blocks as one block, in a list; an empty list for none."""
    if not chain:
        return []
    nodes = (node for block in chain for node in block.nodes)
    layers = (layer for block in chain for layer in block.layers)
    return [Block(chain[0].entry, tuple(nodes), chain[-1].exit, tuple(layers))]


def _linear(modules: dict[str, nn.Module], block: Block) -> bool:
    """Whether a block ends with a layer whose output is not clamped from below."""
    last = called_module(modules, block.exit)
    return isinstance(last, QuantLayer) and math.isinf(last.activation.low)


def _is_function(modules: dict[str, nn.Module], graph: TypedGraph, node: fx.Node) -> bool:
    operator = operator_view(modules, node)
    return graph.roles[node] == "activation" or (operator is not None and operator.operator.arithmetic is function)
