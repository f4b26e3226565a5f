"""Bit allocation: which values get a quantizer, of how many bits, and which values share a grid (concatenations).

It is decided on the float graph, before the graph is changed.

    the image                                   8, affine
    input of a layer                            act_bits; of the last layer first_last_bits
    input of an operator without weights        residual_bits; 8 before the first layer, float after the last
    the logits                                  none: float

A value that is read at two widths gets the wider grid, and the narrower reader a second quantizer. First layers read
the image, last layers write the logits, and the weights of both have first_last_bits; all others are hidden layers. A
method may quantize the inputs of hidden layers (Method.activation) differently from all other values
(Method.residual): a value that is read by both kinds of readers gets a second quantizer, too. All inputs of a
concatenation share one quantizer, along the whole chain of concatenations. `layers` of the setting gives single layers
their bits by name.
"""

import fnmatch
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, fx, nn

from quant.core.activation import IDENTITY, ClampedAffine
from quant.core.settings import LayerBits, ResolvedQuant
from quant.graph.layer_forms import free_name
from quant.graph.node_view import inputs, target
from quant.graph.op_table import RELU
from quant.graph.typed_graph import TypedGraph, data_inputs
from utils.sections import FLOAT_BITS

INTEGER_ROLES = ("binary", "average", "function", "activation", "norm")
"""Roles that have an integer form without weights; an activation by itself is computed as a function."""


@dataclass(frozen=True)
class Chain:
    """A node that computes, `head`, and the batch norm and activation that are fused into it; `end` is the last."""

    head: fx.Node
    end: fx.Node
    norm: fx.Node | None = None
    act: fx.Node | None = None


@dataclass(frozen=True)
class Precision:
    """How a value is quantized: bits (32: not at all), and whether as the input of hidden layers or as all others."""

    bits: int
    hidden: bool


UNQUANTIZED = Precision(FLOAT_BITS, False)


@dataclass(frozen=True)
class Decision:
    """What becomes of a chain.

    weight_bits: 32 for float. read: how its inputs are to be quantized; written: how its value is. signed: whether that
    can be negative. shared: the name of the quantizer that it shares in a concatenation, or None; members: how many
    chains share it.
    """

    chain: Chain
    role: str
    hidden: bool
    weight_bits: int
    read: Precision
    written: Precision
    signed: bool
    activation: ClampedAffine
    shared: str | None
    members: int


