"""Linear grids with ranges as the data have them: StatAssist's own, and what other methods put where they have none."""

import torch
from torch import Tensor

from quant.core.grid import Grid
from quant.core.observers import OBSERVERS
from quant.core.quantizer import TINY, ObservedQuantizer, Quantizer, Shape
from utils.config import QuantSettings


def symmetric(spec: QuantSettings, bits: int, shape: Shape) -> Quantizer:
    """Weights within +-max|w| of each output channel, or of the tensor, as they are at each training step."""
    count = shape[0] if spec.granularity == "per_channel" else None
    return ObservedQuantizer(bits, True, count, "last_minmax", 100.0, q_limit=spec.weight_limit)


def affine(spec: QuantSettings, bits: int, signed: bool) -> Quantizer:
    """Activations in a range that spec.observer finds."""
    return ObservedQuantizer(bits, False, None, spec.observer, spec.percentile)


def signed_affine(spec: QuantSettings) -> Quantizer:
    """What a hidden layer reads that can be negative, on 8 bits (signed_edges: affine)."""
    quantizer = affine(spec, 8, True)
    quantizer.note = "its input can be negative: 8 bits, affine"
    return quantizer


def steps_of(bits: int, signed: bool) -> tuple[int, int]:
    """(q_min, q_max) of a clip that is cut evenly: 0 .. 2^bits - 1, or as many on either side of 0."""
    q_max = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    return (-q_max if signed else 0), q_max


def clip_grid(clip: Tensor, q_min: int, q_max: int) -> Grid:
    """The grid whose ends are 0 or -clip, and clip."""
    scale = clip.detach().clamp(min=TINY) / q_max
    return Grid(scale, torch.zeros_like(scale, dtype=torch.int32), q_min, q_max)


@torch.no_grad()
def best_clip(x: Tensor, q_min: int, q_max: int, per_channel: bool = False) -> Tensor:
    """The clip, of 100 shares of the largest |x|, with the least squared error of x on its grid; [] or one a row."""
    rows = x.flatten(1) if per_channel else x

    def error(low: Tensor, high: Tensor, sample: Tensor) -> Tensor:
        grid = clip_grid(torch.maximum(-low, high), q_min, q_max)
        return (grid.value(grid.centred(sample)) - sample).square().mean(-1)

    observer, nothing = OBSERVERS["mse"](100.0), x.new_zeros(len(x) if per_channel else ())
    observer.update(rows, nothing, nothing, False)
    low, high = observer.settle(error)
    return torch.maximum(-low, high)
