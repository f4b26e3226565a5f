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
from typing import Any

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
"""How many images are computed at once, at most."""
ELEMENTS = 2**22
"""Elements of the largest tensor that is computed at once, 16 MB. The C library takes tensors of more than 32 MB from
the system for each operator and returns them after it, which takes longer than a convolution."""


@dataclass(frozen=True)
class Block:
    """Part of a prepared graph: `nodes`, in order, compute the value of `exit` from that of `entry`.

    layers: the nodes among them that are QuantLayers. numbers: the nodes outside whose numbers the block may read.
    """

    entry: fx.Node
    nodes: tuple[fx.Node, ...]
    exit: fx.Node
    layers: tuple[fx.Node, ...]
    numbers: "Numbers"

    def single_layer(self, layer: fx.Node) -> "Block":
        """The block that consists of one of this block's layers."""
        return Block(as_node(layer_arguments(layer.args).x), _with_arguments([layer]), layer, (layer,), self.numbers)

    def up_to(self, layer: fx.Node) -> "Block":
        """The part of the block that computes the input of one of its layers. It may have no nodes."""
        before, end = self.nodes[: self.nodes.index(layer)], as_node(layer_arguments(layer.args).x)
        return Block(self.entry, before, end, (), self.numbers)


class Numbers:
    """The values in a graph that hold no tensor, such as x.size(0), for any number of images.

    two, three: the values of the nodes for two and for three images. What grows with the images grows evenly.
    """

    def __init__(self, two: dict[fx.Node, Any], three: dict[fx.Node, Any]):
        calls = {node: value for node, value in two.items() if node.op.startswith("call_")}
        self.pairs = {node: (value, three[node]) for node, value in calls.items() if not _holds_tensor(value)}

    def of(self, count: int) -> dict[fx.Node, Any]:
        return {node: _extended(*pair, count) for node, pair in self.pairs.items()}


def _holds_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(map(_holds_tensor, value)))


def _extended(two: Any, three: Any, count: int) -> Any:
    """A number, or a tuple of numbers, for `count` images."""
    if isinstance(two, tuple):
        return type(two)(_extended(a, b, count) for a, b in zip(two, three, strict=True))
    return two if two == three else two + (three - two) * (count - 2)


class BlockRunner(fx.Interpreter):
    """Runs blocks of a prepared model."""

    def __init__(self, prepared: fx.GraphModule):
        super().__init__(prepared, garbage_collect_values=False)

    def value(self, block: Block, x: Tensor) -> Tensor:
        """The value of `exit` if the value of `entry` is x. In-place operators may overwrite x."""
        self.env = {**block.numbers.of(len(x)), block.entry: x}
        for node in block.nodes:
            self.env[node] = self.run_node(node)
        return self.env[block.exit]

    @torch.no_grad()
    def values(self, block: Block, x: Tensor) -> Tensor:
        """Like `value`, but in batches and without gradients. x is not overwritten."""
        count = images_at_once(self.largest(block, x))
        return torch.cat([self.value(block, batch.clone()) for batch in x.split(count)])

    @torch.no_grad()
    def largest(self, block: Block, x: Tensor) -> int:
        """Elements of the largest value in the block, for one image. x: values of `entry`."""
        self.value(block, x[:1].clone())
        return max(value.numel() for value in self.env.values() if isinstance(value, Tensor))


def images_at_once(elements: int, least: int = 1, most: int = BATCH) -> int:
    """How many images to compute at once, if the largest tensor of one image has so many elements."""
    return max(least, min(most, ELEMENTS // elements))


def blocks(prepared: fx.GraphModule, image: Tensor) -> list[Block]:
    """The blocks of a prepared model, in order. Together they contain all its layers.

    image: [1, 3, H, W]. Runs on two and on three copies of it show which values have a row for each image.
    """
    two, three = (_values(prepared, image.repeat(count, 1, 1, 1)) for count in (2, 3))
    numbers = Numbers(two, three)
    batched = {node for node, value in three.items() if isinstance(value, Tensor) and value.shape[:1] == (3,)}
    order = [
        node for node in prepared.graph.nodes if node.op not in ("get_attr", "output") and node not in numbers.pairs
    ]
    modules = dict(prepared.named_modules())
    layers = [node for node in prepared.graph.nodes if isinstance(called_module(modules, node), QuantLayer)]
    merged: list[Block] = []
    chain: list[Block] = []
    for entry, nodes, end in _between(prepared, modules, order, _cut_points(order, batched)):
        block = Block(entry, _with_arguments(nodes), end, tuple(node for node in nodes if node in layers), numbers)
        chain.append(block)
        if len(block.layers) > 1:
            merged, chain = [*merged, *_merge(chain[:-1]), block], []
        elif len(chain) == MAX_CHAIN or _linear(modules, block):
            merged, chain = [*merged, *_merge(chain)], []
    return [*merged, *_merge(chain)]


@torch.no_grad()
def _values(prepared: fx.GraphModule, images: Tensor) -> dict[fx.Node, Any]:
    run = BlockRunner(prepared)
    run.run(images)
    return run.env


def _cut_points(order: list[fx.Node], batched: set[fx.Node]) -> list[fx.Node]:
    """The nodes that every path from the image to the logits runs through, in order, including both ends.

    order: the nodes that compute. batched: those whose values are tensors with one row for each image.
    """
    points, furthest = [], 0
    position = {node: i for i, node in enumerate(order)}
    for i, node in enumerate(order):
        if furthest <= i and node in batched:
            points.append(node)
        furthest = max([furthest, *(position[user] for user in node.users if user in position)])
    return points


def _between(
    prepared: fx.GraphModule, modules: dict[str, nn.Module], order: list[fx.Node], points: list[fx.Node]
) -> Iterator[tuple[fx.Node, list[fx.Node], fx.Node]]:
    """(entry, nodes, exit) of the smallest blocks: from cut point to cut point, with at least one layer in each."""
    graph = TypedGraph(prepared)
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
    return [Block(chain[0].entry, tuple(nodes), chain[-1].exit, tuple(layers), chain[0].numbers)]


def _linear(modules: dict[str, nn.Module], block: Block) -> bool:
    """Whether a block ends with a layer whose output is not clamped from below."""
    last = called_module(modules, block.exit)
    return isinstance(last, QuantLayer) and math.isinf(last.activation.low)


def _is_function(modules: dict[str, nn.Module], graph: TypedGraph, node: fx.Node) -> bool:
    operator = operator_view(modules, node)
    return graph.roles[node] == "activation" or (operator is not None and operator.operator.arithmetic is function)
