"""Native tensors of fbgemm and qnnpack: quint8 tensors with scale 1 and a zero point, in channels_last memory format.

They hold the integers of engines/onednn/tensors.py. Functions that only reinterpret a tensor (another scale, plain
uint8) share its memory.
"""

import contextlib

import torch
from torch import Tensor

from quant.engines.base import NativeTensor, Operator
from quant.engines.onednn.tensors import in_memory_order


@contextlib.contextmanager
def running_on(engine: str):
    """A context manager that sets torch's global engine, which prepacking and some operators read."""
    previous = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        yield
    finally:
        torch.backends.quantized.engine = previous


def native_from_centred(n: Tensor, zero_point: int) -> NativeTensor:
    """A native tensor of centred integers in fp32. zero_point: that of native tensors (zero_point_of)."""
    return torch._make_per_tensor_quantized_tensor((n + zero_point).to(torch.uint8), 1.0, zero_point)


def rescaled(x: NativeTensor, scale: float) -> NativeTensor:
    """The same integers in the same memory, with another scale."""
    new = torch._empty_affine_quantized([0], scale=scale, zero_point=x.q_zero_point(), dtype=torch.quint8)
    return _on_memory_of(new, x)


def uint8_view(x: NativeTensor) -> Tensor:
    """The same integers in the same memory, as a plain uint8 tensor."""
    return _on_memory_of(torch.empty([0], dtype=torch.uint8), x)


def native_from_uint8(integers: Tensor, zero_point: int) -> NativeTensor:
    """A native tensor of a plain uint8 tensor, in the same memory."""
    new = torch._empty_affine_quantized([0], scale=1.0, zero_point=zero_point, dtype=torch.quint8)
    return _on_memory_of(new, integers)


def _on_memory_of(new: Tensor, old: Tensor) -> Tensor:
    """`new`, of any one-byte dtype, on the memory of `old`, or on that of a copy if `old` has gaps in memory."""
    dense = old if old.is_contiguous() else in_memory_order(old)
    if not dense.is_contiguous():
        old = old.contiguous(memory_format=torch.channels_last if old.ndim == 4 else torch.contiguous_format)
        dense = in_memory_order(old)
    # The offset 0 is relative to the offset of `dense`.
    return new.set_(dense, 0, old.shape, old.stride())  # type: ignore[call-overload]  # torch declares only storages


def clamping(lo: int, hi: int) -> Operator:
    """The operator native -> native that clamps native integers to lo .. hi, in place if memory is dense.

    It works on plain uint8: torch.clamp permutes the channels of qnnpack's channels_last tensors.
    """
    if lo <= 0 and hi >= 255:
        return lambda x: x
    return lambda x: native_from_uint8(uint8_view(x).clamp_(lo, hi), x.q_zero_point())


def quantizing(scale: float, zero_point: int, lo: int, hi: int) -> Operator:
    """The operator float -> native: clamp(round(x / scale) + zero_point, lo, hi). zero_point, lo and hi are those of
    native tensors."""
    clamp = clamping(lo, hi)
    return lambda x: clamp(rescaled(torch.quantize_per_tensor(x, scale, zero_point, torch.quint8), 1.0))
