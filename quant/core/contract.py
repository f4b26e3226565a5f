"""What prepare demands of a method's quantizers (core/quantizer.py), checked when they are made, before training."""

import torch
from torch import Tensor

from quant.core.grid import Grid, along_channels
from quant.core.quantizer import ActivationQuantizer, Quantizer, WeightQuantizer
from utils.errors import UserError


@torch.no_grad()
def check_weight_quantizer(quantizer: Quantizer, weight: Tensor) -> None:
    """Raise UserError for a quantizer that cannot quantize `weight`.

    Its integers are tried on the weight itself, and on a tensor of the weight's shape whose values cover the grid.
    """
    name = type(quantizer).__name__
    if not isinstance(quantizer, WeightQuantizer):
        raise UserError(f"{name}: weights need a WeightQuantizer (quant/core/quantizer.py)")
    grid = quantizer.grid()
    if weight.is_meta:
        return  # no values to check
    if bool((grid.zero_point != 0).any()):
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
    for w in (weight.detach().float().to(grid.scale.device), _covering(grid, weight.shape)):
        _check_integers(name, grid, quantizer.to_int(w))


def _covering(grid: Grid, shape: torch.Size) -> Tensor:
    """Values from below the grid's first integer to above its last."""
    span = grid.q_max - grid.q_min + 2
    q = grid.q_min - 1 + (torch.arange(shape.numel(), device=grid.scale.device) * 0.37) % span
    q = q.view(shape)
    return q * along_channels(grid.scale, q)


def _check_integers(name: str, grid: Grid, q: Tensor) -> None:
    position = (q - grid.q_min) / grid.step
    if not bool(((position == position.round()) & (q >= grid.q_min) & (q <= grid.q_max)).all()):
        raise UserError(
            f"{name}.to_int: the integers of a weight quantizer must be on its grid: {grid.q_min}, "
            f"{grid.q_min + grid.step}, .. {grid.q_max}"
        )


@torch.no_grad()
def check_activation_quantizer(quantizer: Quantizer) -> None:
    """Raise UserError for a quantizer that cannot quantize activations.

    Its forward is compared with its grid in eval mode, a third of a step to either side of each integer.
    """
    name = type(quantizer).__name__
    if not isinstance(quantizer, ActivationQuantizer):
        raise UserError(f"{name}: activations need an ActivationQuantizer (quant/core/quantizer.py)")
    grid = quantizer.grid()
    if grid.scale.is_meta:
        return  # no values to check
    if grid.scale.ndim or grid.step != 1:
        raise UserError(f"{name}: an activation quantizer must have one scale for the tensor and step 1")
    if not 0 <= grid.q_max - grid.q_min < 2**quantizer.bits <= 256:
        raise UserError(f"{name}: {grid.q_min} .. {grid.q_max} do not fit in {quantizer.bits} bits, of at most 8")
    q = torch.arange(grid.q_min - 1, grid.q_max + 2.0, device=grid.scale.device) - grid.zero_point
    x = grid.scale * torch.cat([q - 1 / 3, q + 1 / 3])
    training = quantizer.training
    found = quantizer.eval()(x)
    quantizer.train(training)
    if not torch.allclose(found, grid.value(grid.centred(x)), rtol=0, atol=1e-3 * float(grid.scale)):
        raise UserError(
            f"{name}: its outputs are not on its grid; an activation quantizer must round to an affine uniform grid, "
            "which is all that engines read"
        )
