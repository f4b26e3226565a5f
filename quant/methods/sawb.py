"""SAWB, statistics-aware weight binning (Choi et al., arXiv 1807.06964): the range of weights from two moments.

    alpha_w = c1 sqrt(E[w^2]) - c2 E|w|

approximates the range of least squared error. c1 and c2 of 2 to 4 bits are those of the authors' code. The levels are
mid-rise: the odd multiples of alpha_w / (2^k - 1) (methods/midrise.py). At 8 bits, where those do not fit int8, they
are the multiples of alpha_w / 127 (under reduce_range at 7 and 8 bits of alpha_w / 63). The gradient is 1 within
+-alpha_w and 0 beyond.

Differs from the paper: alpha_w is per output channel unless granularity is per_tensor, at most max |w|, and at least
2 (1 - 2^-k) E|w|, the best range for uniformly distributed weights, which the line underestimates. The paper ends at 4
bits. c1 and c2 of 5 bits give the least mean squared error over standard distributions, relative to the least possible
(tests/quant/methods/test_sawb.py repeats it). From 6 bits on alpha_w is max |w|: no weight of a channel is so far out
that cutting it off pays. benchmarks/sawb_error.py measures both on trained nets.
"""

import torch
from torch import Tensor

from quant.core.fake_quantize import Straight
from quant.core.grid import Grid, along_channels
from quant.core.quantizer import TINY, WeightQuantizer
from quant.methods.midrise import midrise

SAWB = {
    2: (3.12, 2.064),
    3: (7.509, 6.892),
    4: (12.68, 12.80),
    5: (17.435, 18.194),
}
"""(c1, c2) by bits. With more bits, the range is that of the weights."""


class Sawb(WeightQuantizer):
    """alpha_w: fp32 [] or [channels], updated at each training step. limit: the largest integer."""

    alpha_w: Tensor

    def __init__(self, bits: int, channels: int | None, limit: int):
        super().__init__(bits)
        self.midrise = 2**bits - 1 <= limit
        self.n = 2**bits - 1 if self.midrise else min(2 ** (bits - 1) - 1, limit)
        self.register_buffer("alpha_w", torch.ones(() if channels is None else (channels,)))

    def forward(self, w: Tensor) -> Tensor:
        if self.training or self.observing:
            self._measure(w.detach().float())
        if not self.enabled:
            return w
        with torch.autocast(w.device.type, enabled=False):
            w, grid, most = w.float(), self.grid(), along_channels(self.alpha_w, w)
            w_hat, step = grid.value(self.to_int(w.detach())), along_channels(grid.scale * grid.step, w)
            return Straight.apply(w.clamp(-most, most), w_hat, 1, step, self.slope)

    def to_int(self, w: Tensor) -> Tensor:
        unit = (w * along_channels(1 / self.alpha_w.clamp(min=TINY), w)).clamp(-1, 1)
        return midrise(unit, self.n) if self.midrise else unit.mul_(self.n).round_()

    def grid(self) -> Grid:
        scale = self.alpha_w.clamp(min=TINY) / self.n
        return Grid(scale, torch.zeros_like(scale, dtype=torch.int32), -self.n, self.n, step=2 if self.midrise else 1)

    def _measure(self, w: Tensor) -> None:
        rows = w.flatten(1) if self.alpha_w.ndim else w.flatten()
        self.alpha_w.copy_(sawb_alpha(rows, self.bits))


def sawb_alpha(w: Tensor, bits: int) -> Tensor:
    """alpha_w of each row of w [..., values]."""
    size = w.abs()
    if bits not in SAWB:
        return size.amax(-1)
    (c1, c2), mean = SAWB[bits], size.mean(-1)
    alpha = c1 * w.square().mean(-1).sqrt() - c2 * mean
    return torch.minimum(torch.maximum(alpha, 2 * (1 - 2**-bits) * mean), size.amax(-1))
