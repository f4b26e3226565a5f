"""Native tensors on oneDNN: plain uint8 tensors, in channels_last memory format. The graph knows their zero points.

The true scales are part of the layers' multipliers. A grid of fewer than 8 bits is stored shifted, with its q_max at
255.
"""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from quant.core.grid import Grid
from quant.engines.base import NativeTensor, Operator


def shift(grid: Grid) -> int:
    """Native integer minus grid integer: q_max is stored as 255."""
    return 255 - grid.q_max


def zero_point_of(grid: Grid) -> int:
    """The zero point of the grid's native tensors."""
    return int(grid.zero_point) + shift(grid)


def native_range(y: Grid, lo: int, hi: int) -> tuple[int, int, int]:
    """(zero_point, lo, hi) of grid y as native integers."""
    return zero_point_of(y), lo + shift(y), hi + shift(y)


def centred(x: NativeTensor, zero_point: int) -> Tensor:
    """The centred integers of a native tensor, in fp32."""
    n = x.float()
    return n.sub_(zero_point) if zero_point else n


def native(n: Tensor, zero_point: int) -> NativeTensor:
    """A native tensor of centred integers in fp32."""
    integers = n.to(torch.int16)  # torch converts fp32 to uint8 without vector instructions
    return (integers.add_(zero_point) if zero_point else integers).to(torch.uint8)


def rounding(zero_point: int, lo: int, hi: int) -> Operator:
    """The operator float -> native: clamp(round(x) + zero_point, lo, hi), in native integers. It overwrites x."""
    low, high = lo - zero_point, hi - zero_point
    return lambda x: native(x.round_().clamp_(low, high), zero_point)


def quantizing(inverse: float, zero_point: int, lo: int, hi: int) -> Operator:
    """The operator float -> native: clamp(round(x inverse) + zero_point, lo, hi), in native integers."""
    rounded = rounding(zero_point, lo, hi)
    return lambda x: rounded(x * inverse)


def clamping(lo: int, hi: int) -> Operator:
    """The operator native -> native that clamps native integers to lo .. hi in place."""
    return (lambda x: x) if lo <= 0 and hi >= 255 else (lambda x: x.clamp_(lo, hi))


def in_memory_order(x: Tensor) -> Tensor:
    """A view whose axes are in the order of memory: [N, H, W, C] of an [N, C, H, W] tensor in channels_last."""
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


def on_memory_of(x: Tensor, dtype: torch.dtype, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """A tensor on the memory of x, which must be contiguous. As x.view(dtype), which torch.jit cannot trace."""
    return torch.empty([0], dtype=dtype).set_(x, 0, size, stride)  # type: ignore[call-overload]  # torch declares only storages


def looking_up(table: Tensor) -> Operator:
    """The operator native -> native that replaces each integer by its entry in a table, uint8 [256].

    It looks up two neighbours at once, in a table of all pairs: that takes half the time.
    """
    every, entries = torch.arange(2**16), table.int()
    pairs = (entries[every & 255] + 256 * entries[every >> 8]).to(torch.int16)

    def look_up(x: NativeTensor) -> NativeTensor:
        dense = in_memory_order(x).contiguous()
        count = dense.numel()
        if count % 2 or dense.storage_offset():
            found = table.index_select(0, dense.flatten().int())
        else:
            found = pairs.index_select(0, on_memory_of(dense.flatten(), torch.uint16, (count // 2,), (1,)).int())
        found = on_memory_of(found, torch.uint8, dense.shape, dense.stride())
        return found.permute(0, 3, 1, 2) if x.ndim == 4 else found

    return look_up


def shuffled(x: Tensor, groups: int) -> Tensor:
    """A uint8 tensor [N, C, H, W] with its channels in the order of nn.ChannelShuffle(groups)."""
    n, c, h, w = x.shape
    pixels = x.permute(0, 2, 3, 1).unflatten(3, (groups, c // groups))
    return pixels.transpose(3, 4).reshape(n, h, w, c).permute(0, 3, 1, 2)


def interleaved(p: Tensor, q: Tensor) -> Tensor:
    """Channels that alternate between two uint8 tensors [N, C, H, W]: a shuffle in 2 groups of their concatenation.

    On a little-endian machine, and with the same shape, these are the bytes of the 16-bit integers p + 256 q, which is
    four times faster than copying single bytes.
    """
    if p.shape != q.shape or sys.byteorder != "little":
        return shuffled(torch.cat([p, q], 1), 2)
    first, second = in_memory_order(p), in_memory_order(q)
    both = first.to(torch.int16, memory_format=torch.contiguous_format).add_(second, alpha=256)
    n, h, w, c = both.shape
    return on_memory_of(both, torch.uint8, (n, 2 * c, h, w), (h * w * 2 * c, 1, w * 2 * c, 2 * c))
