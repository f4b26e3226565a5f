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
import warnings

import torch
from torch import Tensor

from quant.engine import FLOAT32, Engine, Held, Operator
from quant.grid import Grid
from quant.integer import Bounds, IntegerLayer, integer_bounds

SUMS = "onednn sums"
"""oneDNN's kernel, with scaling and rounding in passes of their own."""


class NativeEngine(Engine):
    """An engine by torch's name for it.

    Values are held as quint8 tensors of scale 1: the zero point travels with them, scales live in the multipliers.
    """

    def __init__(self, name: str):
        self.name = name
        _spend_warning()

    def available(self) -> bool:
        return self.name in torch.backends.quantized.supported_engines

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

    def additions(self, a: Grid, b: Grid, y: Grid, bounds: Bounds) -> list[tuple[str, Operator]]:
        """The engine's own, on the scales as they are and divided by y's: on most grids one of the two is exact.

        qnnpack's own addition rounds otherwise, and refuses some ratios of scales.
        """
        (zero_point, lo, hi), s = _held_range(y, *integer_bounds(y, bounds)), float(y.scale)
        exact = FLOAT32, _add_in_float32(self.dequantize(a), self.dequantize(b), self.quantize(y), _clamp(lo, hi))
        if self.name == "qnnpack":
            return [exact]
        own = _add(float(a.scale), float(b.scale), s, zero_point, lo, hi, exact[1])
        divided = _add(float(a.scale / y.scale), float(b.scale / y.scale), 1.0, zero_point, lo, hi, exact[1])
        return [(self.name, divided), (self.name, own), exact]

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


def _scaled(held: Held, scale: float) -> Tensor:
    """The same integers, on the same memory, with another scale."""
    new = torch._empty_affine_quantized([0], scale=scale, zero_point=held.q_zero_point(), dtype=torch.quint8)
    return new.set_(held.untyped_storage(), held.storage_offset(), held.shape, held.stride())


def _bytes(held: Held) -> Tensor:
    """The same integers, on the same memory, as a plain uint8 tensor."""
    return torch.empty(0, dtype=torch.uint8).set_(
        held.untyped_storage(), held.storage_offset(), held.shape, held.stride()
    )


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


def _add(a: float, b: float, y: float, zero_point: int, lo: int, hi: int, broadcast: Operator) -> Operator:
    """torch's addition with these scales of its inputs and its output; `broadcast` adds tensors of different shapes."""
    relu = lo == zero_point
    function = (torch.ops.quantized.add_relu if relu else torch.ops.quantized.add).default
    clamp = _clamp(0 if relu else lo, hi)

    def add(p: Held, q: Held) -> Held:
        if p.shape != q.shape:
            return broadcast(p, q)
        total = function(_scaled(p, a), _scaled(q, b), y, zero_point)
        return clamp(total if y == 1.0 else _scaled(total, 1.0))

    return add


def _add_in_float32(first: Operator, second: Operator, quantize: Operator, clamp: Operator) -> Operator:
    return lambda p, q: clamp(quantize(first(p) + second(q)))


def _packed(layer: IntegerLayer, kernel: str) -> Operator:
    """The layer on the int8 kernel of that engine, with its multipliers as the scales of the weights."""
    geometry, y, m = layer.geometry, layer.y, layer.multiplier()
    weight = torch._make_per_channel_quantized_tensor(
        layer.weight.to(torch.int8), m.double(), torch.zeros(len(m), dtype=torch.long), 0
    )
    arguments = () if geometry.linear else (geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
    functions = torch.ops.quantized
    prepack = functions.linear_prepack if geometry.linear else functions.conv2d_prepack

    @functools.lru_cache(maxsize=8)
    def pack(shape: torch.Size | None):
        with NativeEngine(kernel).running():
            return prepack(weight, layer.bias * m, *arguments)

    zero_point, lo, hi = _held_range(y, layer.lo, layer.hi)
    relu = lo == zero_point
    if geometry.linear:
        function = (functions.linear_relu if relu else functions.linear).default
    else:
        function = (functions.conv2d_relu if relu else functions.conv2d).new
    clamp = _clamp(0 if relu else lo, hi)
    if kernel == "onednn":  # keeps the layout of weights that the first input's shape asked for
        return lambda x: clamp(function(x, pack(x.shape), 1.0, zero_point))
    packed = pack(None)
    return lambda x: clamp(function(x, packed, 1.0, zero_point))


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
    sums, y = _sums(layer), layer.y
    if y is None:
        unit = layer.along_channels(layer.accumulator_scale())
        return lambda x: sums(x).mul_(unit)
    multiplier, (zero_point, lo, hi) = layer.along_channels(layer.multiplier()), _held_range(y, layer.lo, layer.hi)
    clamp = _clamp(lo, hi)
    return lambda x: clamp(torch.quantize_per_tensor(sums(x).mul_(multiplier), 1.0, zero_point, torch.quint8))


def _sums(layer: IntegerLayer) -> Operator:
    """held -> sums and bias in fp32; torch's operators on plain uint8 tensors, with every scale 1.

    Weights are packed for an input's shape when it first comes: in another's layout they are unpacked at every call.
    """
    geometry, zero_point, functions = layer.geometry, _zero_point(layer.x), torch.ops.onednn
    weight, ones, zeros = layer.weight.to(torch.int8), torch.ones(len(layer.weight)), torch.zeros(len(layer.weight))
    after = (ones, zeros.long(), layer.bias)
    to_float = (1.0, 0, torch.float32, "none", [], "")
    if geometry.linear:
        pack = functools.lru_cache(maxsize=8)(lambda shape: functions.qlinear_prepack(weight, shape))
        linear = functions.qlinear_pointwise.default
        return lambda x: linear(_bytes(x), 1.0, zero_point, pack(x.shape), *after, *to_float)
    strides = (geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
    pack = functools.lru_cache(maxsize=8)(
        lambda shape: functions.qconv_prepack(weight, ones, 1.0, zero_point, *strides, shape)
    )
    convolution = functions.qconv2d_pointwise.default
    return lambda x: convolution(_bytes(x), 1.0, zero_point, pack(x.shape), *after, *strides, *to_float)


@functools.cache
def _spend_warning() -> None:
    """torch warns once a process that quantized tensors will go; let it, unseen, and leave all other warnings alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor, torch.quantize_per_channel and other")
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)
