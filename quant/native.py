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
- oneDNN adds the zero point in fp32 before it rounds, where fbgemm and qnnpack round first. So it is asked for its
  exact sums alone, on plain uint8 tensors; logits leave that way too, scaled in float.
- torch's x86 engine is a choice between fbgemm and oneDNN. So is ours: fbgemm's dense kernels round as we do, in one
  pass.
"""

import contextlib
import functools
import warnings

import torch
from torch import Tensor

from quant.engine import FLOAT32, Engine, Held, Operator
from quant.grid import Grid
from quant.integer import Bounds, IntegerLayer, integer_bounds


class NativeEngine(Engine):
    """An engine by torch's name for it. Values are held as quint8 tensors."""

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
        clamp = _clamp(grid.q_min + _shift(grid), 255, scale, zero_point)
        return lambda x: clamp(torch.quantize_per_tensor(x, scale, zero_point, torch.quint8))

    def dequantize(self, grid: Grid) -> Operator:
        return torch.dequantize

    def hold(self, grid: Grid) -> Operator:
        return lambda n: _held(n + _zero_point(grid), grid)

    def centred(self, grid: Grid) -> Operator:
        return lambda held: held.int_repr().float().sub_(_zero_point(grid))

    def kernels(self, layer: IntegerLayer) -> tuple[str, ...]:
        onednn = "onednn" in torch.backends.quantized.supported_engines
        if self.name == "qnnpack" or not onednn:
            return (FLOAT32,) if layer.y is None else (self.name, FLOAT32)
        if layer.y is None or self.name == "onednn" or layer.geometry.groups == len(layer.weight) > 1:
            return ("onednn", FLOAT32)
        return ("fbgemm", "onednn", FLOAT32) if self.name == "x86" else ("fbgemm", FLOAT32)

    def layer(self, layer: IntegerLayer, kernel: str) -> Operator:
        if kernel == FLOAT32:
            return _in_float32(layer)
        return _onednn(layer) if kernel == "onednn" else _packed(layer, kernel)

    def addition_kernels(self) -> tuple[str, ...]:
        """qnnpack's own addition rounds otherwise, and refuses some ratios of scales."""
        return (FLOAT32,) if self.name == "qnnpack" else (self.name, FLOAT32)

    def add(self, a: Grid, b: Grid, y: Grid, bounds: Bounds, kernel: str) -> Operator:
        scale, zero_point = float(y.scale), _zero_point(y)
        lo, hi = (limit + _shift(y) for limit in integer_bounds(y, bounds))
        if kernel == FLOAT32:
            clamp = _clamp(lo, hi, scale, zero_point)
            return lambda p, q: clamp(
                torch.quantize_per_tensor(p.dequantize() + q.dequantize(), scale, zero_point, torch.quint8)
            )
        relu = lo == zero_point
        function = torch.ops.quantized.add_relu if relu else torch.ops.quantized.add
        clamp = _clamp(0 if relu else lo, hi, scale, zero_point)
        return lambda p, q: clamp(function(p, q, scale, zero_point))

    def requantize(self, x: Grid, y: Grid) -> Operator:
        quantize = self.quantize(y)
        return lambda p: quantize(p.dequantize())

    def relu(self, grid: Grid) -> Operator:
        return torch.relu


def _shift(grid: Grid) -> int:
    """How far above its own integers a grid is held: q_max sits at 255."""
    return 255 - grid.q_max


def _zero_point(grid: Grid) -> int:
    return int(grid.zero_point) + _shift(grid)


def _held(q: Tensor, grid: Grid) -> Held:
    return torch._make_per_tensor_quantized_tensor(q.to(torch.uint8), float(grid.scale), _zero_point(grid))


def _clamp(lo: int, hi: int, scale: float, zero_point: int) -> Operator:
    """Clamp held integers, in plain uint8: torch.clamp scrambles qnnpack's channels_last tensors."""
    if lo <= 0 and hi >= 255:
        return lambda held: held
    return lambda held: torch._make_per_tensor_quantized_tensor(held.int_repr().clamp_(lo, hi), scale, zero_point)


