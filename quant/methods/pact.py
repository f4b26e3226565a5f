"""PACT (Choi et al., arXiv 1805.06085): the clip alpha of every activation is trained.

    y = clip(x, 0, alpha),    y_q = round(y (2^k - 1) / alpha) alpha / (2^k - 1)                       equations 1 and 2
    d y_q / d alpha = 1  if  x >= alpha,  0 below;     d y_q / d x = 1  if  0 <= x <= alpha,  0 elsewhere     equation 3
    the loss gets  lambda alpha^2  of each alpha (alpha_decay)                                              section 3.3

The optimizer applies lambda as a weight decay of 2 lambda on alpha (adamw: decoupled from the gradient), instead of
its general weight decay. alpha stays positive. Weights are DoReFa's, as in the paper (weights: dorefa;
methods/midrise.py), or SAWB's, by the same authors (methods/sawb.py).

Differs from the paper: alpha starts at the least squared error of the first batch (alpha_init; a number such as the
paper's 10 costs points in a short fine-tuning); inputs that can be negative are clipped at +-alpha on 2^k - 1 levels
(signed_edges: clip) or 8-bit affine; first and last layers, float there, have first_last_bits; the image, the
inputs of additions and pools, and the last layer's input are 8-bit affine.
"""

from typing import Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from quant.core.activation import ClampedAffine
from quant.core.fake_quantize import Rounding, just_above, just_below
from quant.core.grid import Grid
from quant.core.method import Method
from quant.core.options import (
    FLOAT_ACTIVATIONS,
    FLOAT_WEIGHTS,
    NOT_TRAINED_QUANTIZED,
    BatchObserver,
    SignedEdges,
    TrainingOptions,
    unread_training,
)
from quant.core.quantizer import (
    TINY,
    ActivationQuantizer,
    DataInitializedActivationQuantizer,
    Shape,
    WeightQuantizer,
)
from quant.core.settings import ResolvedQuant
from quant.core.uniform import batch_affine, best_clip, clip_grid, signed_affine, steps_of
from quant.methods.midrise import refuse_too_wide, tanh_weights
from quant.methods.sawb import Sawb
from utils.sections import FLOAT_BITS


class Options(BatchObserver, SignedEdges, TrainingOptions):
    weights: Literal["sawb", "dorefa"] = "sawb"
    """How weights are quantized; dorefa is the paper's, sawb (its authors' later one) does 8 bits, too."""
    alpha_init: Literal["calibration"] | PositiveFloat = "calibration"
    """Where the clips alpha start; calibration: at the least squared error of the first batch."""
    alpha_decay: float = Field(2e-4, ge=0)
    """lambda of the loss's lambda alpha^2, a clip."""


class LearnedClip(DataInitializedActivationQuantizer):
    """alpha: fp32 []."""

    def __init__(self, bits: int, signed: bool, alpha: float | str, decay: float):
        given = alpha != "calibration"
        super().__init__(bits, started=given)
        self.q_min, self.q_max = steps_of(bits, signed)
        self.alpha = nn.Parameter(torch.tensor(float(alpha) if given else 1.0))
        self.weight_decay = 2 * decay
        self.note = "its input can be negative: clipped at +-alpha" if signed else ""

    def observe(self, x: Tensor, activation: ClampedAffine) -> None:
        super().observe(x, activation)
        if self.training or self.observing:
            self.alpha.data.clamp_(min=TINY)

    def rounding(self, x: Tensor) -> Rounding:
        """x = 0 and x = alpha still pass the gradient, but alpha already gets its own at x = alpha: separate ends."""
        alpha = self.alpha.detach().clamp(min=TINY)
        low, least, most = -alpha if self.q_min else 0.0, float(self.q_min), float(self.q_max)
        passing, ends = (just_below(low), just_above(alpha)), (low, alpha)
        return Rounding(alpha / most, least, most, *passing, ends, learned=(self.alpha,), counts_rounding_error=False)

    def initialize(self, x: Tensor) -> None:
        """alpha: the clip of least squared error on x."""
        self.alpha.copy_(best_clip(x, self.q_min, self.q_max))

    def grid(self) -> Grid:
        return clip_grid(self.alpha, self.q_min, self.q_max)


def weight(spec: ResolvedQuant[Options], bits: int, shape: Shape) -> WeightQuantizer:
    if spec.options.weights == "sawb":
        return Sawb(bits, shape[0] if spec.per_channel else None, spec.weight_limit)
    return tanh_weights(bits, shape, spec.per_channel, spec.weight_limit)


def activation(spec: ResolvedQuant[Options], bits: int, signed: bool) -> ActivationQuantizer:
    if signed and spec.options.signed_edges == "affine":
        return signed_affine(spec.options.observer)
    return LearnedClip(bits, signed, spec.options.alpha_init, spec.options.alpha_decay)


def check(spec: ResolvedQuant[Options]) -> None:
    if spec.options.weights == "dorefa":
        refuse_too_wide(spec, "pact with weights dorefa", "fewer, or quant.weights=sawb")


def unread(spec: ResolvedQuant[Options], ends_in_float: bool) -> dict[str, str]:
    found = {} if spec.quantizes_weights else {"weights": FLOAT_WEIGHTS}
    if ends_in_float:
        found["alpha_decay"] = NOT_TRAINED_QUANTIZED
    if not spec.quantizes_activations:
        found |= dict.fromkeys(("observer", "signed_edges", "alpha_init", "alpha_decay"), FLOAT_ACTIVATIONS)
    return found | unread_training(spec, ends_in_float)


METHOD = Method(
    Options,
    weight,
    activation,
    batch_affine,
    weight_bits=range(2, 9),
    act_bits=range(2, 9),
    rescales=lambda spec: spec.options.weights == "dorefa" and spec.weight_bits != FLOAT_BITS,
    learns=True,
    unread=unread,
    check=check,
)
