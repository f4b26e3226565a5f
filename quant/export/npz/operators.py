"""The operators of a model in a .npz file: what a node of the integer model becomes, and KINDS, the whitelist.

A dataclass or named tuple in KINDS is written as its fields. For other objects, packed_* returns a Packed: the name of
a function in KINDS, and the arguments from which that function makes the object when the file is read.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from quant.core.activation import ClampedAffine
from quant.core.grid import Grid, along_channels
from quant.core.integer_layer import Geometry, IntegerLayer, refinement
from quant.core.integer_operator import IntegerOperator, function, look_up
from quant.core.quantizer import WeightQuantizer
from quant.engines.base import FLOAT32_KERNEL, Engine, Operator
from quant.export.npz.calls import Call, call_of_node, call_of_norm, call_of_operator
from quant.export.npz.packing import pack, unpack
from quant.graph.op_table import OPERATORS
from quant.graph.quant_layers import FloatLayer, FloatOperator, QuantLayer


@dataclass(frozen=True)
class EngineOperator:
    """What a method of the reference engine returns for `args`. Raises ValueError if it is not in ENGINE_METHODS."""

    method: str
    args: tuple
    run: Operator = field(init=False)

    def __post_init__(self):
        if self.method not in ENGINE_METHODS:
            raise ValueError(f"{self.method!r} is not an operator that a file may ask for")
        object.__setattr__(self, "run", getattr(Engine(), self.method)(*self.args))

    def __call__(self, *values: Any) -> Tensor:
        return self.run(*values)


class RecordingEngine(Engine):
    """The reference engine. Its operators know the method and the arguments that made them."""

    name = "npz"

    def operators(self, op: IntegerOperator) -> list[tuple[str, Operator]]:
        return [(FLOAT32_KERNEL, op)]


def _recorded(method: str) -> Callable[..., Operator]:
    return lambda engine, *args: EngineOperator(method, args)


ENGINE_METHODS = ("quantize", "dequantize", "requantize", "relu", "concatenate", "shuffle", "interleave")
for _method in ENGINE_METHODS:
    setattr(RecordingEngine, _method, _recorded(_method))


class Packed(NamedTuple):
    """A kind, and its arguments."""

    kind: str
    values: list


def packed_node(node: fx.Node, source: Any) -> Any:
    """What a node of an integer model calls, as it is written. source: the module of its node in the prepared model.

    Raises UserError for what a file cannot represent.
    """
    operator = getattr(node.target, "function", None)
    if isinstance(operator, IntegerLayer):
        return packed_layer(operator, source)
    if isinstance(operator, FloatLayer):
        return packed_float_layer(operator, source)
    if isinstance(operator, IntegerOperator):
        return packed_operator(operator)
    if isinstance(operator, EngineOperator):
        return operator
    if isinstance(operator, FloatOperator):
        return Packed("float_operator", [call_of_operator(operator), operator.activation])
    return call_of_node(node, source if node.op == "call_module" else None)


def float_operator(run: Call, activation: ClampedAffine) -> Callable[..., Tensor]:
    return lambda *values: activation(run(*values))


def packed_operator(op: IntegerOperator) -> Packed:
    """A function is written as its table: another version of torch may round the function differently."""
    if op.arithmetic is function:
        return Packed("lookup_table", [op.x[0], op.table().to(torch.int16)])
    return Packed("IntegerOperator", [call_of_operator(op), op.x, op.y, op.lo, op.hi])


def read_integer_operator(run: Call, *rest: Any) -> IntegerOperator:
    """rest: x, y, lo, hi. Raises ValueError for a call that has no integer form."""
    arithmetic = OPERATORS[run.name].arithmetic
    if arithmetic is None:
        raise ValueError(f"{run.name!r} has no integer form")
    return IntegerOperator(run.name, arithmetic, run, *rest)


def lookup_table(x: Grid, outputs: Tensor) -> Callable[[Tensor], Tensor]:
    table = outputs.float()
    return lambda n: look_up(x, table, n)


def packed_layer(layer: IntegerLayer, source: QuantLayer) -> Packed:
    """The weights as packed codes. The sign of the scale tells that batch norm flipped a channel. Channels that are off
    the quantizer's grid are written as int8."""
    assert source.weight_quantizer is not None  # otherwise it would be a float layer
    weight = packed_weight(source.weight, source.weight_quantizer)
    factor = refinement(source.weight_quantizer.grid(), source.limit)
    coded = factor * layer.geometry.of_maps(integers(*weight.values))
    as_coded, negated = ((layer.weight == sign * coded).flatten(1).all(1) for sign in (1, -1))
    off_grid = ~(as_coded | negated)
    scale = torch.where(negated & ~as_coded, -layer.scale, layer.scale)
    replaced = off_grid.nonzero()[:, 0].tolist()
    numbers = [factor, scale, layer.bias.to(torch.int32), replaced, layer.weight[off_grid].char()]
    return Packed("IntegerLayer", [weight, *numbers, layer.geometry, layer.x, layer.y, layer.lo, layer.hi])