def _packed(layer: IntegerLayer, kernel: str) -> Operator:
    """The layer on the int8 kernel of that engine."""
    geometry, y = layer.geometry, layer.y
    scale = layer.scale if kernel != "qnnpack" else _qnnpack_scale(layer)
    unit = layer.x.scale * scale
    weight = torch._make_per_channel_quantized_tensor(
        layer.weight.to(torch.int8), scale.double(), torch.zeros(len(scale), dtype=torch.long), 0
    )
    arguments = () if geometry.linear else (geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
    prepack = torch.ops.quantized.linear_prepack if geometry.linear else torch.ops.quantized.conv2d_prepack
    with NativeEngine(kernel).running():
        packed = prepack(weight, layer.bias * unit, *arguments)
    scale, zero_point = float(y.scale), _zero_point(y)
    lo, hi = layer.lo + _shift(y), layer.hi + _shift(y)
    relu = lo == zero_point
    functions = torch.ops.quantized
    if geometry.linear:
        function = functions.linear_relu if relu else functions.linear
    else:
        function = functions.conv2d_relu if relu else functions.conv2d
    clamp = _clamp(0 if relu else lo, hi, scale, zero_point)
    if lo <= (zero_point if relu else 0) and hi >= 255:
        return lambda x: function(x, packed, scale, zero_point)
    return lambda x: clamp(function(x, packed, scale, zero_point))


def _qnnpack_scale(layer: IntegerLayer) -> Tensor:
    """Weight scales, a few units in the last place off, from which qnnpack makes the layer's very multipliers.

    It multiplies by 1 / s_y where fbgemm divides by s_y; a last bit of difference moves one output in a million.
    """
    wanted = layer.accumulator_scale() / layer.y.scale
    best, best_error = layer.scale, torch.full_like(wanted, torch.inf)
    for ulp in (0, 1, -1, 2, -2, 3, -3):
        scale = layer.scale * (1 + ulp * 2.0**-23)
        error = (layer.x.scale * scale * (1 / layer.y.scale) - wanted).abs()
        best = torch.where(error < best_error, scale, best)
        best_error = torch.minimum(error, best_error)
    return best


def _in_float32(layer: IntegerLayer) -> Operator:
    """The layer's own exact arithmetic between two changes of type: always right, at the speed of float."""
    zero_point = _zero_point(layer.x)

    def run(x: Held) -> Held:
        y = layer(x.int_repr().float().sub_(zero_point))
        return y if layer.y is None else _held(y.add_(_zero_point(layer.y)), layer.y)

    return run


def _onednn(layer: IntegerLayer) -> Operator:
    """The layer on oneDNN's int8 kernel, which hands out its sums unscaled in fp32: exact.

    The rest is one multiplication and one rounding, the layer's own. (Scaled and rounded by the kernel itself, one
    output in 100,000 is a step off.)
    """
    sums, y = _onednn_sums(layer), layer.y
    if y is None:
        unit = layer.along_channels(layer.accumulator_scale())
        return lambda x: sums(x).mul_(unit)
    multiplier = layer.along_channels(layer.accumulator_scale() / y.scale)
    scale, zero_point = float(y.scale), _zero_point(y)
    lo, hi = layer.lo + _shift(y), layer.hi + _shift(y)

    def run(x: Held) -> Held:
        q = torch.quantize_per_tensor(sums(x).mul_(multiplier), 1.0, zero_point, torch.quint8).int_repr()
        q = q if lo <= 0 and hi >= 255 else q.clamp_(lo, hi)
        return torch._make_per_tensor_quantized_tensor(q, scale, zero_point)

    return run


def _onednn_sums(layer: IntegerLayer) -> Operator:
    """held -> sums and bias in fp32; torch's operators on plain uint8 tensors, with every scale 1."""
    geometry, zero_point, functions = layer.geometry, _zero_point(layer.x), torch.ops.onednn
    weight, bias = layer.weight.to(torch.int8), layer.bias
    ones, zeros = torch.ones(len(weight)), torch.zeros(len(weight), dtype=torch.long)
    to_float = (1.0, 0, torch.float32, "none", [], "")
    if geometry.linear:
        packed = functions.qlinear_prepack(weight, None)
        return lambda x: functions.qlinear_pointwise(
            x.int_repr(), 1.0, zero_point, packed, ones, zeros, bias, *to_float
        )
    strides = (geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
    packed = functions.qconv_prepack(weight, ones, 1.0, zero_point, *strides, None)
    return lambda x: functions.qconv2d_pointwise(
        x.int_repr(), 1.0, zero_point, packed, ones, zeros, bias, *strides, *to_float
    )


@functools.cache
def _spend_warning() -> None:
    """torch warns once a process that quantized tensors will go; let it, unseen, and leave all other warnings alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor, torch.quantize_per_channel and other")
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)
