"""The model in a file of quant/packed.py: float images in, float logits out, the reference engine's to the bit.

Nothing but the file is needed, and nothing in it is run: it names operators of DO and calls of quant.calls.CALLS, which
this module interprets one after the other.
"""

import functools
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, fx, nn

from quant.bits import unpack
from quant.calls import CALLS, Call, filled, from_plain, mentioned
from quant.convert import IntegerModel
from quant.engine import Engine
from quant.grid import Grid
from quant.integer import Bounds, Geometry, IntegerLayer
from quant.layers import FloatLayer, bounded
from quant.operators import IntegerOperator, looked_up
from quant.packed import FORMAT, KINDS, save
from utils.errors import UserError

INFINITE = (float("-inf"), float("inf"), None, None)


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
            values[node.name] = node.run(*filled(node.args, values), **filled(node.kwargs, values))
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
        with numpy.load(path, allow_pickle=False) as file:
            arrays = {kind: numpy.asarray(file[kind], dtype) for kind, dtype in KINDS.items()}
            model = json.loads(str(file["model"]))
        if model["format"] != FORMAT:
            raise ValueError(f"format {model['format']}, not {FORMAT}")
        return _Reader(arrays).model(model)
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise UserError(f"{path}: not a packed model ({reason[:100]})") from None
    except (EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged ({error})") from None


class _Reader:
    """Makes operators of what quant/packed.py wrote."""

    def __init__(self, arrays: dict[str, numpy.ndarray]):
        self.arrays, self.layers = arrays, {}
        self.engine = Engine()

    def model(self, model: dict[str, Any]) -> PackedModel:
        plain = model["nodes"]
        if [node["do"] for node in plain if node["do"] in ("placeholder", "output")] != ["placeholder", "output"]:
            raise ValueError("one input and one output make a model")
        if (plain[0]["do"], plain[-1]["do"]) != ("placeholder", "output"):
            raise ValueError("the input comes first, the output last")
        nodes, read, names = [], set(), {node["name"] for node in plain}
        for node in reversed(plain):
            args, kwargs = from_plain(node["args"]), {k: from_plain(v) for k, v in node["kwargs"].items()}
            needs = mentioned([args, kwargs])
            if not needs <= names - {node["name"]}:
                raise ValueError(f"{node['name']} reads {needs - names}")
            nodes.append(Node(node["name"], self._run(node), args, kwargs, needs - read))
            read |= needs
        return PackedModel(model["info"], nodes[::-1], self.layers)

    def _run(self, node: dict[str, Any]) -> Callable[..., Any]:
        if node["do"] in ("placeholder", "output"):
            return lambda value=None: value
        return DO[node["do"]](self, *node["with"])

    def call(self, plain: dict[str, Any]) -> Call:
        if plain["call"] not in CALLS:
            raise ValueError(f"{plain['call']!r} is no call that a file may ask for")
        args = tuple(from_plain(plain["args"]))
        return Call(plain["call"], args, {k: from_plain(v) for k, v in plain["kwargs"].items()})

    def grid(self, number: int | None) -> Grid | None:
        if number is None:
            return None
        zero_point, q_min, q_max = self.arrays["grid_integers"][number].tolist()
        scale = torch.tensor(self.arrays["grid_scales"][number])
        return Grid(scale, torch.tensor(zero_point, dtype=torch.int32), q_min, q_max)

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
        scale = self._floats("scales", made["scale"])
        weight = made["factor"] * self._integers(made) * _along(scale.sign(), made["shape"])
        anew = self._take("anew", made["anew_weight"])
        weight[made["anew"]] = torch.from_numpy(anew).float().view(-1, *made["shape"][1:])
        bias = torch.from_numpy(self._take("biases", made["bias"])).float()
        x, y = self.grid(made["x"]), self.grid(made["y"])
        layer = IntegerLayer(_geometry(made["geometry"]), weight, scale.abs(), bias, x, y, made["lo"], made["hi"])
        self.layers[made["layer"]] = layer
        return layer

    def float_layer(self, made: dict[str, Any]) -> FloatLayer:
        if "codes" in made:
            weight = self._integers(made) * _along(self._floats("scales", made["scale"]), made["shape"])
        else:
            weight = self._floats("floats", made["weight"]).view(made["shape"])
        bias = made["bias"] and self._floats("floats", made["bias"])
        norm = made["norm"] and self.norm(made["norm"])
        return FloatLayer(_geometry(made["geometry"]), weight, bias, norm, _bounds(made["bounds"]))

    def norm(self, made: dict[str, Any]) -> nn.Module:
        tensors = {name: self._floats("floats", place) for name, place in made["tensors"].items()}
        kind = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[made["axes"]]
        norm = kind(len(tensors["running_mean"]), made["eps"], affine="weight" in tensors)
        norm.load_state_dict(tensors, strict=False)
        return norm.eval().requires_grad_(False)

    def operator(self, made: dict[str, Any]) -> Callable:
        x, y = tuple(self.grid(number) for number in made["x"]), self.grid(made["y"])
        if made["kind"] == "function":
            table = torch.from_numpy(self._take("tables", made["table"])).float()
            return functools.partial(looked_up, x[0], table)
        run = made["run"] and self.call(made["run"])
        return self.engine.in_float32(IntegerOperator(made["kind"], run, x, y, made["lo"], made["hi"]))

    def float_operator(self, call: dict[str, Any], bounds: list) -> Callable:
        run, kept = self.call(call), _bounds(bounds)
        return lambda *values: bounded(run(*values), kept)

    def _integers(self, made: dict[str, Any]) -> Tensor:
        """The integers s c + s - 1 of a layer's weights."""
        shape, step = made["shape"], made["step"]
        packed = self._take("weights", made["codes"])
        codes = torch.from_numpy(unpack(packed, made["bits"], int(numpy.prod(shape)))).float()
        return (step * codes + (step - 1)).view(shape)

    def _floats(self, kind: str, place: list[int]) -> Tensor:
        return torch.from_numpy(self._take(kind, place))

    def _take(self, kind: str, place: list[int]) -> numpy.ndarray:
        start, count = place
        if not 0 <= start <= start + count <= len(self.arrays[kind]):
            raise ValueError(f"{kind} end before {start} + {count}")
        return self.arrays[kind][start : start + count].copy()


OPERATORS = (_Reader.quantize, _Reader.dequantize, _Reader.requantize, _Reader.relu, _Reader.concatenate)
OPERATORS += (_Reader.shuffle, _Reader.interleave, _Reader.layer, _Reader.operator, _Reader.call, _Reader.norm)
OPERATORS += (_Reader.float_layer, _Reader.float_operator)
DO: dict[str, Callable] = {make.__name__: make for make in OPERATORS}
"""What a node may be, and what makes an operator of what its "with" holds."""


def _geometry(plain: list | None) -> Geometry:
    if plain is None:
        return Geometry()
    stride, padding, dilation, groups = plain
    return Geometry(tuple(stride), tuple(padding), tuple(dilation), groups)


def _bounds(plain: list[float | None]) -> Bounds:
    return Bounds(*(infinite if value is None else value for value, infinite in zip(plain, INFINITE, strict=True)))


def _along(values: Tensor, shape: list[int]) -> Tensor:
    return values.view(-1, *[1] * (len(shape) - 1))
