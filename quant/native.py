"""PyTorch's integer engines: fbgemm, qnnpack, x86 and onednn. All contact with quantized tensors is in this file.

PyTorch has announced to remove quantized tensors (pytorch #184982) and warns at their first use; that one warning is
silenced here, by its message. Training, simulation and checkpoints need nothing of this file.

What is known of the kernels (each found by measurement), and what is done about it:
- fbgemm's depthwise kernels add products in 16 bits and saturate on full-range data; where the channel count is no
  multiple of 8 they are exact but many times slower. Depthwise layers therefore run on oneDNN.
- Without VNNI, oneDNN's dense kernels saturate as well. So no kernel is trusted: quant/verify.py tries a layer's
  candidates, at full range, on this CPU, and the first exact one is taken. Float32 arithmetic on the integers is the
  last.
- Engines clamp at 0 and 255 only. A grid of b < 8 bits is held shifted, its q_max at 255, so that saturation is its
  upper clamp; a fused ReLU is the lower one where the zero point is q_min; other bounds are clamped in plain uint8.
- An engine is fixed when a weight is packed; element-wise operators read the global engine when they run: see
  running().
- Kernels scale, add the bias and round in orders of their own: qnnpack round((a + B) m) + z, as the layer does; fbgemm
  round((a + fl(b / m)) m) + z with a float bias b; oneDNN round(fl(fl(fl(a m) + b) + z)). On multipliers that are off
  ties (quant/integer.py) all come out the same; elsewhere fbgemm is a step apart for a sum in a million, and oneDNN,
  for ten, is asked for its exact sums alone. Logits leave every engine but qnnpack as exact sums.
- torch's x86 engine is a choice between fbgemm and oneDNN. So is ours: oneDNN, and fbgemm where ties are near.
"""

import contextlib
import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant.engine import FLOAT32, Engine, Held, Operator
from quant.grid import Grid
from quant.integer import IntegerLayer
from quant.operators import IntegerOperator, exact_average

SUMS = "onednn sums"
"""oneDNN's kernel, with scaling and rounding in passes of their own."""
SUMMING = """
def linear(x, zero_point: int, weight, ones, zeros, bias):
    return torch.ops.onednn.qlinear_pointwise(
        x, 1.0, zero_point, weight, ones, zeros, bias, 1.0, 0, torch.float32, "none", [], ""
    )

def convolution(
    x, zero_point: int, weight, ones, zeros, bias,
    stride: List[int], padding: List[int], dilation: List[int], groups: int
):
    return torch.ops.onednn.qconv2d_pointwise(
        x, 1.0, zero_point, weight, ones, zeros, bias,
        stride, padding, dilation, groups, 1.0, 0, torch.float32, "none", [], ""
    )
"""
SHAPES = 8
"""How many input shapes a layer keeps packed weights for."""


