"""What prepare and convert demand of a method's quantizers (core/quantizer.py): engines must compute what trains.

prepare checks them when they are made, before training; convert again, with the ranges that data gave them.
"""

import contextlib
import copy
import math
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from quant.core.activation import IDENTITY, ClampedAffine
from quant.core.grid import Grid, along_channels
from quant.core.quantizer import ActivationQuantizer, Quantizer, WeightQuantizer
from utils.errors import UserError

TOLERANCE = 1e-3
"""How far outputs may lie from the grid, in scales."""
ACTIVATIONS = {"": IDENTITY, " with a ReLU": ClampedAffine(0.0, math.inf)}
"""The activations that an activation quantizer is called with, and how messages name them."""
AnyQuantizer = TypeVar("AnyQuantizer", bound=Quantizer)


@torch.no_grad()
def check_weight_quantizer(quantizer: Quantizer, weight: Tensor, checked: set | None = None) -> None:
    """Raise UserError for a quantizer that cannot quantize `weight`.

    Its integers and its outputs are compared on the weight itself, and on a tensor of the weight's shape whose values
    cover the grid. This takes several passes over the weight. Callers with many weights pass the same set as `checked`,
    which keeps the kinds of quantizers that have been compared: one weight of each type, bit-width and grid is enough.
    """
    name = type(quantizer).__name__
    if not isinstance(quantizer, WeightQuantizer):
        raise UserError(f"{name}: weights need a WeightQuantizer (quant/core/quantizer.py)")
    grid = _grid_of(quantizer, name)
    with _one_line(f"{name}.grid"):
        _check_weight_grid(quantizer, grid, name, len(weight))
    kind = type(quantizer), quantizer.bits, grid.q_min, grid.q_max, grid.step, grid.scale.ndim
    if weight.is_meta or grid.scale.is_meta or (checked is not None and kind in checked):
        return
    tried = _enabled_copy(quantizer, name)
    for w in (weight.detach().float().to(grid.scale.device), _covering(grid, weight.shape)):
        _check_weight_values(tried, grid, name, w)
    if checked is not None:
        checked.add(kind)


def _check_weight_grid(quantizer: Quantizer, grid: Grid, name: str, channels: int) -> None:
    _check_scale(grid, name)
    if grid.scale.shape not in ((), (channels,)):
        raise UserError(
            f"{name}: the scale of its grid has shape {list(grid.scale.shape)}; it must be [], or [{channels}], one "
            "for each output channel"
        )
    if not grid.zero_point.is_meta and bool((grid.zero_point != 0).any()):
        raise UserError(f"{name}: the grid of a weight quantizer must have zero_point 0")
    if max(-grid.q_min, grid.q_max) > 127:
        raise UserError(
            f"{name}: integers of {grid.q_min} .. {grid.q_max}; those of weights must be within -127 .. 127 (int8, and "
            "batch norm may flip their sign)"
        )
    levels = (grid.q_max - grid.q_min) // grid.step + 1
    if levels > 2**quantizer.bits:
        raise UserError(
            f"{name}: {levels} integers ({grid.q_min} .. {grid.q_max} in steps of {grid.step}) do not fit in "
            f"{quantizer.bits} bits; `bits` must be the width that its integers are stored in"
        )


def _check_scale(grid: Grid, name: str) -> None:
    if not grid.scale.is_meta and not bool(((grid.scale > 0) & (grid.scale < math.inf)).all()):
        raise UserError(f"{name}: the scale of its grid must be positive and finite")


def _covering(grid: Grid, shape: torch.Size) -> Tensor:
    """Values from below the grid's first integer to above its last, none of them halfway between two integers."""
    span = grid.q_max - grid.q_min + 2
    q = grid.q_min - 1 + (torch.arange(shape.numel(), device=grid.scale.device) % 1000 * 0.37 + 0.003) % span
    q = q.view(shape)
    return q * along_channels(grid.scale, q)


def _check_weight_values(quantizer: WeightQuantizer, grid: Grid, name: str, w: Tensor) -> None:
    with _one_line(f"{name}.to_int"):
        q = quantizer.to_int(w)
        position = (q - grid.q_min) / grid.step
        on_grid = bool(((position == position.round()) & (q >= grid.q_min) & (q <= grid.q_max)).all())
    if not on_grid:
        raise UserError(
            f"{name}.to_int: the integers of a weight quantizer must be on its grid: {grid.q_min}, "
            f"{grid.q_min + grid.step}, .. {grid.q_max}"
        )
    with _one_line(f"{name}.forward"):
        difference = (quantizer(w) - grid.value(q)).abs()
        equal = bool((difference <= TOLERANCE * along_channels(grid.scale, w)).all())
    if not equal:
        raise UserError(
            f"{name}.forward: its outputs in eval mode are not scale * to_int(w), so that engines would compute "
            "another function than the one that is trained"
        )


@torch.no_grad()
def check_activation_quantizer(quantizer: Quantizer) -> None:
    """Raise UserError for a quantizer that cannot quantize activations.

    Its forward is compared with its grid in eval mode, a third of a step to either side of each integer, by itself and
    with a ReLU.
    """
    name = type(quantizer).__name__
    if not isinstance(quantizer, ActivationQuantizer):
        raise UserError(f"{name}: activations need an ActivationQuantizer (quant/core/quantizer.py)")
    grid = _grid_of(quantizer, name)
    with _one_line(f"{name}.grid"):
        _check_activation_grid(quantizer, grid, name)
    if grid.scale.is_meta:
        return  # no values to check
    tried = _enabled_copy(quantizer, name)
    q = torch.arange(grid.q_min - 1, grid.q_max + 2.0, device=grid.scale.device) - grid.zero_point
    x = grid.scale * torch.cat([q - 1 / 3, q + 1 / 3])
    for which, activation in ACTIVATIONS.items():
        with _one_line(f"{name}.forward{which}"):
            expected = grid.value(grid.centred(activation(x)))
            equal = torch.allclose(tried(x, activation), expected, rtol=0, atol=TOLERANCE * float(grid.scale))
        if not equal:
            raise UserError(
                f"{name}: its outputs{which} are not on its grid; an activation quantizer must round to an affine "
                "uniform grid, which is all that engines read"
            )


def _check_activation_grid(quantizer: Quantizer, grid: Grid, name: str) -> None:
    _check_scale(grid, name)
    if grid.scale.ndim or grid.step != 1:
        raise UserError(f"{name}: an activation quantizer must have one scale for the tensor and step 1")
    if not 0 <= grid.q_max - grid.q_min < 2**quantizer.bits <= 256:
        raise UserError(f"{name}: {grid.q_min} .. {grid.q_max} do not fit in {quantizer.bits} bits, of at most 8")


def _grid_of(quantizer: Quantizer, name: str) -> Grid:
    with _one_line(f"{name}.grid"):
        grid = quantizer.grid()
    if not isinstance(grid, Grid):
        raise UserError(f"{name}.grid: returns a {type(grid).__name__}, not a Grid (quant/core/grid.py)")
    return grid


def _enabled_copy(quantizer: AnyQuantizer, name: str) -> AnyQuantizer:
    """A copy in eval mode, whose forward quantizes and may change the copy's buffers."""
    with _one_line(name):
        copied = copy.deepcopy(quantizer).eval()
    copied.observing = False
    copied.enabled = True
    return copied


@contextlib.contextmanager
def _one_line(where: str) -> Iterator[None]:
    """Turn an exception of a method's own code into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        raise UserError(f"{where}: {type(error).__name__}{': ' if said else ''}{said}") from error