def read_integer_layer(
    weight: Tensor, factor: int, scale: Tensor, bias: Tensor, channels: list[int], replacement: Tensor, *rest: Any
) -> IntegerLayer:
    """The layer with integer weights sign(scale) * factor * weight on |scale|: batch norm flips channels.

    `channels` are not on their quantizer's grid (dead, or rounded again on a larger scale): their weights are
    `replacement`. rest: geometry, x, y, lo, hi. Raises ValueError for a scale that is none.
    """
    geometry, *grids_and_bounds = rest
    if not bool(scale.isfinite().all()):
        raise ValueError("the scale of a layer must be finite")
    weight = geometry.of_maps(weight)
    weight = weight * along_channels(factor * scale.sign(), weight)
    weight[channels] = replacement.float()
    return IntegerLayer(geometry, weight, scale.abs(), bias.float(), *grids_and_bounds)


def packed_float_layer(layer: FloatLayer, source: QuantLayer) -> Packed:
    """A layer that runs in float; its weights are packed if they are quantized."""
    weight: Any = layer.weight
    if source.weight_quantizer is not None:
        scale, correction = source.weight_quantizer.grid().scale, source.active_correction()
        if correction is not None and layer.norm is None:  # otherwise the norm contains the correction
            scale = scale * correction.gain
        weight = Packed("scaled", [packed_weight(source.weight, source.weight_quantizer), scale])
    norm = None if layer.norm is None else call_of_norm(layer.norm)
    return Packed("FloatLayer", [layer.geometry, weight, layer.bias, norm, layer.activation])


def scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """Float weights from integers and their scale, [] or [O]."""
    return weight * along_channels(scale, weight)


def packed_weight(weight: Tensor, quantizer: WeightQuantizer) -> Packed:
    """The integers of a layer's weights, at the bits of their quantizer."""
    step = quantizer.grid().step
    codes = (quantizer.to_int(weight.detach().float()) - (step - 1)) / step
    packed = torch.from_numpy(pack(codes.detach().numpy(), quantizer.bits))
    return Packed("integers", [packed, quantizer.bits, step, list(weight.shape)])


def integers(packed: Tensor, bits: int, step: int, shape: list[int]) -> Tensor:
    """Integers step * c + step - 1, fp32, of packed codes c."""
    codes = torch.from_numpy(unpack(packed.numpy(), bits, torch.Size(shape).numel())).float()
    return (step * codes + (step - 1)).view(shape)


KINDS: dict[str, Callable[..., Any]] = {
    "Grid": Grid,
    "Geometry": Geometry,
    "ClampedAffine": ClampedAffine,
    "Call": Call,
    "EngineOperator": EngineOperator,
    "FloatLayer": FloatLayer,
    "IntegerLayer": read_integer_layer,
    "IntegerOperator": read_integer_operator,
    "float_operator": float_operator,
    "lookup_table": lookup_table,
    "integers": integers,
    "scaled": scaled,
}
