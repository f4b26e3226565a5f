"""Correction: the statistics of each layer's output, behind its batch norm, are those of the float net again.

    y' = a y + b    of each output channel,    a = sqrt(var_float / var)  (norm), 1 (bias),    b = mean_float - a mean

mean and var are those of the quantized net on the calibration images, layer by layer in order, each behind layers that
are corrected already. bias is the empirical bias correction of Nagel et al. (arXiv 1906.04721, section 4.2); norm does
what estimating batch norm's statistics anew does, with the float net's output as the aim, and does it behind layers
without a batch norm, too. The lines are absorbed like a batch norm's (core/integer_layer.py); float stays as it is.

a keeps to [1/2, 2]: a channel that rounding has all but emptied is not blown up.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from quant.core.quantizer import TINY
from quant.graph.quant_layers import QuantLayer
from quant.ptq.blocks import BATCH

MOST = 2.0


class Moments(NamedTuple):
    """Of each channel, fp64 [C]."""

    mean: Tensor
    var: Tensor


@torch.no_grad()
def correct(layer: QuantLayer, kind: str, aim: Moments, found: Moments) -> None:
    """Give a layer the line from the moments that its quantized output has to those of the float net's."""
    gain = torch.ones_like(found.mean)
    if kind == "norm":
        gain = (aim.var / found.var.clamp(min=TINY)).sqrt().clamp(1 / MOST, MOST)
        gain = torch.where(aim.var > 0, gain, 1)
    layer.correction.set(gain, aim.mean - gain * found.mean)


@torch.no_grad()
def moments(layer: QuantLayer, norm: nn.Module | None, x: Tensor) -> Moments:
    """Of the layer's output before its activation, on inputs x, as its quantizers are now."""
    weight, total, squares, count = layer.used_weight(), 0, 0, 0
    for part in x.split(BATCH):
        y = layer.before_activation(part, weight, norm)
        rows = (y if layer.geometry.linear else y.permute(0, 2, 3, 1)).flatten(0, -2).double()
        total, squares, count = total + rows.sum(0), squares + rows.square().sum(0), count + len(rows)
    mean = total / count
    return Moments(mean, (squares / count - mean.square()).clamp(min=0))
