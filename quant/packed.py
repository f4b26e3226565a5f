"""A model as small as its bits: one .npz file of plain arrays and a JSON text, and nothing to unpickle.

    weights       uint8     the weights of all layers, each packed at its own bits (quant/bits.py)
    scales        float32   a scale an output channel; negative where batch norm flips the channel's sign
    biases        int32     a bias an output channel
    anew          int8      integers of channels that are not on their grid any more (dead, or rounded anew)
    floats        float32   tensors of what stays in float
    tables        int16     outputs of functions (hard-swish ...) for each of their input's integers, centred
    grid_scales   float32   the grids of activations: scale,
    grid_integers int32     [grids, 3]: and zero point, least and greatest integer
    model         text      JSON: {"format", "info", "nodes"}

A layer with codes c (quant/bits.py) has the integer weights k sign(scale) (s c + s - 1) on |scale|: IntegerLayer of
quant/integer.py, which says what they are for. A node is {"name", "do", "with", "args", "kwargs"}: "do" is a key of
quant.packed_model.DO, or "call" for a name in quant.calls.CALLS; [start, count] in "with" is a place in an array.
"""

import json
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, fx, nn

from quant.bits import pack, step_of
from quant.calls import Call, call_of, call_of_node, to_plain
from quant.convert import IntegerModel, convert
from quant.engine import FLOAT32, Engine, Operator
from quant.grid import Grid
from quant.integer import Bounds, Geometry, IntegerLayer, refinement
from quant.layers import FloatLayer, QuantLayer, QuantOperator
from quant.operators import IntegerOperator
from utils.files import write_whole

FORMAT = 1
KINDS = {
    "weights": numpy.uint8,
    "scales": numpy.float32,
    "biases": numpy.int32,
    "anew": numpy.int8,
    "floats": numpy.float32,
    "tables": numpy.int16,
    "grid_scales": numpy.float32,
    "grid_integers": numpy.int32,
}
OF_LAYERS = ("weights", "scales", "biases", "anew", "floats")
"""The arrays that hold a model's numbers; the others hold how it computes with them."""


class Written:
    """An operator of the reference engine, and what it was made of."""

    def __init__(self, do: str, run: Operator, *made_of: Any):
        self.do, self.run, self.made_of = do, run, made_of

    def __call__(self, *values: Any) -> Tensor:
        return self.run(*values)


class PackedEngine(Engine):
    """The reference engine, whose operators say what they are made of."""

    name = "packed"

    def quantize(self, grid: Grid) -> Operator:
        return Written("quantize", super().quantize(grid), grid)

    def dequantize(self, grid: Grid) -> Operator:
        return Written("dequantize", super().dequantize(grid), grid)

    def requantize(self, x: Grid, y: Grid) -> Operator:
        return Written("requantize", super().requantize(x, y), x, y)

    def layer(self, layer: IntegerLayer, kernel: str) -> Operator:
        return Written("layer", layer, layer)

    def operators(self, op: IntegerOperator) -> list[tuple[str, Operator]]:
        return [(FLOAT32, Written("operator", self.in_float32(op), op))]

    def relu(self, grid: Grid) -> Operator:
        return Written("relu", super().relu(grid), grid)

    def concatenate(self, grid: Grid, axis: int) -> Operator:
        return Written("concatenate", super().concatenate(grid, axis), grid, axis)

    def shuffle(self, grid: Grid, groups: int) -> Operator:
        return Written("shuffle", super().shuffle(grid, groups), grid, groups)

    def interleave(self, grid: Grid) -> Operator:
        return Written("interleave", super().interleave(grid), grid)


class Arrays:
    """The flat arrays of a file while it is written."""

    def __init__(self):
        self.parts: dict[str, list[numpy.ndarray]] = {kind: [] for kind in KINDS}
        self.lengths = dict.fromkeys(KINDS, 0)

    def put(self, kind: str, values: Tensor | numpy.ndarray) -> list[int]:
        """Append values; returns their place."""
        flat = numpy.asarray(values.detach() if isinstance(values, Tensor) else values).reshape(-1)
        self.parts[kind].append(flat.astype(KINDS[kind]))
        self.lengths[kind] += len(flat)
        return [self.lengths[kind] - len(flat), len(flat)]

    def whole(self) -> dict[str, numpy.ndarray]:
        return {kind: numpy.concatenate([numpy.zeros(0, KINDS[kind]), *parts]) for kind, parts in self.parts.items()}


