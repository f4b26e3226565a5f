"""Activations that are a line between two levels, and lines a channel."""

import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class ClampedAffine(NamedTuple):
    """An activation that is a line between two levels: clamp(gain x + offset, low, high), gain > 0."""

    low: float
    high: float
    gain: float = 1.0
    offset: float = 0.0


class Line(NamedTuple):
    """gain x + shift, a value each for every output channel; fp32 [C]."""

    gain: Tensor
    shift: Tensor


IDENTITY = ClampedAffine(float("-inf"), float("inf"))


def bounded(y: Tensor, bounds: ClampedAffine) -> Tensor:
    """ReLU, ReLU6, hard-sigmoid and their kin."""
    if bounds == IDENTITY:
        return y
    if bounds == (0.0, math.inf, 1.0, 0.0):
        return F.relu(y)
    y = y if is_clamp(bounds) else y * bounds.gain + bounds.offset
    return F.hardtanh(y, bounds.low, bounds.high)


def is_clamp(bounds: ClampedAffine) -> bool:
    return (bounds.gain, bounds.offset) == (1.0, 0.0)
