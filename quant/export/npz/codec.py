"""Values as JSON, and one flat array for all tensors of a dtype.

Numbers, strings, None and lists are themselves in JSON. All else is {kind: [values]}: an object of a class in KINDS,
by its fields; a tensor, by its place in the array of its dtype; a reference to the output of a node; a tuple, dict or
slice; an infinite number. Tensors share arrays because each array costs 200 bytes in a file.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy
import torch
from torch import Tensor, fx

from quant.core.grid import Grid
from quant.export.npz.calls import Call, refused
from quant.export.npz.operators import KINDS, Packed

DTYPES = ("uint8", "int8", "int16", "int32", "float32")
BUILTINS: dict[str, Callable[..., Any]] = {
    "tuple": lambda *values: values,
    "dict": lambda *items: dict(items),
    "slice": slice,
    "float": float,
}


class Encoder:
    """Encodes values, and collects the arrays of their tensors by dtype."""

    def __init__(self):
        self.arrays = {dtype: [numpy.zeros(0, dtype)] for dtype in DTYPES}

    def encode(self, value: Any) -> Any:
        """The value as JSON. Raises UserError for a value that a file cannot represent."""
        if value is None or isinstance(value, int | str) or (isinstance(value, float) and math.isfinite(value)):
            return value
        if isinstance(value, list):
            return [self.encode(part) for part in value]
        kind, parts = self._packed(value)
        return {kind: [self.encode(part) for part in parts]}

    def _packed(self, value: Any) -> Packed:
        name = type(value).__name__
        if isinstance(value, Packed):
            return value
        if KINDS.get(name) is type(value):
            if isinstance(value, tuple):
                return Packed(name, list(value))
            return Packed(name, [getattr(value, field.name) for field in dataclasses.fields(value) if field.init])
        if isinstance(value, Tensor):
            return self._tensor(value.detach())
        if isinstance(value, fx.Node):
            return Packed("node", [value.name])
        if isinstance(value, tuple):
            return Packed("tuple", list(value))
        if isinstance(value, dict):
            return Packed("dict", [list(item) for item in value.items()])
        if isinstance(value, slice):
            return Packed("slice", [value.start, value.stop, value.step])
        if isinstance(value, float):
            return Packed("float", [str(value)])
        raise refused(f"an argument {value!r}")

    def _tensor(self, tensor: Tensor) -> Packed:
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise refused(f"a tensor of {dtype}")
        if not tensor.ndim:
            return Packed("scalar", [dtype, tensor.item()])
        start = sum(map(len, self.arrays[dtype]))
        self.arrays[dtype].append(tensor.numpy().reshape(-1))
        return Packed("tensor", [dtype, start, list(tensor.shape)])


def _grid(scale: Tensor, zero_point: Tensor, *rest: Any) -> Grid:
    """The grid. Raises ValueError for a scale that is none."""
    if not bool(((scale > 0) & (scale < math.inf)).all()):
        raise ValueError("the scale of a grid must be positive and finite")
    return Grid(scale, zero_point, *rest)


def _call(name: str, args: tuple = (), *rest: Any) -> Call:
    """The call. Raises ValueError for a batch norm whose variance is none."""
    if name == "batch_norm" and bool((args[1] < 0).any()):
        raise ValueError("a variance is negative")
    return Call(name, args, *rest)


class Decoder:
    """Decodes what an Encoder encoded. arrays: its arrays, each as one; nodes: the nodes to refer to, by name."""

    def __init__(self, arrays: Mapping[str, numpy.ndarray], nodes: Mapping[str, fx.Node]):
        self.tensors = {dtype: torch.from_numpy(arrays[dtype].astype(dtype).reshape(-1)) for dtype in DTYPES}
        self.left = {dtype: len(values) for dtype, values in self.tensors.items()}
        """How many numbers of each array no tensor has taken: each is of one tensor."""
        if bool(self.tensors["float32"].isnan().any()):
            raise ValueError("a number is NaN")
        self.nodes = nodes
        checked: dict[str, Callable[..., Any]] = {"Grid": _grid, "Call": _call}
        own: dict[str, Callable[..., Any]] = {"tensor": self._tensor, "scalar": self._scalar, "node": self._node}
        self.kinds: dict[str, Callable[..., Any]] = BUILTINS | KINDS | own | checked

    def decode(self, plain: Any) -> Any:
        """The value. Raises ValueError for an unknown kind, and whatever the constructors of KINDS raise."""
        if isinstance(plain, list):
            return [self.decode(part) for part in plain]
        if not isinstance(plain, dict):
            return plain
        ((kind, parts),) = plain.items()
        if kind not in self.kinds:
            raise ValueError(f"{kind!r} is not a kind of value that a file may contain")
        return self.kinds[kind](*self.decode(parts))

    def _tensor(self, dtype: str, start: int, shape: list[int]) -> Tensor:
        end = start + math.prod(shape)
        self.left[dtype] -= end - start
        if not 0 <= start <= end <= len(self.tensors[dtype]) or self.left[dtype] < 0:
            raise ValueError(f"{dtype} values end before {end}")
        return self.tensors[dtype][start:end].view(shape).clone()

    def _scalar(self, dtype: str, number: float) -> Tensor:
        return torch.tensor(number, dtype=self.tensors[dtype].dtype)

    def _node(self, name: str) -> fx.Node:
        if name not in self.nodes:
            raise ValueError(f"a node reads {name!r}, which no node before it computes")
        return self.nodes[name]