def save(prepared: fx.GraphModule, file: Path, info: dict[str, Any]) -> IntegerModel:
    """Write the integer model of a prepared one, with `info` for who feeds it; returns what was written.

    Raises UserError for an operator that such a file has no place for.
    """
    arrays = Arrays()
    writer = _Writer(prepared, arrays)
    model = {"format": FORMAT, "info": info, "nodes": writer.nodes()}
    text = numpy.array(json.dumps(model, allow_nan=False))
    held = arrays.whole()
    held["grid_integers"] = held["grid_integers"].reshape(-1, 3)

    def write(part: Path) -> None:
        with part.open("wb") as opened:
            numpy.savez_compressed(opened, model=text, **held)

    write_whole(file, write)
    return writer.model


@torch.no_grad()
def layer_bytes(layer: nn.Module, x: Grid | None, norm: nn.Module | None) -> int:
    """Bytes of a layer's weights, scales and biases in such a file. x: its input's grid; None: it runs in float."""
    arrays = Arrays()
    if not isinstance(layer, QuantLayer):
        for tensor in layer.state_dict().values():
            arrays.put("floats", tensor)
    elif x is None or layer.weight_quantizer is None:
        put_float_layer(arrays, layer, layer.frozen(norm))
    else:
        put_layer(arrays, layer, layer.integer(x, norm))
    return sum(arrays.lengths[kind] * numpy.dtype(KINDS[kind]).itemsize for kind in OF_LAYERS)


def put_layer(arrays: Arrays, source: QuantLayer, layer: IntegerLayer) -> dict[str, Any]:
    """Put the numbers of an integer layer into arrays; returns where and how, but for its grids."""
    grid, bits = source.weight_quantizer.grid(), source.weight_quantizer.bits
    codes, step = _codes(source)
    factor = refinement(grid, source.limit)
    expected = factor * (step * codes + step - 1)
    same, flipped = _equal_channels(layer.weight, expected), _equal_channels(layer.weight, -expected)
    anew = ~(same | flipped)
    return {
        "bits": bits,
        "step": step,
        "factor": factor,
        "shape": list(layer.weight.shape),
        "codes": arrays.put("weights", pack(codes.numpy(), bits)),
        "scale": arrays.put("scales", torch.where(flipped & ~same, -layer.scale, layer.scale)),
        "bias": arrays.put("biases", layer.bias),
        "anew": anew.nonzero()[:, 0].tolist(),
        "anew_weight": arrays.put("anew", layer.weight[anew]),
        "geometry": _geometry(layer.geometry),
        "lo": layer.lo,
        "hi": layer.hi,
    }


def put_float_layer(arrays: Arrays, source: QuantLayer, layer: FloatLayer) -> dict[str, Any]:
    """Put the numbers of a layer that runs in float into arrays: its weights as codes where they are quantized."""
    made = {"shape": list(layer.weight.shape), "geometry": _geometry(layer.geometry), "bounds": _bounds(layer.bounds)}
    if source.weight_quantizer is None:
        made["weight"] = arrays.put("floats", layer.weight)
    else:
        (codes, step), bits = _codes(source), source.weight_quantizer.bits
        made |= {"bits": bits, "step": step, "codes": arrays.put("weights", pack(codes.numpy(), bits))}
        made["scale"] = arrays.put("scales", source.weight_quantizer.grid().scale.expand(len(layer.weight)))
    made["bias"] = None if layer.bias is None else arrays.put("floats", layer.bias)
    return made | {"norm": None if layer.norm is None else put_norm(arrays, layer.norm)}


