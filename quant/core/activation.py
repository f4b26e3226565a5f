"""Activations that a quantizer or an integer layer can absorb, and affine maps with one gain and shift a channel."""

import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class ClampedAffine(NamedTuple):
    """The activation clamp(gain x + offset, low, high), gain > 0: ReLU, ReLU6, hard-sigmoid and their kin."""

    low: float
    high: float
    gain: float = 1.0
    offset: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the activation; IDENTITY returns x itself."""
        if self == IDENTITY:
            return x
        if self == (0.0, math.inf, 1.0, 0.0):
            return F.relu(x)
        x = x if self.is_clamp else x * self.gain + self.offset
        return F.hardtanh(x, self.low, self.high)

    @property
    def is_clamp(self) -> bool:
        """Whether it only clamps: gain 1 and offset 0."""
        return (self.gain, self.offset) == (1.0, 0.0)


IDENTITY = ClampedAffine(-math.inf, math.inf)


class ChannelAffine(NamedTuple):
    """gain x + shift with one gain and one shift for each output channel; fp32 [C]."""

    gain: Tensor
    shift: Tensor


def channel_affine(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """gain x + shift of x [N, C, ...], rounded to fp32 after each of the two; gain and shift are [C]."""
    shape = (-1, *[1] * (x.ndim - 2))
    return x * gain.view(shape) + shift.view(shape)
