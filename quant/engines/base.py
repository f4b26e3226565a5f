"""What an engine is: how values on a grid are held, and the operators that work on them.

`NativeTensor` stands for a tensor as the engine holds it. Operators are built once, at conversion, and are plain callables. The
reference engine below holds centred integers in fp32 and uses no quantized kernel: it is the oracle.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from quant.core.grid import Grid
from quant.core.integer_layer import IntegerLayer
from quant.core.integer_operator import IntegerOperator
from quant.engines.torchscript import program

NativeTensor = Tensor
FLOAT32_KERNEL = "integers in float32"
"""The kernel that is always exact: core/integer_layer.py itself."""
Operator = Callable[..., NativeTensor]


class Engine:
    """The reference engine, and the interface of all others."""

    name = "reference"
    multiplies_like: str | None = None
    """The engine whose int8 kernels tell whether this one's are exact, if they cannot be asked."""
    layout = torch.channels_last
    """The memory format of images that it likes best."""

    def missing(self) -> str:
        """Why the engine cannot be used here; empty if it can."""
        return ""

    def available(self) -> bool:
        return not self.missing()

    def running(self) -> contextlib.AbstractContextManager:
        """Entered around every run of a converted model."""
        return contextlib.nullcontext()

    def quantize(self, grid: Grid) -> Operator:
        """float -> held"""
        return grid.centred

    def dequantize(self, grid: Grid) -> Operator:
        """held -> float"""
        return grid.value

    def to_native(self, grid: Grid) -> Operator:
        """centred integers in fp32 -> held"""
        return torch.clone

    def from_native(self, grid: Grid) -> Operator:
        """held -> centred integers in fp32"""
        return torch.clone

    def kernels(self, layer: IntegerLayer) -> tuple[str, ...]:
        """The kernels that may run a layer, the best first. The last is always exact."""
        return (FLOAT32_KERNEL,)

    def layer(self, layer: IntegerLayer, kernel: str) -> Operator:
        """held -> held, or float where the layer has no output grid"""
        return layer

    def operators(self, op: IntegerOperator) -> list[tuple[str, Operator]]:
        """Ways to run an operator without weights, held -> held (float where it has no output grid). Best first; the
        last is exact."""
        return [(FLOAT32_KERNEL, self.in_float32(op))]

    def in_float32(self, op: IntegerOperator) -> Operator:
        """The operator's own arithmetic on what is held."""
        enter, leave = (
            [self.from_native(grid) for grid in op.x],
            (lambda n: n) if op.y is None else self.to_native(op.y),
        )
        if len(enter) == 1:
            return lambda held: leave(op(enter[0](held)))
        return lambda p, q: leave(op(enter[0](p), enter[1](q)))

    def requantize(self, x: Grid, y: Grid) -> Operator:
        """held on grid x -> held on grid y"""
        dequantize, quantize = self.dequantize(x), self.quantize(y)
        return lambda p: quantize(dequantize(p))

    def relu(self, grid: Grid) -> Operator:
        """held -> held, negative values to zero"""
        return torch.relu

    def concatenate(self, grid: Grid, axis: int) -> Operator:
        """list of held, on one grid -> held"""
        return lambda values: torch.cat(values, axis)

    def shuffle(self, grid: Grid, groups: int) -> Operator:
        """held [N, C, H, W] -> held, its channels as nn.ChannelShuffle orders them"""
        return lambda held: torch.channel_shuffle(held, groups)

    def interleave(self, grid: Grid) -> Operator:
        """(held, held), both [N, C, H, W] -> held [N, 2 C, H, W]: the shuffle in 2 groups of their concatenation"""
        concatenate, shuffle = self.concatenate(grid, 1), self.shuffle(grid, 2)
        return lambda p, q: shuffle(concatenate([p, q]))

    def finished(self, model: "IntegerModel") -> "IntegerModel":
        """What conversion hands out: the model itself, unless the engine runs it in a way of its own."""
        return model

    def around(self, grid: Grid, pads: bool) -> tuple[Operator, Operator] | None:
        """(before, after): conversions around a node that moves values, if it cannot work on native tensors; else None.
        pads: whether the node fills in values itself, as max-pools do."""
        return None


@dataclass(frozen=True)
class Converted:
    """A layer on its kernel."""

    layer: IntegerLayer
    kernel: str


class IntegerModel(nn.Module):
    """Float images [N, 3, H, W] in, float logits out, integers between.

    `layers`: the Converted layers by name; `operators`: the kernel of each operator without weights, by its name;
    `float_layers`: the tensors of layers that stay in float;
    `twins`: for each node of the prepared graph that has one, its node here and the grid its value is on, or None.
    """

    def __init__(
        self,
        engine: Engine,
        graph: fx.GraphModule,
        layers: dict[str, Converted],
        operators: dict[str, str],
        float_layers: dict[str, Tensor],
        twins: dict[str, tuple[str, Grid | None]],
    ):
        super().__init__()
        self.engine, self.graph, self.layers, self.operators = engine, graph.eval(), layers, operators
        self.float_layers, self.twins = float_layers, twins

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        with self.engine.running():
            return self.graph(images)

    def frozen(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """The model for images of this shape as one TorchScript program (engines/torchscript.py): the same integers, without
        Python between the operators. Raises RuntimeError if it gives others."""
        with torch.no_grad(), self.engine.running():
            expected = self.graph(images)  # weights are packed for the shape
            functions = [getattr(node.target, "function", None) for node in self.graph.graph.nodes]
            held = [packed for function in functions for packed in getattr(function, "packs", {}).values()]
            run = program(self.graph, held, images, torch.jit.freeze)

            def forward(images: Tensor) -> Tensor:
                with self.engine.running():
                    return run(images)

            if not torch.equal(forward(images), expected):
                raise RuntimeError(f"{self.engine.name}: the frozen program differs from its graph")
        return forward

    def stored(self) -> dict[str, dict[str, Tensor]]:
        """What there is to store: int8 weights, fp32 scales and int32 biases of each layer, and its output's grid;
        and under "float" the tensors of what stays in float.
        """
        integers = {name: _stored(converted.layer) for name, converted in self.layers.items()}
        return integers | {"float": self.float_layers | self.graph.state_dict()}


def _stored(layer: IntegerLayer) -> dict[str, Tensor]:
    stored = {"weight": layer.weight.to(torch.int8), "scale": layer.scale, "bias": layer.bias.to(torch.int32)}
    if layer.y is not None:
        stored |= {"output_scale": layer.y.scale, "output_zero_point": layer.y.zero_point}
    return stored
