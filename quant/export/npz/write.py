"""A model as small as its bits: one .npz file of plain arrays and a JSON text, and nothing to unpickle.

    weights       uint8     the weights of all layers, each packed at its own bits (export/npz/records.py)
    scales        float32   a scale an output channel; negative where batch norm flips the channel's sign
    biases        int32     a bias an output channel
    anew          int8      integers of channels that are not on their grid any more (dead, or rounded anew)
    floats        float32   tensors of what stays in float
    tables        int16     outputs of functions (hard-swish ...) for each of their input's integers, centred
    grid_scales   float32   the grids of activations: scale,
    grid_integers int32     [grids, 3]: and zero point, least and greatest integer
    model         text      JSON: {"format", "info", "nodes"}

export/npz/records.py says how a layer lies in them. A node is {"name", "do", "with", "args", "kwargs"}: "do" is a key
of quant.packed_model.DO, "with" holds what its operator is made of, "args" the values that it works on.
"""

import json
from pathlib import Path
from typing import Any

import numpy
from torch import Tensor, fx, nn

from quant.core.grid import Grid
from quant.core.integer_layer import IntegerLayer
from quant.core.integer_operator import IntegerOperator, average, function
from quant.engines.base import FLOAT32_KERNEL, Engine, IntegerModel, Operator
from quant.engines.convert import convert
from quant.export.npz.calls import Call, call_of_node, call_of_operator, to_plain
from quant.export.npz.records import Arrays, put_bounds, put_float_layer, put_layer, put_norm
from quant.graph.quant_layers import FloatLayer, QuantOperator
from utils.files import write_atomically

FORMAT = 2


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
        return [(FLOAT32_KERNEL, Written("operator", self.in_float32(op), op))]

    def relu(self, grid: Grid) -> Operator:
        return Written("relu", super().relu(grid), grid)

    def concatenate(self, grid: Grid, axis: int) -> Operator:
        return Written("concatenate", super().concatenate(grid, axis), grid, axis)

    def shuffle(self, grid: Grid, groups: int) -> Operator:
        return Written("shuffle", super().shuffle(grid, groups), grid, groups)

    def interleave(self, grid: Grid) -> Operator:
        return Written("interleave", super().interleave(grid), grid)


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

    write_atomically(file, write)
    return writer.model


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
            return plain | {"do": function.do, "with": [self._made_of(part) for part in function.made_of]}
        if isinstance(function, FloatLayer):
            source = self.modules[self.layers[node.name]]
            return plain | {"do": "float_layer", "with": [put_float_layer(self.arrays, source, function)]}
        if isinstance(operator := getattr(function, "__self__", None), QuantOperator):
            run = [self._call(call_of_operator(operator)), put_bounds(operator.activation)]
            return plain | {"do": "float_operator", "with": run}
        module = self.modules.get(node.target) if node.op == "call_module" else None
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            return plain | {"do": "norm", "with": [put_norm(self.arrays, module)]}
        return plain | {"do": "call", "with": [self._call(call_of_node(node, self.modules))]}

    def _call(self, call: Call) -> dict[str, Any]:
        return {"call": call.name, "args": to_plain(list(call.args)), "kwargs": to_plain(call.kwargs)["dict"]}

    def _made_of(self, part: Any) -> Any:
        if isinstance(part, Grid):
            return self._grid(part)
        if isinstance(part, IntegerLayer):
            name = next(name for name, converted in self.model.layers.items() if converted.layer is part)
            made = put_layer(self.arrays, self.modules[name], part)
            return {"layer": name, "x": self._grid(part.x), "y": self._grid(part.y)} | made
        return self._operator(part) if isinstance(part, IntegerOperator) else part

    def _operator(self, op: IntegerOperator) -> dict[str, Any]:
        made = {"name": op.name, "x": [self._grid(grid) for grid in op.x], "y": self._grid(op.y)}
        if op.arithmetic is function:
            return made | {"table": self.arrays.put("tables", op.table())}
        run = self._call(call_of_operator(op)) if op.arithmetic is average else None
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
