"""DoReFa-Net (Zhou et al., arXiv 1606.06160): low-precision weights, activations and gradients.

    Q_k(x) = round((2^k - 1) x) / (2^k - 1),  x in [0, 1],  straight through in the backward pass      equations 5 and 6
    weights       w_q = 2 Q_k(tanh(w) / (2 max |tanh(w)|) + 1 / 2) - 1                                       equation 9
                  one bit: w_q = sign(w) E|w|                                                          equations 7 and 8
    activations   a_q = Q_k(h(a)), h(a) = clip(a, 0, 1), no gradient outside [0, 1]                         equation 11
    gradients     d_q = 2 M (Q_k(clip(d / 2 M + 1 / 2 + N, 0, 1)) - 1 / 2),  M = max |d| of the sample,     equation 12
                  N uniform in (-1 / 2, 1 / 2) / (2^k - 1) for each element: rounding is right on average

k is weight_bits, act_bits and grad_bits. Weights are mid-rise (methods/midrise.py): odd integers, which at 8 bits do
not fit int8 and are refused. Only gradients of hidden layers' outputs are quantized, before the layer's own backward
pass; N is drawn from the run's noise generator.

Differs from the paper: first and last layers, float there, have uniform 8-bit weights (first_last_bits 32 leaves them
float); max |tanh| has a lower bound (methods/midrise.py), so that gradients of dead channels are bounded; the image,
the inputs of additions and pools, and the last layer's input are 8-bit affine, so that all runs in integers; max |tanh|
and E|w| are per output channel unless granularity is per_tensor; inputs that can be negative, which the paper does not
have, are clipped to [-1, 1] on 2^k - 1 levels (signed_edges: clip) or 8-bit affine (affine, and always at 1 bit); a
sample whose gradient is all zero stays so (there: 0 / 0). With act_clip: calibration, h(a) = clip(a / c, 0, 1) with the
c of least squared error on the first batch, and the output is c h(a), so that a trained float model, whose activations
were never bounded, keeps its activations.
"""

from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from quant.core.fake_quantize import Rounding, just_above, just_below
from quant.core.grid import Grid
from quant.core.method import Method
from quant.core.options import (
    FLOAT_ACTIVATIONS,
    NOT_TRAINED_QUANTIZED,
    NOTHING_QUANTIZED,
    BatchObserver,
    SignedEdges,
    TrainingOptions,
    unread_training,
)
from quant.core.quantizer import (
    ActivationQuantizer,
    DataInitializedActivationQuantizer,
    GradientQuantizer,
    Shape,
    WeightQuantizer,
)
from quant.core.settings import ResolvedQuant
from quant.core.uniform import batch_affine, best_clip, clip_grid, signed_affine, steps_of
from quant.methods.midrise import refuse_too_wide, tanh_weights
from utils.errors import UserError
from utils.sections import FLOAT_BITS, Bits


class Options(BatchObserver, SignedEdges, TrainingOptions):
    grad_bits: Bits = 32
    """Bits of the gradients that hidden layers hand back, 1..8; 32 leaves them float."""
    act_clip: Literal["calibration"] | PositiveFloat = 1.0
    """Where activations are clipped; 1 is the paper's, calibration suits a trained float model."""


class BoundedActivation(DataInitializedActivationQuantizer):
    """c Q_k(clip(a / c, 0, 1)), or between -c and c where a can be negative; c is 1, or found from data."""

    c: Tensor

    def __init__(self, bits: int, signed: bool, c: float | str):
        given = c != "calibration"
        super().__init__(bits, started=given)
        self.q_min, self.q_max = steps_of(bits, signed)
        self.register_buffer("c", torch.tensor(float(c) if given else 1.0))
        self.note = "its input can be negative: clipped on both sides" if signed else ""

    def rounding(self, a: Tensor) -> Rounding:
        low, least, most = -self.c if self.q_min else 0.0, float(self.q_min), float(self.q_max)
        return Rounding(self.grid().scale, least, most, just_below(low), just_above(self.c))

    def initialize(self, a: Tensor) -> None:
        self.c.copy_(best_clip(a, self.q_min, self.q_max))

    def grid(self) -> Grid:
        return clip_grid(self.c, self.q_min, self.q_max)


class NoisyGradient(GradientQuantizer):
    """In train mode the gradient d [N, ...] is quantized to k bits."""

    def __init__(self, k: int):
        super().__init__()
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        return _QuantizeGradient.apply(x, self.k, self.generator) if self.training else x


class _QuantizeGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
        ctx.k, ctx.generator = k, generator
        return x.view_as(x)

    @staticmethod
    def backward(ctx, d: Tensor):
        return quantize_gradient(d.float(), ctx.k, ctx.generator).to(d.dtype), None, None


def quantize_gradient(d: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
    """Equation 12 for d [N, ...], each of the N samples with its own M; fp32."""
    levels = 2**k - 1
    M = d.abs().flatten(1).amax(1).view(-1, *[1] * (d.ndim - 1))
    noise = torch.rand(d.shape, generator=generator, device=d.device).sub_(0.5).div_(levels)
    unit = torch.where(M > 0, d / (2 * M), 0).add_(0.5).add_(noise).clamp_(0, 1)
    return unit.mul_(levels).round_().div_(levels).sub_(0.5).mul_(2 * M)


def weight(spec: ResolvedQuant[Options], bits: int, shape: Shape) -> WeightQuantizer:
    return tanh_weights(bits, shape, spec.per_channel, spec.weight_limit)


def activation(spec: ResolvedQuant[Options], bits: int, signed: bool) -> ActivationQuantizer:
    if signed and (spec.options.signed_edges == "affine" or bits == 1):
        return signed_affine(spec.options.observer)
    return BoundedActivation(bits, signed, spec.options.act_clip)


def gradient(spec: ResolvedQuant[Options]) -> GradientQuantizer | None:
    return None if spec.options.grad_bits == FLOAT_BITS else NoisyGradient(spec.options.grad_bits)


def check(spec: ResolvedQuant[Options]) -> None:
    refuse_too_wide(spec, "dorefa", "fewer, or 32 for float")
    if spec.least_weight_bits == 1 and spec.options.rounding_gradient != "straight":
        raise UserError("quant.rounding_gradient: weights of 1 bit are signs, not rounded; choose straight")


def unread(spec: ResolvedQuant[Options], ends_in_float: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    if not spec.quantizes_activations:
        found |= dict.fromkeys(("observer", "signed_edges", "act_clip"), FLOAT_ACTIVATIONS)
    if ends_in_float:
        found["grad_bits"] = NOT_TRAINED_QUANTIZED
    elif not spec.quantizes:
        found["grad_bits"] = NOTHING_QUANTIZED
    return found | unread_training(spec, ends_in_float)


METHOD = Method(
    Options,
    weight,
    activation,
    batch_affine,
    weight_bits=range(1, 9),
    act_bits=range(1, 9),
    gradient=gradient,
    rescales=lambda spec: spec.weight_bits != FLOAT_BITS,
    unread=unread,
    check=check,
)
