"""Mid-rise weight quantizers: 2^k evenly spaced levels that are symmetric and do not include zero (DoReFa, SAWB).

Q_k(x) = round((2^k - 1) x) / (2^k - 1) on [0, 1] becomes 2 Q_k(x / 2 + 1 / 2) - 1 on [-1, 1]: the levels are
-1, .., -1 / n, 1 / n, .., 1 with n = 2^k - 1. As integers on the scale 1 / n they are the odd numbers -n .. n, a
grid of step 2, which fits int8 up to k = 7.
"""

from typing import Any

import torch
from torch import Tensor

from quant.core.fake_quantize import Straight
from quant.core.grid import Grid, along_channels
from quant.core.quantizer import TINY, Shape, WeightQuantizer
from quant.core.settings import ResolvedQuant
from quant.core.uniform import symmetric
from utils.errors import UserError
from utils.sections import FLOAT_BITS

LEAST_SHARE, LEAST = 1 / 16, 2.0**-10
"""Lower bounds of max |tanh(w)|: of a channel, as a share of the tensor's; and of a tensor."""


def refuse_too_wide(spec: ResolvedQuant[Any], method: str, instead: str) -> None:
    """Raise UserError for weight bits whose odd integers exceed int8, or the smaller range of reduce_range."""
    asked: dict[str, int | None] = {"quant.weight_bits": spec.weight_bits}
    if spec.first_last_bits != "same" and spec.first_last_bits != 8:
        asked["quant.first_last_bits"] = spec.first_last_bits
    asked |= {f"quant.layers.{name}.weight_bits": b.weight_bits for name, b in spec.layers.items() if b != "float"}
    for key, bits in asked.items():
        if bits is not None and bits != FLOAT_BITS and 2**bits - 1 > spec.weight_limit:
            limit = (
                "int8 ends at 127" if bits == 8 else f"weights must stay within +-{spec.weight_limit} (reduce_range)"
            )
            raise UserError(
                f"{key}: {method} cannot use {bits} bits: its levels are the odd integers up to +-{2**bits - 1}, and "
                f"{limit}; choose {instead}"
            )


def midrise(x: Tensor, n: int) -> Tensor:
    """The odd integers of -n .. n that are nearest to n x, x in [-1, 1]."""
    return ((x + 1) * (n / 2)).round_().mul_(2).sub_(n).clamp_(-n, n)


class TanhWeights(WeightQuantizer):
    """DoReFa's weights (arXiv 1606.06160, equation 9), k in 2..7:

        w_q = 2 Q_k(tanh(w) / (2 max |tanh(w)|) + 1 / 2) - 1

    The gradient flows through tanh and max, and straight through Q_k. max is over the tensor as in the paper, or
    (per_channel) over each output channel.

    Differs from the paper: max |tanh(w)| is at least LEAST and, per channel, LEAST_SHARE of the tensor's. The gradient
    is divided by it, too, so that of a dead channel was millions of times the others', and after gradient clipping only
    that channel learned.
    """

    scale: Tensor

    def __init__(self, bits: int, per_channel: bool):
        super().__init__(bits)
        self.n, self.per_channel = 2**bits - 1, per_channel
        self.register_buffer("scale", torch.tensor(1 / self.n), persistent=False)

    def forward(self, w: Tensor) -> Tensor:
        if not self.enabled:
            return w
        with torch.autocast(w.device.type, enabled=False):
            return self.to_int(w.float()) * self.scale

    def to_int(self, w: Tensor) -> Tensor:
        t = torch.tanh(w)
        most = t.abs().flatten(1).amax(1) if self.per_channel else t.abs().amax()
        most = torch.maximum(most, LEAST_SHARE * most.detach().amax()).clamp(min=LEAST)
        unit = t / along_channels(most, w)
        return Straight.apply(unit, midrise(unit.detach(), self.n), self.n, 2, self.slope)

    def grid(self) -> Grid:
        return Grid(self.scale, torch.zeros_like(self.scale, dtype=torch.int32), -self.n, self.n, step=2)


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w: Tensor, E: Tensor) -> Tensor:
        return torch.where(w > 0, E, -E)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient, None


class SignWeights(WeightQuantizer):
    """One bit: w_q = sign(w) E, E = mean |w| of the tensor or of each output channel; d w_q / d w = 1.

    arXiv 1606.06160, equations 7 and 8. E is updated at each training step.
    """

    E: Tensor

    def __init__(self, channels: int | None):
        super().__init__(1)
        self.register_buffer("E", torch.ones(() if channels is None else (channels,)))

    def forward(self, w: Tensor) -> Tensor:
        if self.training or self.observing:
            size = w.detach().float().abs()
            self.E.copy_(size.flatten(1).mean(1) if self.E.ndim else size.mean())
        if not self.enabled:
            return w
        with torch.autocast(w.device.type, enabled=False):
            return _Sign.apply(w.float(), along_channels(self.grid().scale, w))

    def to_int(self, w: Tensor) -> Tensor:
        return torch.where(w > 0, 1.0, -1.0)

    def grid(self) -> Grid:
        scale = self.E.clamp(min=TINY)
        return Grid(scale, torch.zeros_like(scale, dtype=torch.int32), -1, 1, step=2)


def tanh_weights(bits: int, shape: Shape, per_channel: bool, weight_limit: int) -> WeightQuantizer:
    """DoReFa's weight quantizer; at 8 bits, which only first and last layers have, a uniform one."""
    if bits == 8:
        return symmetric(bits, shape, per_channel, weight_limit)
    if bits == 1:
        return SignWeights(shape[0] if per_channel else None)
    return TanhWeights(bits, per_channel)
