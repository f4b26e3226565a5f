"""The interface of engines, and the integer model that conversion returns.

An engine represents values on a grid as *native tensors* (type NativeTensor; for example quint8) and builds the
operators that work on them. Operators are built once, at conversion, and are plain callables.

The base class is also the reference engine. Its native tensors are centred integers (q - zero_point) in fp32, and it
uses no quantized kernel. All other engines are checked against it.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from quant.core.grid import Grid
from quant.core.integer_layer import IntegerLayer
from quant.core.integer_operator import IntegerOperator
from quant.engines.torchscript import to_torchscript
from quant.graph import operator_row
from quant.graph.node_view import NodeView
from utils.errors import UserError

NativeTensor = Tensor
FLOAT32_KERNEL = "integers in float32"
"""Name of the kernel that is always exact: the arithmetic of core/integer_layer.py in fp32."""
Operator = Callable[..., NativeTensor]


class EngineFailed(UserError):
    """An engine cannot run a model, by no fault of the model or of this program: the other engines still can."""


class Engine:
    """The reference engine, and the interface of all others."""

    name = "reference"
    multiplies_like: str | None = None
    """For engines whose int8 kernels cannot be tested directly: the engine to test instead."""
    layout = torch.channels_last
    """The memory format in which the engine runs images fastest."""
    is_timed = True
    """Whether the kernels of a layer are timed to choose one; else the first that is exact is taken."""

    def missing(self) -> str:
        """Why the engine cannot be used on this machine; an empty string if it can."""
        return ""

    def available(self) -> bool:
        return not self.missing()

    def running(self) -> contextlib.AbstractContextManager:
        """A context manager that is active during every run of a converted model."""
        return contextlib.nullcontext()

    def quantize(self, grid: Grid) -> Operator:
        """An operator float -> native."""
        return grid.centred

    def dequantize(self, grid: Grid) -> Operator:
        """An operator native -> float."""
        return grid.value

    def to_native(self, grid: Grid) -> Operator:
        """An operator centred integers in fp32 -> native."""
        return torch.clone

    def from_native(self, grid: Grid) -> Operator:
        """An operator native -> centred integers in fp32."""
        return torch.clone

    def kernels(self, layer: IntegerLayer) -> tuple[str, ...]:
        """Names of the kernels that may run a layer, the fastest first. The last one is always exact."""
        return (FLOAT32_KERNEL,)

    def layer(self, layer: IntegerLayer, kernel: str) -> Operator:
        """The layer on this kernel: an operator native -> native; native -> float without an output grid."""
        return layer

    def operators(self, op: IntegerOperator) -> list[tuple[str, Operator]]:
        """(kernel name, operator) pairs that may run an operator without weights, the fastest first. The last is exact.

        Each operator maps native tensors to a native tensor, or to float if there is no output grid.
        """
        return [(FLOAT32_KERNEL, self.in_float32(op))]

    def in_float32(self, op: IntegerOperator) -> Operator:
        """The arithmetic of core/integer_operator.py, with conversions from and to native tensors around it."""
        inputs = [self.from_native(grid) for grid in op.x]
        output = (lambda n: n) if op.y is None else self.to_native(op.y)
        if len(inputs) == 1:
            return lambda x: output(op(inputs[0](x)))
        return lambda p, q: output(op(inputs[0](p), inputs[1](q)))

    def requantize(self, x: Grid, y: Grid) -> Operator:
        """An operator native on grid x -> native on grid y."""
        dequantize, quantize = self.dequantize(x), self.quantize(y)
        return lambda p: quantize(dequantize(p))

    def relu(self, grid: Grid) -> Operator:
        """An operator native -> native that sets negative values to zero."""
        return torch.relu

    def concatenate(self, grid: Grid, axis: int) -> Operator:
        """An operator list of native tensors, all on `grid` -> their concatenation along `axis`."""
        return lambda values: torch.cat(values, axis)

    def shuffle(self, grid: Grid, groups: int) -> Operator:
        """An operator native [N, C, H, W] -> native, with channels in the order of nn.ChannelShuffle(groups)."""
        return lambda x: torch.channel_shuffle(x, groups)

    def interleave(self, grid: Grid) -> Operator:
        """An operator (native, native), both [N, C, H, W] -> native [N, 2 C, H, W].

        The result is the channel shuffle in 2 groups of the concatenation: channels alternate between the inputs.
        """
        concatenate, shuffle = self.concatenate(grid, 1), self.shuffle(grid, 2)
        return lambda p, q: shuffle(concatenate([p, q]))

    def finalize(self, model: "IntegerModel") -> "IntegerModel":
        """The model that conversion returns. Engines that run models differently wrap `model` here."""
        return model

    def moving(self, name: str | None, view: NodeView) -> Operator | None:
        """The engine's own operator native -> native for a node that only moves values; None if it has none.

        name: of the node's row in the table of operators.
        """
        return None

    def conversions_around(self, grid: Grid, row: operator_row.Operator) -> tuple[Operator, Operator] | None:
        """Conversions before and after a node that only moves values (a reshape, a max-pool).

        None if the node can work on native tensors. row: of the table of operators.
        """
        return None


@dataclass(frozen=True)
class Converted:
    """An integer layer and the name of the kernel that runs it."""

    layer: IntegerLayer
    kernel: str


class IntegerModel(nn.Module):
    """A converted model: float images [N, 3, H, W] -> float logits [N, classes], with integer arithmetic between.

    runs_by_operator: whether the graph's operators are the kernels that run, one by one.
    engine: the engine that runs it. graph: the converted graph.
    layers: the Converted layers by name. operators: kernel names of the operators without weights, by operator name.
    float_layers: the tensors of the layers that stay in float, by name.
    node_map: name of a node in the prepared graph -> (name of the corresponding node in `graph`, grid of its value or
        None if the value is float). Nodes without a counterpart are left out.
    """

    runs_by_operator = True

    def __init__(
        self,
        engine: Engine,
        graph: fx.GraphModule,
        layers: dict[str, Converted],
        operators: dict[str, str],
        float_layers: dict[str, Tensor],
        node_map: dict[str, tuple[str, Grid | None]],
    ):
        super().__init__()
        self.engine, self.graph, self.layers, self.operators = engine, graph.eval(), layers, operators
        self.float_layers, self.node_map = float_layers, node_map

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        with self.engine.running():
            return self.graph(images)

    def compile_for(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """The model as a TorchScript program (engines/torchscript.py) for images of this shape only.

        It computes the same integers without Python between the operators. Raises RuntimeError if its logits on
        `images` differ from the model's.
        """
        with torch.no_grad(), self.engine.running():
            expected = self.graph(images)  # also packs the weights for this shape
            functions = [getattr(node.target, "function", None) for node in self.graph.graph.nodes]
            packed_weights = [packed for function in functions for packed in getattr(function, "packs", {}).values()]
            run = to_torchscript(self.graph, packed_weights, images, torch.jit.freeze)

            def forward(images: Tensor) -> Tensor:
                with self.engine.running():
                    return run(images)

            if not torch.equal(forward(images), expected):
                raise RuntimeError(f"{self.engine.name}: the compiled model differs from its graph")
        return forward

    def stored(self) -> dict[str, dict[str, Tensor]]:
        """The tensors to save: int8 weights, fp32 scales, int32 biases and the output grid of each layer by its name.

        The key "float" holds the tensors of everything that stays in float.
        """
        integers = {name: _stored(converted.layer) for name, converted in self.layers.items()}
        return integers | {"float": self.float_layers | self.graph.state_dict()}


def _stored(layer: IntegerLayer) -> dict[str, Tensor]:
    stored = {"weight": layer.weight.to(torch.int8), "scale": layer.scale, "bias": layer.bias.to(torch.int32)}
    if layer.y is not None:
        stored |= {"output_scale": layer.y.scale, "output_zero_point": layer.y.zero_point}
    return stored
