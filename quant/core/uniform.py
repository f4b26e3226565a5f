"""Uniform quantizers with observed ranges, and clipped ranges of least squared error.

StatAssist consists of these quantizers; other methods use them for edges that they do not treat in their own way.
"""

from typing import TypeVar

import torch
from torch import Tensor

from quant.core.grid import Grid
from quant.core.observed import ObservedActivationQuantizer, ObservedWeightQuantizer
from quant.core.observers import OBSERVERS
from quant.core.options import BatchObserver
from quant.core.quantizer import TINY, ActivationQuantizer, Shape, WeightQuantizer
from quant.core.settings import ResolvedQuant

ObserverOptions = TypeVar("ObserverOptions", bound=BatchObserver)


def symmetric(bits: int, shape: Shape, per_channel: bool, weight_limit: int) -> WeightQuantizer:
    """Symmetric weights in +-max|w| of each output channel, or of the tensor, updated at each training step.

    weight_limit: the largest integer.
    """
    count = shape[0] if per_channel else None
    return ObservedWeightQuantizer(bits, count, "last_minmax", q_limit=weight_limit)


def affine(bits: int, observer: str, percentile: float = 100.0) -> ActivationQuantizer:
    """Affine activations, signed or not, in the range that a row of OBSERVERS finds.

    percentile: where the observer of that name clips.
    """
    return ObservedActivationQuantizer(bits, observer, percentile)


def batch_affine(spec: ResolvedQuant[ObserverOptions], bits: int, signed: bool) -> ActivationQuantizer:
    """Affine activations, signed or not, in the range that `quant.observer` finds in training."""
    return affine(bits, spec.options.observer)


def signed_affine(observer: str) -> ActivationQuantizer:
    """Affine 8-bit quantizer for inputs of hidden layers that can be negative (signed_edges: affine)."""
    quantizer = affine(8, observer)
    quantizer.note = "its input can be negative: 8 bits, affine"
    return quantizer


def steps_of(bits: int, signed: bool) -> tuple[int, int]:
    """(q_min, q_max) of a clipped range: 0 .. 2^bits - 1, or symmetric, +-(2^(bits-1) - 1), where signed."""
    q_max = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    return (-q_max if signed else 0), q_max


def clip_grid(clip: Tensor, q_min: int, q_max: int) -> Grid:
    """The grid of [0, clip], or of [-clip, clip] where q_min is negative."""
    scale = clip.detach().clamp(min=TINY) / q_max
    return Grid(scale, torch.zeros_like(scale, dtype=torch.int32), q_min, q_max)


@torch.no_grad()
def best_clip(x: Tensor, q_min: int, q_max: int, per_channel: bool = False) -> Tensor:
    """The clip of least squared error among 1 %, 2 %, .. 100 % of the largest |x|; fp32 [], or [rows]."""
    rows = x.flatten(1) if per_channel else x

    def error(low: Tensor, high: Tensor, sample: Tensor) -> Tensor:
        grid = clip_grid(torch.maximum(-low, high), q_min, q_max)
        return (grid.value(grid.centred(sample)) - sample).square().mean(-1)

    observer, nothing = OBSERVERS["mse"](100.0), x.new_zeros(len(x) if per_channel else ())
    observer.update(rows, nothing, nothing, False)
    found = observer.finish(error)
    if found is None:
        raise ValueError("no values to find a clip for")
    return torch.maximum(-found[0], found[1])
