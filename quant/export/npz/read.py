"""The model in a file of export/npz/write.py: float images in, float logits out, the reference engine's to the bit.

Nothing but the file is needed, and nothing in it is run: it names operators of DO and calls of quant.calls.CALLS, which
this module interprets one after the other.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, fx, nn

from quant.core.grid import Grid
from quant.core.integer_layer import IntegerLayer
from quant.core.integer_operator import IntegerOperator, look_up
from quant.engines.base import Engine, IntegerModel
from quant.export.npz.calls import Call, from_plain, map_values, mentioned
from quant.export.npz.records import KINDS, ArraysRead, read_bounds, read_float_layer, read_layer, read_norm
from quant.export.npz.write import FORMAT, save
from quant.graph.op_table import OPERATORS
from quant.graph.quant_layers import FloatLayer
from utils.errors import UserError

ENDS = ("placeholder", "output")


@dataclass(frozen=True)
class Node:
    """One operator; `last`: the values that nobody reads after it."""

    name: str
    run: Callable[..., Any]
    args: list
    kwargs: dict[str, Any]
    last: set[str]


class PackedModel(nn.Module):
    """`info`: what the file says to who feeds it; `layers`: its integer layers by name."""

    def __init__(self, info: dict[str, Any], nodes: list[Node], layers: dict[str, IntegerLayer]):
        super().__init__()
        self.info, self.nodes, self.layers = info, nodes, layers

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        (first, *rest), values = self.nodes, {}
        values[first.name] = images
        for node in rest:
            args, kwargs = map_values((node.args, node.kwargs), lambda value: values[value.of])
            values[node.name] = node.run(*args, **kwargs)
            for name in node.last:
                del values[name]
        return values[rest[-1].name]


def export(prepared: fx.GraphModule, file: Path, image_size: int, info: dict[str, Any]) -> IntegerModel:
    """Write the integer model of a prepared one, read it again and see that it computes the same; returns the model.

    Raises UserError for an operator that such a file has no place for.
    """
    written, images = save(prepared, file, info), torch.randn(2, 3, image_size, image_size)
    ours, theirs = written(images), load(str(file))(images)
    rounding = 1e-5 * float(ours.abs().max()) if written.float_layers else 0.0
    if not (ours - theirs).abs().max() <= rounding:
        raise RuntimeError(f"{file}: what was read computes something else than what was written")
    return written


def load(path: str) -> PackedModel:
    """The model in a file. Raises UserError if it is not one that this version reads. Never runs code from it."""
    try:
        with open(path, "rb") as opened, numpy.load(opened, allow_pickle=False) as file:
            arrays = {kind: numpy.asarray(file[kind], dtype) for kind, dtype in KINDS.items()}
            model = json.loads(str(file["model"]))
        if model["format"] != FORMAT:
            raise ValueError(f"format {model['format']}, not {FORMAT}")
        return _Reader(ArraysRead(arrays)).model(model)
    except Exception as error:  # rubbish makes zip, numpy and JSON raise all sorts
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not a packed model, or a damaged one ({reason[:100]})") from None


class _Reader:
    """Makes operators of what export/npz/write.py wrote."""

    def __init__(self, arrays: ArraysRead):
        self.arrays, self.layers = arrays, {}
        self.engine = Engine()

    def model(self, model: dict[str, Any]) -> PackedModel:
        plain = model["nodes"]
        ends = [(i, node["do"]) for i, node in enumerate(plain) if node["do"] in ENDS]
        if ends != [(0, ENDS[0]), (len(plain) - 1, ENDS[1])]:
            raise ValueError("one input, the first, and one output, the last, make a model")
        nodes, read, names = [], set(), {node["name"] for node in plain}
        for node in reversed(plain):
            args, kwargs = from_plain(node["args"]), {k: from_plain(v) for k, v in node["kwargs"].items()}
            needs = mentioned((args, kwargs))
            if not needs <= names - {node["name"]}:
                raise ValueError(f"{node['name']} reads {needs - names}")
            nodes.append(Node(node["name"], self._run(node), args, kwargs, needs - read))
            read |= needs
        return PackedModel(model["info"], nodes[::-1], self.layers)

    def _run(self, node: dict[str, Any]) -> Callable[..., Any]:
        if node["do"] in ENDS:
            return lambda value=None: value
        return DO[node["do"]](self, *node["with"])

    def call(self, plain: dict[str, Any]) -> Call:
        args = tuple(from_plain(plain["args"]))
        return Call(plain["call"], args, {k: from_plain(v) for k, v in plain["kwargs"].items()})

    def grid(self, number: int | None) -> Grid | None:
        if number is None:
            return None
        scale = self.arrays.take("grid_scales", [number, 1])[0]
        zero_point, q_min, q_max = self.arrays.take("grid_integers", [number, 1])[0]
        return Grid(scale, zero_point, int(q_min), int(q_max))

    def quantize(self, y: int) -> Callable:
        return self.engine.quantize(self.grid(y))

    def dequantize(self, x: int) -> Callable:
        return self.engine.dequantize(self.grid(x))

    def requantize(self, x: int, y: int) -> Callable:
        return self.engine.requantize(self.grid(x), self.grid(y))

    def relu(self, x: int) -> Callable:
        return self.engine.relu(self.grid(x))

    def concatenate(self, x: int, axis: int) -> Callable:
        return self.engine.concatenate(self.grid(x), axis)

    def shuffle(self, x: int, groups: int) -> Callable:
        return self.engine.shuffle(self.grid(x), groups)

    def interleave(self, x: int) -> Callable:
        return self.engine.interleave(self.grid(x))

    def layer(self, made: dict[str, Any]) -> IntegerLayer:
        layer = read_layer(self.arrays, made, self.grid(made["x"]), self.grid(made["y"]))
        self.layers[made["layer"]] = layer
        return layer

    def float_layer(self, made: dict[str, Any]) -> FloatLayer:
        return read_float_layer(self.arrays, made)

    def norm(self, made: dict[str, Any]) -> nn.Module:
        return read_norm(self.arrays, made)

    def operator(self, made: dict[str, Any]) -> Callable:
        x, y = tuple(self.grid(number) for number in made["x"]), self.grid(made["y"])
        arithmetic = OPERATORS[made["name"]].arithmetic
        if "table" in made:
            return functools.partial(look_up, x[0], self.arrays.take("tables", made["table"]).float())
        run = made["run"] and self.call(made["run"])
        return self.engine.in_float32(IntegerOperator(made["name"], arithmetic, run, x, y, made["lo"], made["hi"]))

    def float_operator(self, call: dict[str, Any], bounds: list) -> Callable:
        run, kept = self.call(call), read_bounds(bounds)
        return lambda *values: kept(run(*values))


MAKERS = (_Reader.quantize, _Reader.dequantize, _Reader.requantize, _Reader.relu, _Reader.concatenate)
MAKERS += (_Reader.shuffle, _Reader.interleave, _Reader.layer, _Reader.operator, _Reader.call, _Reader.norm)
MAKERS += (_Reader.float_layer, _Reader.float_operator)
DO: dict[str, Callable] = {make.__name__: make for make in MAKERS}
"""What a node may be, and what makes an operator of what its "with" holds."""