def put_norm(arrays: Arrays, norm: nn.Module) -> dict[str, Any]:
    tensors = {name: value for name, value in norm.state_dict().items() if value.is_floating_point()}
    places = {name: arrays.put("floats", value) for name, value in tensors.items()}
    return {"axes": 2 if isinstance(norm, nn.BatchNorm2d) else 1, "eps": norm.eps, "tensors": places}


def _codes(layer: QuantLayer) -> tuple[Tensor, int]:
    """The codes of a layer's weights, and the step of their grid."""
    step = step_of(layer.weight_quantizer.grid(), layer.weight_quantizer.bits)
    return (layer.weight_quantizer.to_int(layer.weight.float()).detach() - (step - 1)) / step, step


def _equal_channels(p: Tensor, q: Tensor) -> Tensor:
    return (p == q).flatten(1).all(1)


def _geometry(geometry: Geometry) -> list | None:
    return None if geometry.linear else [geometry.stride, geometry.padding, geometry.dilation, geometry.groups]


def _bounds(bounds: Bounds) -> list[float | None]:
    """JSON has no infinity."""
    return [None if abs(value) == float("inf") else value for value in bounds]


class _Writer:
    """The nodes of the integer graph in plain values; their numbers go into arrays."""

    def __init__(self, prepared: fx.GraphModule, arrays: Arrays):
        self.arrays, self.grids = arrays, {}
        self.modules = dict(prepared.named_modules())
        self.model = convert(prepared, PackedEngine())
        self.layers = {node.name: node.target for node in prepared.graph.nodes}

    def nodes(self) -> list[dict[str, Any]]:
        return [self._node(node) for node in self.model.graph.graph.nodes]

    def _node(self, node: fx.Node) -> dict[str, Any]:
        plain = {"name": node.name, "args": to_plain(list(node.args)), "kwargs": to_plain(dict(node.kwargs))["dict"]}
        if node.op in ("placeholder", "output"):
            return plain | {"do": node.op}
        function = getattr(node.target, "function", None)
        if isinstance(function, Written):
            return plain | {"do": function.do, "with": [self._made_of(part, node) for part in function.made_of]}
        if isinstance(function, FloatLayer):
            source = self.modules[self.layers[node.name]]
            return plain | {"do": "float_layer", "with": [put_float_layer(self.arrays, source, function)]}
        if isinstance(operator := getattr(function, "__self__", None), QuantOperator):
            run = [self._call(call_of(operator.run)), _bounds(operator.bounds)]
            return plain | {"do": "float_operator", "with": run}
        module = self.modules.get(node.target) if node.op == "call_module" else None
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            return plain | {"do": "norm", "with": [put_norm(self.arrays, module)]}
        return plain | {"do": "call", "with": [self._call(call_of_node(node, self.modules))]}

    def _call(self, call: Call) -> dict[str, Any]:
        return {"call": call.name, "args": to_plain(list(call.args)), "kwargs": to_plain(call.kwargs)["dict"]}

    def _made_of(self, part: Any, node: fx.Node) -> Any:
        if isinstance(part, Grid):
            return self._grid(part)
        if isinstance(part, IntegerLayer):
            name = self.layers[node.name]
            made = put_layer(self.arrays, self.modules[name], part)
            return {"layer": name, "x": self._grid(part.x), "y": self._grid(part.y)} | made
        return self._operator(part) if isinstance(part, IntegerOperator) else part

    def _operator(self, op: IntegerOperator) -> dict[str, Any]:
        made = {"kind": op.kind, "x": [self._grid(grid) for grid in op.x], "y": self._grid(op.y)}
        if op.kind == "function":
            return made | {"table": self.arrays.put("tables", op.table())}
        run = self._call(call_of(op.run)) if op.kind == "average" else None
        return made | {"run": run, "lo": op.lo, "hi": op.hi}

    def _grid(self, grid: Grid | None) -> int | None:
        """The number of a grid in the file."""
        if grid is None:
            return None
        key = (float(grid.scale), int(grid.zero_point), grid.q_min, grid.q_max)
        if key not in self.grids:
            self.grids[key] = len(self.grids)
            self.arrays.put("grid_scales", grid.scale)
            self.arrays.put("grid_integers", numpy.array(key[1:]))
        return self.grids[key]