class NativeEngine(Engine):
    """An engine by torch's name for it.

    Values are held as quint8 tensors of scale 1: the zero point travels with them, scales live in the multipliers.
    """

    def __init__(self, name: str):
        self.name = name
        _spend_warning()

    def missing(self) -> str:
        return "" if self.name in torch.backends.quantized.supported_engines else "is not in this build of torch"

    @contextlib.contextmanager
    def running(self):
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = self.name
        try:
            yield
        finally:
            torch.backends.quantized.engine = before

    def quantize(self, grid: Grid) -> Operator:
        scale, zero_point = float(grid.scale), _zero_point(grid)
        clamp = _clamp(grid.q_min + _shift(grid), 255)
        return lambda x: clamp(_scaled(torch.quantize_per_tensor(x, scale, zero_point, torch.quint8), 1.0))

    def dequantize(self, grid: Grid) -> Operator:
        scale = float(grid.scale)
        return lambda held: held.dequantize().mul_(scale)

    def hold(self, grid: Grid) -> Operator:
        return lambda n: _held(n, _zero_point(grid))

    def centred(self, grid: Grid) -> Operator:
        return torch.dequantize

    def kernels(self, layer: IntegerLayer) -> tuple[str, ...]:
        onednn = "onednn" in torch.backends.quantized.supported_engines
        if self.name == "qnnpack" or not onednn:
            return (FLOAT32,) if layer.y is None else (self.name, FLOAT32)
        if layer.y is None:
            return (SUMS, FLOAT32)
        depthwise = layer.geometry.groups == len(layer.weight) > 1
        if self.name == "fbgemm" and not depthwise:
            return ("fbgemm", SUMS, FLOAT32)
        if layer.off_ties():
            return ("onednn", SUMS, FLOAT32)
        return ("fbgemm", SUMS, FLOAT32) if self.name == "x86" and not depthwise else (SUMS, FLOAT32)

    def layer(self, layer: IntegerLayer, kernel: str) -> Operator:
        if kernel == FLOAT32:
            return _in_float32(layer)
        return _onednn_sums(layer) if kernel == SUMS else _packed(layer, kernel)

    def operators(self, op: IntegerOperator) -> list[tuple[str, Operator]]:
        foreign = op.y is None or (self.name == "qnnpack" and op.kind == "add")  # which rounds otherwise
        ways = [] if foreign else OPERATORS[op.kind](op)
        return [(self.name, way) for way in ways] + [(FLOAT32, self.in_float32(op))]

    def concatenate(self, grid: Grid, axis: int) -> Operator:
        zero_point = _zero_point(grid)
        return lambda values: _of_bytes(torch.cat([_bytes(held) for held in values], axis), zero_point)

    def shuffle(self, grid: Grid, groups: int) -> Operator:
        zero_point = _zero_point(grid)
        return lambda held: _of_bytes(_shuffled(_bytes(held), groups), zero_point)

    def interleave(self, grid: Grid) -> Operator:
        zero_point, otherwise = _zero_point(grid), super().interleave(grid)

        def run(p: Held, q: Held) -> Held:
            if p.shape != q.shape:
                return otherwise(p, q)
            pairs = _pairs(_bytes(p), _bytes(q))
            n, h, w, c = pairs.shape
            new = torch._empty_affine_quantized([0], scale=1.0, zero_point=zero_point, dtype=torch.quint8)
            return new.set_(pairs, 0, (n, 2 * c, h, w), (h * w * 2 * c, 1, w * 2 * c, 2 * c))

        return run if sys.byteorder == "little" else otherwise

    def relu(self, grid: Grid) -> Operator:
        return torch.relu


def _shift(grid: Grid) -> int:
    """How far above its own integers a grid is held: q_max sits at 255."""
    return 255 - grid.q_max


def _zero_point(grid: Grid) -> int:
    return int(grid.zero_point) + _shift(grid)


def _held(n: Tensor, zero_point: int) -> Held:
    """Centred integers in fp32, held."""
    return torch._make_per_tensor_quantized_tensor((n + zero_point).to(torch.uint8), 1.0, zero_point)


def _scaled(held: Held, scale: float) -> Held:
    """The same integers, on the same memory, with another scale."""
    new = torch._empty_affine_quantized([0], scale=scale, zero_point=held.q_zero_point(), dtype=torch.quint8)
    return _on_memory_of(new, held)


def _bytes(held: Held) -> Tensor:
    """The same integers, on the same memory, as a plain uint8 tensor."""
    return _on_memory_of(torch.empty([0], dtype=torch.uint8), held)


def _of_bytes(integers: Tensor, zero_point: int) -> Held:
    """Plain uint8, held on the same memory."""
    new = torch._empty_affine_quantized([0], scale=1.0, zero_point=zero_point, dtype=torch.quint8)
    return _on_memory_of(new, integers)


def _on_memory_of(new: Tensor, old: Tensor) -> Tensor:
    """`new`, of whatever type of a byte, on the memory of `old` (of a copy where that has gaps)."""
    dense = _in_memory_order(old)
    if not dense.is_contiguous():
        old = old.contiguous(memory_format=torch.channels_last if old.ndim == 4 else torch.contiguous_format)
        dense = _in_memory_order(old)
    return new.set_(dense, old.storage_offset(), old.shape, old.stride())


