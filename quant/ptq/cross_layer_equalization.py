"""Cross-layer equalization (Nagel et al., arXiv 1906.04721, section 4.1), of a float net, in place and exactly.

Between two layers a channel may be divided by any s_i > 0 and multiplied back, since f(s x) = s f(x) of a ReLU:

    W1' = W1 / s,    b1' = b1 / s,    W2' = W2 s,    s_i = sqrt(r1_i r2_i) / r2_i

makes the ranges r1_i = max |W1_i| of the producer's rows and r2_i = max |W2_:i| of the consumer's columns the same. All
pairs take turns until nothing moves. A pair is a convolution or linear layer, its batch norm, a ReLU or nothing, then
pools, dropouts or a flattening, and one layer that alone reads it. Where something bounds the value on both sides, or
bends it otherwise (ReLU6, hard-swish), where there is a second reader, and where another layer has the same tensor,
nothing is done.

Differs from the paper: batch norm is not folded: r1 is of the weights times |gamma| / sqrt(var + eps), and gamma and
beta are divided; high biases are not absorbed. r1 is never less than |b1| (|beta|), or a channel that is all bias would
be blown up. A depthwise layer is the consumer of one pair and the producer of the next.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from quant.graph.op_table import RELU
from quant.graph.trace import trace
from quant.graph.typed_graph import TypedGraph

SWEEPS = 20
STILL = 1e-3
"""Scales nearer to 1 than this do not count as movement."""


@dataclass(frozen=True)
class Pair:
    producer: nn.Conv2d | nn.Linear
    norm: nn.BatchNorm2d | None
    consumer: nn.Conv2d | nn.Linear

    def parts(self) -> list[nn.Module]:
        return [part for part in (self.producer, self.norm, self.consumer) if part is not None]


@torch.no_grad()
def equalize(model: nn.Module) -> int:
    """Equalize a float model in place; its outputs stay what they are in eval. Returns how many pairs there are."""
    found = pairs(trace(model))
    for _ in range(SWEEPS):
        moved = [_even_out(pair) for pair in found]
        if max(moved, default=0.0) < STILL:
            break
    return len(found)


def pairs(traced: fx.GraphModule) -> list[Pair]:
    """The pairs of layers that can be equalized, in topological order."""
    graph, found, calls = TypedGraph(traced), [], Counter(node.target for node in traced.graph.nodes)
    role = graph.roles
    owners = Counter(id(tensor) for _, tensor in traced.named_parameters(remove_duplicate=False))
    for node in traced.graph.nodes:
        if role[node] != "layer":
            continue
        end = _only(node)
        normed = end.target if end and role[end] == "norm" else None
        norm = normed and traced.get_submodule(normed)
        end = _only(end) if norm is not None else end
        end, between = _only(end) if end and graph.activation(end) == RELU else end, []
        while end and _keeps_channels(graph, end):
            between.append(end)
            end = _only(end)
        if end and role[end] == "layer" and (norm is None or calls[normed] == 1):
            pair = Pair(traced.get_submodule(node.target), norm, traced.get_submodule(end.target))
            alone = all(owners[id(tensor)] == 1 for part in pair.parts() for tensor in part.parameters(recurse=False))
            found += [pair] if alone and _fits(pair) and _same_axis(graph, pair, between) else []
    return found


def _same_axis(graph: TypedGraph, pair: Pair, between: list[fx.Node]) -> bool:
    """Whether the consumer's inputs are the producer's channels. A convolution has them on axis 1, a linear layer on
    the last: feature maps have to be flattened between the two, and nothing may pool over a linear layer's channels."""
    if isinstance(pair.producer, nn.Linear):
        return not any(graph.roles[node] == "average" or graph.operator(node).pads for node in between)
    flat = any(graph.names[node] == "mean" or _flattens(graph, node) for node in between)
    return flat or isinstance(pair.consumer, nn.Conv2d)


def _only(node: fx.Node) -> fx.Node | None:
    """The one reader of a node."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _keeps_channels(graph: TypedGraph, node: fx.Node) -> bool:
    """Whether f(s x) = s f(x) for a scale a channel: pools, dropouts, and [N, C, H, W] flattened with C first."""
    if graph.roles[node] == "average" or _flattens(graph, node):
        return True
    return node.op == "call_module" and graph.operator(node).commutes_with_scaling


def _flattens(graph: TypedGraph, node: fx.Node) -> bool:
    """Whether a node flattens all axes but the first."""
    if graph.names[node] != "flatten":
        return False
    module = graph.submodule(node)
    if module is not None:
        return (module.start_dim, module.end_dim) == (1, -1)
    return node.args[1:] == (1,) and not node.kwargs


def _fits(pair: Pair) -> bool:
    """Whether the producer's channels are whole runs of the consumer's inputs, and the norm has a gamma to divide.

    A linear layer's channels come last, and are runs of one.
    """
    outputs, columns = len(pair.producer.weight), _by_input(pair.consumer)
    inputs = columns.shape[0] * columns.shape[2]
    if isinstance(pair.producer, nn.Linear):
        return inputs == outputs and pair.norm is None
    return inputs % outputs == 0 and (pair.norm is None or pair.norm.affine)


def _even_out(pair: Pair) -> float:
    """One step for one pair; returns how far from 1 its largest scale was."""
    owner = pair.producer if pair.norm is None else pair.norm
    inputs, r1 = _by_input(pair.consumer), _range(pair)
    r2 = inputs.abs().amax([axis for axis in range(inputs.ndim) if axis not in (0, 2)]).view(len(r1), -1).amax(1)
    s = torch.where((r1 > 0) & (r2 > 0), (r1 / r2).sqrt(), 1.0)
    owner.weight.div_(s.view(-1, *[1] * (owner.weight.ndim - 1)))
    if owner.bias is not None:
        owner.bias.div_(s)
    of_inputs = s.repeat_interleave(inputs.shape[0] * inputs.shape[2] // len(s))
    inputs.mul_(of_inputs.view(len(inputs), 1, -1, *[1] * (inputs.ndim - 3)))
    return float((s - 1).abs().max())


def _range(pair: Pair) -> Tensor:
    """r1"""
    norm, bias, r1 = pair.norm, pair.producer.bias, pair.producer.weight.flatten(1).abs().amax(1)
    if norm is not None:
        r1, bias = r1 * norm.weight.abs() / (norm.running_var + norm.eps).sqrt(), norm.bias
    return r1 if bias is None else torch.maximum(r1, bias.abs())


def _by_input(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """A view of the weight [groups, outputs of a group, inputs of a group, ...]."""
    return layer.weight.unflatten(0, (getattr(layer, "groups", 1), -1))
