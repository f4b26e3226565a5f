"""Plain values that other programs save beside their weights: read by functions of ours, never by the code they name.

A pickle names the function that makes each object. torch.load(weights_only=True) calls none but its own and those of
ALLOWED, which take the place of the named ones: numbers and arrays of NumPy, namespaces of arguments, paths, dates.
What anything else names is refused.
"""

import argparse
import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "b1": torch.bool,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "u2": torch.uint16,
    "u4": torch.uint32,
    "u8": torch.uint64,
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
}
"""NumPy's names of what a number is."""
MAX_DEPTH = 100
FEW, MOST = 1000, 10**7
"""Values that any file may have, and that none has: seconds to read."""


class Dtype:
    """A dtype of NumPy, by its name; other than numpy.dtype it takes no state that says how to read memory."""

    def __init__(self, name: Any = "", *_: Any):
        self.name, self.big_endian = name, False

    def __setstate__(self, state: Any) -> None:
        self.big_endian = state[1] == ">"

    def read(self, content: Any) -> Tensor:
        """The numbers in these bytes, [count]. Raises ValueError if they are not numbers."""
        if self.name not in DTYPES or self.big_endian or not isinstance(content, bytes):
            raise ValueError(f"numbers of NumPy's dtype {self.name!r}")
        return torch.frombuffer(bytearray(content), dtype=DTYPES[self.name]) if content else torch.zeros(0)


class Array:
    """An array of NumPy, as it is unpickled: first empty, then with its state."""

    value: Tensor | None = None

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, content = state
        if not isinstance(dtype, Dtype) or dtype.name not in DTYPES:
            return  # of objects or text: no weights
        sides = [int(side) for side in shape]
        numbers = dtype.read(content)
        if min(sides, default=0) < 0 or math.prod(sides) != len(numbers):
            raise ValueError("an array of NumPy of another size than its bytes")
        self.value = (
            numbers.reshape(sides[::-1]).permute(*range(len(sides))[::-1]) if is_fortran else numbers.view(sides)
        )


class Opaque:
    """A value of which nothing is needed, such as a date."""

    def __new__(cls, *_: Any, **__: Any) -> "Opaque":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


class Version:
    """A version of torch, which is a kind of text: made as text."""

    def __new__(cls, *text: Any) -> str:  # type: ignore[misc]
        return "".join(map(str, text))


class Record(argparse.Namespace):
    """Attributes and their values."""


def _scalar(dtype: Any, content: Any = b"") -> Any:
    if not isinstance(dtype, Dtype) or dtype.name not in DTYPES:
        return Opaque()
    return dtype.read(content).reshape(()).item()


def _path(*parts: Any) -> str:
    return str(PurePath(*map(str, parts)))


def _empty_dict(*_: Any) -> dict:
    return {}


def _empty_bytes(*_: Any) -> bytes:
    """A pickle names `bytes` for empty ones alone."""
    return b""


_NUMPY: dict[str, Callable] = {"multiarray.scalar": _scalar, "multiarray._reconstruct": Array}
_STANDARD: dict[str, Callable] = {
    "argparse.Namespace": Record,
    "types.SimpleNamespace": Record,
    "collections.defaultdict": _empty_dict,
    "builtins.bytes": _empty_bytes,
    "torch.torch_version.TorchVersion": Version,
    "numpy.dtype": Dtype,
    "numpy.ndarray": Array,
    **{f"pathlib.{kind}Path": _path for kind in ("", "Pure", "Posix", "PurePosix", "Windows", "PureWindows")},
    **{f"pathlib._local.{kind}Path": _path for kind in ("", "Posix", "PurePosix", "Windows", "PureWindows")},
    **{f"datetime.{kind}": Opaque for kind in ("datetime", "date", "time", "timedelta", "timezone")},
    **{f"builtins.{kind}": Opaque for kind in ("list", "dict", "int", "float", "str", "bool", "tuple")},
}
ALLOWED: list[Callable | tuple[Callable, str]] = [(function, name) for name, function in _STANDARD.items()]
"""(function of ours, the name in a file whose place it takes)."""
ALLOWED += [(function, f"numpy.{core}.{name}") for core in ("core", "_core") for name, function in _NUMPY.items()]


def plain(value: Any, most: int) -> Any:
    """The same value of dicts, lists, tuples and tensors. most: how many values it can have, one a byte of its file.

    Raises ValueError if it is nested without end, or has more: lists that hold one list many times, which holds another
    many times, become more than there is memory for when they are written out.
    """
    return _Plain(min(max(most, FEW), MOST)).of(value, 0)


class _Plain:
    """Makes values plain, and counts them."""

    def __init__(self, most: int):
        self.most = most

    def of(self, value: Any, depth: int) -> Any:
        self.most -= 1
        if depth > MAX_DEPTH or self.most < 0:
            raise ValueError("values nested too deeply" if depth > MAX_DEPTH else "more values than it has bytes")
        if isinstance(value, Record):
            value = vars(value)
        if isinstance(value, Array):
            return value.value
        if type(value) in (dict, OrderedDict, Counter):
            return {self.of(key, depth + 1): self.of(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
            return type(value)(self.of(item, depth + 1) for item in value)
        return None if isinstance(value, Opaque | Dtype) else value
