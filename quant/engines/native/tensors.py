"""Values as torch's quantized kernels hold them: quint8 tensors of scale 1, the zero point with them.

Scales live in the multipliers of layers. A grid of fewer than 8 bits is held shifted, its q_max at 255. Memory is that
of channels_last; what only changes how a tensor is seen does not touch it.
"""

import contextlib

import torch
from torch import Tensor

from quant.core.grid import Grid
from quant.engines.base import NativeTensor, Operator


@contextlib.contextmanager
def running_on(engine: str):
    """torch's global engine for a while: prepacking and some operators read it."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def shift(grid: Grid) -> int:
    """How far above its own integers a grid is held: q_max sits at 255."""
    return 255 - grid.q_max


def zero_point_of(grid: Grid) -> int:
    return int(grid.zero_point) + shift(grid)


def native_from_centred(n: Tensor, zero_point: int) -> NativeTensor:
    """Centred integers in fp32, held."""
    return torch._make_per_tensor_quantized_tensor((n + zero_point).to(torch.uint8), 1.0, zero_point)


def rescaled(held: NativeTensor, scale: float) -> NativeTensor:
    """The same integers, on the same memory, with another scale."""
    new = torch._empty_affine_quantized([0], scale=scale, zero_point=held.q_zero_point(), dtype=torch.quint8)
    return _on_memory_of(new, held)


def uint8_view(held: NativeTensor) -> Tensor:
    """The same integers, on the same memory, as a plain uint8 tensor."""
    return _on_memory_of(torch.empty([0], dtype=torch.uint8), held)


def native_from_uint8(integers: Tensor, zero_point: int) -> NativeTensor:
    """Plain uint8, held on the same memory."""
    new = torch._empty_affine_quantized([0], scale=1.0, zero_point=zero_point, dtype=torch.quint8)
    return _on_memory_of(new, integers)


def _on_memory_of(new: Tensor, old: Tensor) -> Tensor:
    """`new`, of whatever type of a byte, on the memory of `old` (of a copy where that has gaps)."""
    dense = old if old.is_contiguous() else in_memory_order(old)
    if not dense.is_contiguous():
        old = old.contiguous(memory_format=torch.channels_last if old.ndim == 4 else torch.contiguous_format)
        dense = in_memory_order(old)
    return new.set_(dense, 0, old.shape, old.stride())  # an offset counts from that of `dense`


def in_memory_order(x: Tensor) -> Tensor:
    """A view with its axes as channels_last lays them out."""
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


def clamping(lo: int, hi: int) -> Operator:
    """Clamp held integers as plain uint8, in place where memory allows: torch.clamp scrambles qnnpack's channels_last
    tensors."""
    if lo <= 0 and hi >= 255:
        return lambda held: held
    return lambda held: native_from_uint8(uint8_view(held).clamp_(lo, hi), held.q_zero_point())


def quantizing(scale: float, zero_point: int, lo: int, hi: int) -> Operator:
    """float -> held: round(x / scale) + zero_point, within lo and hi"""
    clamp = clamping(lo, hi)
    return lambda x: clamp(rescaled(torch.quantize_per_tensor(x, scale, zero_point, torch.quint8), 1.0))


def native_range(y: Grid, lo: int, hi: int) -> tuple[int, int, int]:
    """The zero point with which grid y is held, and lo and hi as they are held."""
    return zero_point_of(y), lo + shift(y), hi + shift(y)
