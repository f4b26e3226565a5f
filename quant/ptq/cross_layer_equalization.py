"""Cross-layer equalization (Nagel et al., arXiv 1906.04721, section 4.1) of a float model, in place.

The channels between two layers may be divided by any s_i > 0 and multiplied back, since f(s x) = s f(x) for a ReLU:

    W1' = W1 / s,    b1' = b1 / s,    W2' = W2 s,    s_i = sqrt(r1_i r2_i) / r2_i

This makes the ranges equal: r1_i = max |W1_i| of the producer's rows, r2_i = max |W2_:i| of the consumer's columns. All
pairs are equalized in turn until the scales hardly change.

A pair is a convolution or linear layer (the producer) with its batch norm, then a ReLU or nothing, then pools, dropouts
or a flattening, and one layer (the consumer) that alone reads the result. A pair is left as it is if the value between
is clamped on both sides or changed by another function (ReLU6, hard-swish), if it has a second reader, or if another
layer shares one of the tensors.

Differs from the paper: batch norm is not folded. Instead, r1 is the range of the weights times |gamma| / sqrt(var +
eps), and gamma and beta are divided by s. High biases are not absorbed. r1 is at least |b1| (|beta|); otherwise a
channel that consists almost only of its bias would be scaled up. A depthwise layer is the consumer of one pair and the
producer of the next.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from quant.core.batch_norm import BatchNorm, running_statistics
from quant.graph.op_table import RELU
from quant.graph.trace import trace
from quant.graph.typed_graph import TypedGraph

MAX_SWEEPS = 20
TOLERANCE = 1e-3
"""The iteration ends when all scales of a sweep are nearer to 1 than this."""


@dataclass(frozen=True)
class Pair:
    """A producer, its batch norm or None, and the consumer of its channels."""

    producer: nn.Conv2d | nn.Linear
    norm: BatchNorm | None
    consumer: nn.Conv2d | nn.Linear

    def modules(self) -> list[nn.Module]:
        return [module for module in (self.producer, self.norm, self.consumer) if module is not None]


@torch.no_grad()
def equalize_cross_layer(model: nn.Module) -> int:
    """Equalize a float model in place and return the number of pairs. Its outputs in eval mode stay the same."""
    found = pairs(trace(model, trains=False))
    for _ in range(MAX_SWEEPS):
        changes = [_equalize_pair(pair) for pair in found]
        if max(changes, default=0.0) < TOLERANCE:
            break
    return len(found)


def pairs(traced: fx.GraphModule) -> list[Pair]:
    """The pairs of layers that can be equalized, in topological order."""
    found: list[Pair] = []
    graph, calls = TypedGraph(traced), Counter(node.target for node in traced.graph.nodes)
    role = graph.roles
    owners = Counter(id(tensor) for _, tensor in traced.named_parameters(remove_duplicate=False))
    for node in traced.graph.nodes:
        if role[node] != "layer":
            continue
        end = _only_reader(node)
        norm = end if end and role[end] == "norm" else None
        end = _only_reader(norm) if norm else end
        end, between = _only_reader(end) if end and graph.activation(end) == RELU else end, []
        while end and _keeps_channels(graph, end):
            between.append(end)
            end = _only_reader(end)
        if end and role[end] == "layer" and (norm is None or calls[norm.target] == 1):
            pair = Pair(graph.layer(node), None if norm is None else graph.batch_norm(norm), graph.layer(end))
            alone = all(
                owners[id(tensor)] == 1 for module in pair.modules() for tensor in module.parameters(recurse=False)
            )
            found += [pair] if alone and _fits(pair) and _same_axis(graph, pair, between) else []
    return found


def _same_axis(graph: TypedGraph, pair: Pair, between: list[fx.Node]) -> bool:
    """Whether the consumer's input channels are the producer's output channels.

    A convolution has its channels on axis 1, a linear layer on the last. So feature maps must be flattened before a
    linear consumer, and nothing may pool over the channels of a linear producer.
    """
    if isinstance(pair.producer, nn.Linear):
        return not any(graph.roles[node] == "average" or graph.operator(node).pads for node in between)
    flat = any(graph.flattens(node) for node in between)
    return flat or isinstance(pair.consumer, nn.Conv2d)


def _only_reader(node: fx.Node) -> fx.Node | None:
    """The node that reads `node`, if there is exactly one, else None."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _keeps_channels(graph: TypedGraph, node: fx.Node) -> bool:
    """Whether f(s x) = s f(x) for one scale per channel: pools, dropouts, and flattening [N, C, H, W] to [N, C H W]."""
    if graph.roles[node] == "average" or graph.flattens(node):
        return True
    return node.op == "call_module" and graph.operator(node).commutes_with_scaling


def _fits(pair: Pair) -> bool:
    """Whether each channel of the producer becomes equally many inputs of the consumer, and the norm has a gamma.

    A flattened feature map of H x W gives H W inputs per channel; the outputs of a linear layer give one each.
    """
    outputs, columns = len(pair.producer.weight), _by_input(pair.consumer)
    inputs = columns.shape[0] * columns.shape[2]
    if isinstance(pair.producer, nn.Linear):
        return inputs == outputs and pair.norm is None
    return inputs % outputs == 0 and (pair.norm is None or pair.norm.affine)


def _equalize_pair(pair: Pair) -> float:
    """Equalize one pair in place. Returns max |s_i - 1|."""
    owner = pair.producer if pair.norm is None else pair.norm
    inputs, r1 = _by_input(pair.consumer), _range(pair)
    r2 = inputs.abs().amax([axis for axis in range(inputs.ndim) if axis not in (0, 2)]).view(len(r1), -1).amax(1)
    s = torch.where((r1 > 0) & (r2 > 0), (r1 / r2).sqrt(), 1.0)
    owner.weight.div_(s.view(-1, *[1] * (owner.weight.ndim - 1)))
    if owner.bias is not None:
        owner.bias.div_(s)
    per_input = s.repeat_interleave(inputs.shape[0] * inputs.shape[2] // len(s))
    inputs.mul_(per_input.view(len(inputs), 1, -1, *[1] * (inputs.ndim - 3)))
    return float((s - 1).abs().max())


def _range(pair: Pair) -> Tensor:
    """r1, [output channels of the producer]."""
    norm, bias, r1 = pair.norm, pair.producer.bias, pair.producer.weight.flatten(1).abs().amax(1)
    if norm is not None:
        r1, bias = r1 * norm.weight.abs() / (running_statistics(norm)[1] + norm.eps).sqrt(), norm.bias
    return r1 if bias is None else torch.maximum(r1, bias.abs())


def _by_input(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """The weight as a view [groups, outputs per group, inputs per group, ...]."""
    return layer.weight.unflatten(0, (getattr(layer, "groups", 1), -1))