class BitAllocation:
    """Chains of a traced model, and the bits that `spec` gives to their weights and values."""

    def __init__(self, graph: TypedGraph, spec: ResolvedQuant):
        self.graph, self.role, self.spec = graph, graph.roles, spec
        fused: set[fx.Node | None] = set()
        self.chains: list[Chain] = []
        for node in graph.nodes:
            computes = not graph.preserves_qparams(node) and self.role[node] not in ("output", "shape", "constant")
            if computes and node not in fused:
                self.chains.append(self._chain(node))
                fused |= {self.chains[-1].norm, self.chains[-1].act}
        self.by_head = {chain.head: chain for chain in self.chains}
        self.by_end = {chain.end: chain for chain in self.chains}
        self.by_weight: dict[Tensor, list[Chain]] = {}
        for chain in self.chains:
            if self.role[chain.head] == "layer":
                self.by_weight.setdefault(graph.layer(chain.head).weight, []).append(chain)
        self.signs: dict[fx.Node, bool] = {}
        self.shared: dict[fx.Node, tuple[str, list[Chain]]] = {}
        for node in graph.nodes:
            if self.role[node] == "pass" and len(data_inputs(node)) > 1:
                self._join_quantizers(node)

    def decisions(self) -> list[Decision]:
        """In topological order."""
        return [
            Decision(
                chain,
                self.role[chain.head],
                self.role[chain.head] == "layer" and self.is_hidden(chain),
                self.weight_bits(chain) if self.role[chain.head] == "layer" else FLOAT_BITS,
                self.read(chain.head),
                self.written(chain),
                any(self.signed(member.end) and not self._ends_in_relu(member) for member in self._joined(chain)),
                self._activation(chain),
                self.shared.get(chain.head, (None,))[0],
                len(self._joined(chain)),
            )
            for chain in self.chains
        ]

    def weight_bits(self, chain: Chain) -> int:
        """The bits of the chain's weights: the most that any layer with these weights asks for."""
        same = self.by_weight[self.graph.layer(chain.head).weight]
        return max(map(self._weight_bits, same))

    def _weight_bits(self, chain: Chain) -> int:
        own = self.own_bits(chain).weight_bits
        if own is not None or self.spec.weight_bits == FLOAT_BITS:
            return FLOAT_BITS if own is None else own
        return self.spec.weight_bits if self.is_hidden(chain) else self._first_last(self.spec.weight_bits)

    def read(self, head: fx.Node) -> Precision:
        """How the head of a chain needs its inputs quantized; 32 bits if it takes them as they are."""
        if self.role[head] == "layer":
            return self._read_by_layer(self.by_head[head])
        if self.role[head] not in INTEGER_ROLES or not self._quantizes() or self.is_last(self.by_head[head]):
            return UNQUANTIZED
        return Precision(8 if self.is_first(self.by_head[head]) else self.spec.residual_bits, False)

    def _read_by_layer(self, chain: Chain) -> Precision:
        own, hidden = self.own_bits(chain).act_bits, self.is_hidden(chain)
        if own is not None:
            return Precision(own, hidden)
        if not self._quantizes() or (self.weight_bits(chain) == FLOAT_BITS and not hidden):
            return UNQUANTIZED
        if self.is_first(chain):
            return Precision(8, False)
        if hidden or self.spec.first_last_bits == "same":
            return Precision(self.spec.act_bits, True)
        return Precision(self._first_last(self.spec.act_bits), False)

    def written(self, chain: Chain) -> Precision:
        """The grid that the chain's value is put on; 32 bits for none."""
        readers = dict.fromkeys(reader for member in self._joined(chain) for reader in self._readers(member.end))
        wanted = [self.read(head) for head in readers if self.role[head] != "output" and not self._asks_for_float(head)]
        on_grids = [precision for precision in wanted if precision.bits != FLOAT_BITS]
        writes_integers = self._quantizes() and any(
            self.role[member.head] in ("layer", *INTEGER_ROLES) for member in self._joined(chain)
        )
        after_last_layer = any(self.is_last(member) for member in self._joined(chain))
        if writes_integers and len(on_grids) < len(wanted) and not after_last_layer:
            on_grids.append(Precision(self.spec.residual_bits, False))
        if not on_grids:
            return UNQUANTIZED
        return Precision(max(one.bits for one in on_grids), all(one.hidden for one in on_grids))

    def _asks_for_float(self, head: fx.Node) -> bool:
        """Whether a reader is a layer to which quant.layers gives float inputs."""
        return self.role[head] == "layer" and self.own_bits(self.by_head[head]).act_bits == FLOAT_BITS

    def own_bits(self, chain: Chain) -> LayerBits:
        """What the setting says of this layer by name; of several patterns that match, the last."""
        own = LayerBits()
        for pattern, bits in self.spec.layers.items():
            if fnmatch.fnmatchcase(target(chain.head), pattern):
                said = LayerBits(weight_bits=FLOAT_BITS, act_bits=FLOAT_BITS) if bits == "float" else bits
                own = own.model_copy(update=said.model_dump(exclude_none=True))
        return own

    def is_hidden(self, chain: Chain) -> bool:
        return not self.is_first(chain) and not self.is_last(chain)

    def is_first(self, chain: Chain) -> bool:
        """Whether no other layer comes before it: it reads the image, as it is or after other operators."""
        return not any(self.role[node] == "layer" for node in _reached(chain.head, lambda n: n.all_input_nodes))

    def is_last(self, chain: Chain) -> bool:
        """Whether no other layer comes after it: it writes the logits, or only other operators stand between."""
        return not any(self.role[node] == "layer" for node in _reached(chain.end, lambda n: n.users))

    def signed(self, node: fx.Node) -> bool:
        """Whether the value of a node can be negative, as far as the graph tells."""
        if node not in self.signs:
            self.signs[node] = self._signed(node)
        return self.signs[node]

    def _signed(self, node: fx.Node) -> bool:
        values = inputs(node) if self.role[node] == "binary" else data_inputs(node)
        follows = self.role[node] in ("binary", "pass", "average")
        return self.graph.signed(node, [self.signed(value) for value in values] if follows else [])

    def _quantizes(self) -> bool:
        return self.spec.act_bits != FLOAT_BITS

    def _first_last(self, otherwise: int) -> int:
        return otherwise if self.spec.first_last_bits == "same" else self.spec.first_last_bits

    def _chain(self, head: fx.Node) -> Chain:
        end, norm, act = head, None, None
        if self.role[head] == "layer" and self._is_convolution(head):
            norm = self._only_user(end, "norm")
            end = norm or end
        if self.role[head] not in ("image", "activation"):
            act = self._only_user(end, "activation")
            affine = None if act is None else self.graph.activation(act)
            if affine is not None and affine.gain != 1 and self.role[head] != "layer":
                act = None  # only weights can absorb its gain
            end = act or end
        return Chain(head, end, norm, act)

    def _activation(self, chain: Chain) -> ClampedAffine:
        """What to apply before the chain's value is quantized: the fused activation; a ReLU after pools and reshapes,
        which gives the same in front of them; or the bounds beyond which its only reader, a function, is constant."""
        fused = None if chain.act is None else self.graph.activation(chain.act)
        if fused is not None:
            return fused
        if self._ends_in_relu(chain):
            return RELU
        function = self._only_user(chain.end, "function")
        return IDENTITY if function is None else self.graph.operator(function).tail

    def _ends_in_relu(self, chain: Chain) -> bool:
        """Whether a chain has no activation and all its readers read it through a ReLU."""
        return (
            chain.act is None and self.role[chain.head] not in ("image", "activation") and self._behind_relu(chain.end)
        )

    def _behind_relu(self, node: fx.Node) -> bool:
        users = [user for user in node.users if self.role[user] != "shape"]
        return bool(users) and all(
            self.graph.activation(user) == RELU or (self.role[user] == "pass" and self._behind_relu(user))
            for user in users
        )

    def _join_quantizers(self, concatenation: fx.Node) -> None:
        """Let the chains that a concatenation joins share one quantizer, with all that share one with them already."""
        name, found = f"{free_name(self.graph.module, 'quantizers')}.{concatenation.name}", {}
        for end in self._origins(concatenation):
            for chain in self._joined(self.by_end[end]):
                found[chain.head] = chain
        for head in found:
            self.shared[head] = name, list(found.values())

    def _joined(self, chain: Chain) -> list[Chain]:
        return self.shared[chain.head][1] if chain.head in self.shared else [chain]

    def _origins(self, node: fx.Node) -> list[fx.Node]:
        """The ends of the chains whose values reach a node unchanged."""
        if node in self.by_end:
            return [node]
        return [end for value in data_inputs(node) for end in self._origins(value)]

    def _is_convolution(self, head: fx.Node) -> bool:
        """Only a convolution absorbs its batch norm; after a linear layer it may run over another axis: [N, T, C]."""
        return isinstance(self.graph.submodule(head), nn.Conv2d)

    def _only_user(self, node: fx.Node, role: str) -> fx.Node | None:
        users = list(node.users)
        return users[0] if len(users) == 1 and self.role[users[0]] == role else None

    def _readers(self, end: fx.Node) -> Iterator[fx.Node]:
        for user in end.users:
            if self.role[user] == "shape":
                continue
            if user in self.by_head or not self.graph.preserves_qparams(user):
                yield user
            elif end in data_inputs(user):  # else it only sets a size or an index
                yield from self._readers(user)


def _reached(start: fx.Node, step: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    """All nodes that repeated steps from `start` lead to, without it."""
    found: set[fx.Node] = set()
    waiting = [start]
    while waiting:
        new = set(step(waiting.pop())) - found
        found |= new
        waiting += new
    return found
