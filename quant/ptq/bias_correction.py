"""Bias correction: give each layer's output, after batch norm, the statistics that it has in the float model.

    y' = a y + b    for each output channel,    a = sqrt(var_float / var)  (norm), 1 (bias),    b = mean_float - a mean

mean and var are those of the quantized model on the calibration images. Layers are corrected in order, so each reads
the outputs of corrected layers. `bias` is the empirical bias correction of Nagel et al. (arXiv 1906.04721, section
4.2). `norm` also corrects the variance, as batch norm re-estimation does. Unlike that, it aims at the statistics of the
float model, and also works for layers without a batch norm. The affine map is absorbed into the integer layer as a
batch norm is (core/integer_layer.py). With quantizers disabled, the model's outputs do not change.

a is limited to [1/2, 2], so that a channel whose weights were almost all rounded to 0 is not amplified.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from quant.core.batch_norm import BatchNorm
from quant.core.quantizer import TINY
from quant.graph.quant_layers import QuantLayer
from quant.ptq.blocks import images_at_once

MAX_GAIN = 2.0


class Moments(NamedTuple):
    """Mean and variance of each channel, fp64 [C]."""

    mean: Tensor
    var: Tensor


@torch.no_grad()
def apply_bias_correction(layer: QuantLayer, kind: str | None, target: Moments, measured: Moments) -> None:
    """Set the layer's affine map such that its output gets the moments `target`.

    kind: "norm" (mean and variance) or "bias" (mean). measured: the moments of its quantized output without correction.
    """
    gain = torch.ones_like(measured.mean)
    if kind == "norm":
        gain = (target.var / measured.var.clamp(min=TINY)).sqrt().clamp(1 / MAX_GAIN, MAX_GAIN)
        gain = torch.where(target.var > 0, gain, 1)
    if layer.correction is None:
        raise ValueError("the layer was prepared without a correction")
    layer.correction.set(gain, target.mean - gain * measured.mean)


@torch.no_grad()
def moments(layer: QuantLayer, norm: BatchNorm | None, x: Tensor) -> Moments:
    """Moments of the layer's output before its activation. Quantizers are used as they are now.

    x: the inputs of the layer for all calibration images, [N, C, H, W] or [N, ..., C]. norm: its batch norm, or None.
    """
    weight, count = layer.used_weight(), 0
    largest = max(value.numel() for value in (x[:1], layer.before_activation(x[:1], weight, norm)))
    total = squares = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    for batch in x.split(images_at_once(largest)):
        y = layer.before_activation(batch, weight, norm)
        rows = (y if layer.geometry.linear else y.permute(0, 2, 3, 1)).flatten(0, -2).double()
        total, squares, count = total + rows.sum(0), squares + rows.square().sum(0), count + len(rows)
    mean = total / count
    return Moments(mean, (squares / count - mean.square()).clamp(min=0))