def _shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    pixels = x.permute(0, 2, 3, 1).unflatten(3, (groups, c // groups))
    return pixels.transpose(3, 4).reshape(n, h, w, c).permute(0, 3, 1, 2)


def _pairs(p: Tensor, q: Tensor) -> Tensor:
    """p + 256 q in 16 bits, [N, H, W, C]: on a little-endian machine its bytes are those of p and q by turns.

    Four times faster than to copy byte after byte.
    """
    p, q = p.permute(0, 2, 3, 1), q.permute(0, 2, 3, 1)
    return p.to(torch.int16, memory_format=torch.contiguous_format).add_(q, alpha=256)


def _in_memory_order(x: Tensor) -> Tensor:
    """A view with its axes as channels_last lays them out."""
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


def _clamp(lo: int, hi: int) -> Operator:
    """Clamp held integers in place, as plain uint8: torch.clamp scrambles qnnpack's channels_last tensors."""
    if lo <= 0 and hi >= 255:
        return lambda held: held

    def clamp(held: Held) -> Held:
        _bytes(held).clamp_(lo, hi)
        return held

    return clamp


def _held_range(y: Grid, lo: int, hi: int) -> tuple[int, int, int]:
    """The zero point with which grid y is held, and lo and hi as they are held."""
    return _zero_point(y), lo + _shift(y), hi + _shift(y)


def _add(op: IntegerOperator) -> list[Operator]:
    """torch's addition, on the scales as they are and divided by the output's: on most grids one of them is exact.

    It takes no tensors of different shapes, and qnnpack's own rounds otherwise and refuses some ratios of scales.
    """
    scales = [grid.scale for grid in (*op.x, op.y)]
    return [_add_scaled(op, *(float(s / op.y.scale) for s in scales)), _add_scaled(op, *map(float, scales))]


def _add_scaled(op: IntegerOperator, a: float, b: float, y: float) -> Operator:
    zero_point, lo, hi = _held_range(op.y, op.lo, op.hi)
    relu = lo == zero_point
    function = (torch.ops.quantized.add_relu if relu else torch.ops.quantized.add).default
    clamp = _clamp(0 if relu else lo, hi)

    def add(p: Held, q: Held) -> Held:
        if p.shape != q.shape:
            p, q = torch.broadcast_tensors(p, q)
        total = function(_scaled(p, a), _scaled(q, b), y, zero_point)
        return clamp(total if y == 1.0 else _scaled(total, 1.0))

    return add


def _stepped(op: IntegerOperator) -> Operator:
    """float multiples of op.step() -> held"""
    step, (zero_point, lo, hi) = float(op.step()), _held_range(op.y, op.lo, op.hi)
    clamp = _clamp(lo, hi)
    return lambda x: clamp(_scaled(torch.quantize_per_tensor(x, step, zero_point, torch.quint8), 1.0))


def _mul(op: IntegerOperator) -> list[Operator]:
    """Products of integers in fp32, which hold them exactly. torch's own quantized product is slower."""
    stepped = _stepped(op)
    return [lambda p, q: stepped(p.dequantize() * q.dequantize())]


def _average(op: IntegerOperator) -> list[Operator]:
    stepped = _stepped(op)
    return [lambda held: stepped(exact_average(op.run, held.dequantize()))]


def _function(op: IntegerOperator) -> list[Operator]:
    """torch's quantized kernel where there is one; the function in float; its table."""
    x, (zero_point, lo, hi) = op.x[0], _held_range(op.y, op.lo, op.hi)
    scale, y, clamp, run = float(x.scale), float(op.y.scale), _clamp(lo, hi), op.run
    table = (op.table() + zero_point).to(torch.uint8)
    table = torch.cat([table[:1].expand(_shift(x) + x.q_min), table])  # below 8 bits, what is held starts above 0

    def in_float(held: Held) -> Held:
        value = run(held.dequantize().mul_(scale))
        return clamp(_scaled(torch.quantize_per_tensor(value, y, zero_point, torch.quint8), 1.0))

    def look_up(held: Held) -> Held:
        index = _in_memory_order(_bytes(held))
        found = table.index_select(0, index.flatten().int()).view(index.shape)
        return _of_bytes(found.permute(0, 3, 1, 2) if held.ndim == 4 else found, zero_point)

    def kernel(held: Held) -> Held:
        return clamp(_scaled(torch.ops.quantized.hardswish(_scaled(held, scale), y, zero_point), 1.0))

    hard_swish = isinstance(run, nn.Hardswish) or getattr(run, "function", None) is F.hardswish
    return [*([kernel] if hard_swish else []), in_float, look_up]


OPERATORS = {"add": _add, "mul": _mul, "average": _average, "function": _function}
"""kind -> (operator) -> ways to run it, the best first"""


class _Packed:
    """An operator with packed weights: packed once, or for each shape of its input where the kernel lays them out for
    the first it meets and lays them out anew, at every call, for others."""

    def __init__(self, pack: Callable, by_shape: bool, run: Callable[[Held, Any], Held]):
        self.pack, self.by_shape, self.run = pack, by_shape, run
        self.packs: dict[tuple[int, ...] | None, Any] = {}

    def __call__(self, x: Held) -> Held:
        key = tuple(map(int, x.shape)) if self.by_shape else None
        if key not in self.packs:
            if len(self.packs) == SHAPES:
                self.packs.pop(next(iter(self.packs)))
            self.packs[key] = self.pack(x.shape)
        return self.run(x, self.packs[key])


def _packed(layer: IntegerLayer, kernel: str) -> Operator:
    """The layer on the int8 kernel of that engine, with its multipliers as the scales of the weights."""
    geometry, y, m = layer.geometry, layer.y, layer.multiplier()
    weight = torch._make_per_channel_quantized_tensor(
        layer.weight.to(torch.int8), m.double(), torch.zeros(len(m), dtype=torch.long), 0
    )
    arguments = () if geometry.linear else (geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
    functions = torch.ops.quantized
    prepack = functions.linear_prepack if geometry.linear else functions.conv2d_prepack

    def pack(_: torch.Size):
        with NativeEngine(kernel).running():
            return prepack(weight, layer.bias * m, *arguments)

    zero_point, lo, hi = _held_range(y, layer.lo, layer.hi)
    relu = lo == zero_point
    if geometry.linear:
        function = (functions.linear_relu if relu else functions.linear).default
    else:
        function = (functions.conv2d_relu if relu else functions.conv2d).new
    clamp = _clamp(0 if relu else lo, hi)
    return _Packed(pack, kernel == "onednn", lambda x, packed: clamp(function(x, packed, 1.0, zero_point)))


def _in_float32(layer: IntegerLayer) -> Operator:
    """The layer's own exact arithmetic between two changes of type: always right, at the speed of float."""
    if layer.y is None:
        return lambda x: layer(x.dequantize())
    zero_point = _zero_point(layer.y)
    return lambda x: _held(layer(x.dequantize()), zero_point)


def _onednn_sums(layer: IntegerLayer) -> Operator:
    """The layer on oneDNN's int8 kernel, which hands out its sums unscaled in fp32: exact.

    The rest is one multiplication and one rounding, the layer's own, each a pass over memory.
    """
    y = layer.y
    if y is None:
        unit = layer.along_channels(layer.accumulator_scale())
        return _sums(layer, lambda sums: sums.mul_(unit))
    multiplier, (zero_point, lo, hi) = layer.along_channels(layer.multiplier()), _held_range(y, layer.lo, layer.hi)
    clamp = _clamp(lo, hi)
    return _sums(
        layer, lambda sums: clamp(torch.quantize_per_tensor(sums.mul_(multiplier), 1.0, zero_point, torch.quint8))
    )


def _sums(layer: IntegerLayer, then: Callable[[Tensor], Tensor]) -> Operator:
    """held -> then(sums and bias in fp32); torch's operators on plain uint8 tensors, with every scale 1."""
    geometry, zero_point, functions = layer.geometry, _zero_point(layer.x), torch.ops.onednn
    weight, ones, zeros = layer.weight.to(torch.int8), torch.ones(len(layer.weight)), torch.zeros(len(layer.weight))
    given, run = (ones, zeros.long(), layer.bias), _summing()
    if geometry.linear:
        return _Packed(
            lambda shape: functions.qlinear_prepack(weight, shape),
            True,
            lambda x, packed: then(run.linear(_bytes(x), zero_point, packed, *given)),
        )
    strides = [list(geometry.stride), list(geometry.padding), list(geometry.dilation), geometry.groups]
    return _Packed(
        lambda shape: functions.qconv_prepack(weight, ones, 1.0, zero_point, *strides, shape),
        True,
        lambda x, packed: then(run.convolution(_bytes(x), zero_point, packed, *given, *strides)),
    )


@functools.cache
def _summing() -> torch.jit.CompilationUnit:
    """oneDNN's operators as TorchScript: a trace cannot write down the empty list of their last arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.CompilationUnit(SUMMING)


@functools.cache
def _spend_warning() -> None:
    """torch warns once a process that quantized tensors will go; let it, unseen, and leave all other warnings alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor, torch.quantize_per_channel and other")
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)
