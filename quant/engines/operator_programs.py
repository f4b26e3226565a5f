"""Each operator of a graph as a TorchScript program of its own, in the order in which the graph runs them.

So operators can be timed one by one, on the tensors that they read in the graph and without Python inside of them.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from quant.engines.torchscript import WithPackedWeights


@dataclass(frozen=True)
class Program:
    """A compiled operator and the tensors that it reads. Calling it computes the operator's output."""

    run: Callable[..., Any]
    inputs: tuple[Tensor, ...]

    def __call__(self) -> Any:
        return self.run(*self.inputs)


class Values(fx.Interpreter):
    """Runs a graph and keeps the value of every node, by node."""

    def __init__(self, graph: fx.GraphModule):
        super().__init__(graph)
        self.of: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.of[n] = super().run_node(n)
        return self.of[n]


def values_of(graph: fx.GraphModule, images: Tensor) -> dict[fx.Node, Any]:
    """The value of each node of a graph on these images."""
    values = Values(graph)
    values.run(images)
    return values.of


def of_node(graph: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> Program:
    """A node of a graph as a program. values: of the nodes that it reads; the tensors in them become inputs."""
    alone, inputs = fx.Graph(), []

    def place(value: Any, name: str) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(place(part, f"{name}_{i}") for i, part in enumerate(value))
        if not isinstance(value, Tensor):
            return value
        inputs.append(value)
        return alone.placeholder(name)

    places = {read: place(values[read], read.name) for read in node.all_input_nodes}
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), places.__getitem__)
    alone.output(alone.create_node(node.op, node.target, args, kwargs))
    packs = getattr(getattr(node.target, "function", None), "packs", {}).values()
    return compiled(fx.GraphModule(graph, alone), tuple(inputs), packs)


def compiled(module: nn.Module, inputs: tuple[Tensor, ...], packed_weights: Iterable[Any] = ()) -> Program:
    """A module as a program for these inputs. packed_weights: those that its operators use."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and sizes become constants of the trace
        traced = torch.jit.trace(WithPackedWeights(module, packed_weights).eval(), inputs, check_trace=False)
        run = torch.jit.freeze(traced.eval())
        for _ in range(3):  # TorchScript optimizes a program during its first runs
            run(*inputs)
    return Program(run, inputs)
