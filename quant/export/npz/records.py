"""How the numbers of a model lie in the flat arrays of a packed file (export/npz/write.py): written, and read again.

A place is [start, count] in an array. A layer with codes c (export/npz/records.py) has the integer weights
k sign(scale) (s c + s - 1) on |scale|: the IntegerLayer of core/integer_layer.py, which says what they are for.
"""

from typing import Any

import numpy
import torch
from torch import Tensor, nn

from quant.core.activation import ClampedAffine
from quant.core.grid import Grid, along_channels
from quant.core.integer_layer import Geometry, IntegerLayer, refinement
from quant.graph.quant_layers import FloatLayer, QuantLayer

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


class ArraysRead:
    """The flat arrays of a file that was read."""

    def __init__(self, arrays: dict[str, numpy.ndarray]):
        self.arrays = arrays

    def take(self, kind: str, place: list[int]) -> Tensor:
        """What lies in a place. Raises ValueError where there is none such."""
        start, count = place
        if not 0 <= start <= start + count <= len(self.arrays[kind]):
            raise ValueError(f"{kind} end before {start} + {count}")
        return torch.from_numpy(self.arrays[kind][start : start + count].copy())


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
        "geometry": put_geometry(layer.geometry),
        "lo": layer.lo,
        "hi": layer.hi,
    }


def put_float_layer(arrays: Arrays, source: QuantLayer, layer: FloatLayer) -> dict[str, Any]:
    """Put the numbers of a layer that runs in float into arrays: its weights as codes where they are quantized."""
    made = {
        "shape": list(layer.weight.shape),
        "geometry": put_geometry(layer.geometry),
        "bounds": put_bounds(layer.activation),
    }
    if source.weight_quantizer is None:
        made["weight"] = arrays.put("floats", layer.weight)
    else:
        (codes, step), bits = _codes(source), source.weight_quantizer.bits
        made |= {"bits": bits, "step": step, "codes": arrays.put("weights", pack(codes.numpy(), bits))}
        scale = source.weight_quantizer.grid().scale.expand(len(layer.weight))
        in_weight = source.active_correction() is not None and layer.norm is None  # else the correction is in the norm
        made["scale"] = arrays.put("scales", scale * source.correction.gain if in_weight else scale)
    made["bias"] = None if layer.bias is None else arrays.put("floats", layer.bias)
    return made | {"norm": None if layer.norm is None else put_norm(arrays, layer.norm)}


def put_norm(arrays: Arrays, norm: nn.Module) -> dict[str, Any]:
    tensors = {name: value for name, value in norm.state_dict().items() if value.is_floating_point()}
    places = {name: arrays.put("floats", value) for name, value in tensors.items()}
    return {"axes": 2 if isinstance(norm, nn.BatchNorm2d) else 1, "eps": norm.eps, "tensors": places}


def _codes(layer: QuantLayer) -> tuple[Tensor, int]:
    """The codes of a layer's weights, and the step of their grid."""
    step = layer.weight_quantizer.grid().step
    return (layer.weight_quantizer.to_int(layer.weight.float()).detach() - (step - 1)) / step, step


def _equal_channels(p: Tensor, q: Tensor) -> Tensor:
    return (p == q).flatten(1).all(1)


def put_geometry(geometry: Geometry) -> list | None:
    return None if geometry.linear else [geometry.stride, geometry.padding, geometry.dilation, geometry.groups]


def put_bounds(bounds: ClampedAffine) -> list[float | None]:
    """JSON has no infinity."""
    return [None if abs(value) == float("inf") else value for value in bounds]


def read_layer(arrays: ArraysRead, made: dict[str, Any], x: Grid, y: Grid | None) -> IntegerLayer:
    """The layer that put_layer put, between its grids."""
    scale = arrays.take("scales", made["scale"])
    weight = _read_integers(arrays, made)
    weight *= along_channels(made["factor"] * scale.sign(), weight)
    weight[made["anew"]] = arrays.take("anew", made["anew_weight"]).float().view(-1, *made["shape"][1:])
    bias = arrays.take("biases", made["bias"]).float()
    return IntegerLayer(read_geometry(made["geometry"]), weight, scale.abs(), bias, x, y, made["lo"], made["hi"])


def read_float_layer(arrays: ArraysRead, made: dict[str, Any]) -> FloatLayer:
    """The layer that put_float_layer put."""
    if "codes" in made:
        weight = _read_integers(arrays, made)
        weight *= along_channels(arrays.take("scales", made["scale"]), weight)
    else:
        weight = arrays.take("floats", made["weight"]).view(made["shape"])
    bias = made["bias"] and arrays.take("floats", made["bias"])
    norm = made["norm"] and read_norm(arrays, made["norm"])
    return FloatLayer(read_geometry(made["geometry"]), weight, bias, norm, read_bounds(made["bounds"]))


def read_norm(arrays: ArraysRead, made: dict[str, Any]) -> nn.Module:
    tensors = {name: arrays.take("floats", place) for name, place in made["tensors"].items()}
    kind = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[made["axes"]]
    norm = kind(len(tensors["running_mean"]), made["eps"], affine="weight" in tensors)
    norm.load_state_dict(tensors, strict=False)
    return norm.eval().requires_grad_(False)


def read_geometry(plain: list | None) -> Geometry:
    if plain is None:
        return Geometry()
    stride, padding, dilation, groups = plain
    return Geometry(tuple(stride), tuple(padding), tuple(dilation), groups)


def read_bounds(plain: list[float | None]) -> ClampedAffine:
    low, high, gain, offset = plain
    return ClampedAffine(-torch.inf if low is None else low, torch.inf if high is None else high, gain, offset)


def _read_integers(arrays: ArraysRead, made: dict[str, Any]) -> Tensor:
    """The integers s c + s - 1 of a layer's weights."""
    shape, step = made["shape"], made["step"]
    packed = arrays.take("weights", made["codes"]).numpy()
    codes = torch.from_numpy(unpack(packed, made["bits"], int(numpy.prod(shape)))).float()
    return (step * codes + (step - 1)).view(shape)


def pack(codes: numpy.ndarray, bits: int) -> numpy.ndarray:
    """uint8 [ceil(n bits / 8)] of n codes of any shape. Raises ValueError if one does not fit."""
    codes = codes.reshape(-1).astype(numpy.int16)
    if codes.size and not -(2 ** (bits - 1)) <= codes.min() <= codes.max() < 2 ** (bits - 1):
        raise ValueError(f"codes of {codes.min()} .. {codes.max()} in {bits} bits")
    stream = numpy.empty((len(codes), bits), numpy.uint8)
    for j in range(bits):
        stream[:, j] = (codes >> j) & 1
    return numpy.packbits(stream.reshape(-1), bitorder="little")


def unpack(packed: numpy.ndarray, bits: int, count: int) -> numpy.ndarray:
    """The int8 [count] codes again. Raises ValueError if there are not as many."""
    if len(packed) != packed_bytes(count, bits):
        raise ValueError(f"{len(packed)} bytes for {count} codes of {bits} bits")
    stream = numpy.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits).view(numpy.int8)
    codes = -stream[:, -1] * numpy.int8(2 ** (bits - 1) - 1) - stream[:, -1]  # two's complement: worth -2^(k-1)
    for j in range(bits - 1):
        codes += stream[:, j] << j
    return codes


def packed_bytes(count: int, bits: int) -> int:
    return -(-count * bits // 8)
