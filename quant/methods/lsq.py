"""LSQ, learned step size quantization (Esser et al., arXiv 1902.08153): the step s of every quantizer is trained.

    v_bar = round(clip(v / s, -Q_N, Q_P)),    v_hat = v_bar s                                          equations 1 and 2
    d v_hat / d s = round(v / s) - v / s  if  -Q_N < v / s < Q_P,  -Q_N below,  Q_P above                    equation 3
    d v_hat / d v = 1  if  -Q_N < v / s < Q_P,  0 elsewhere                                                  equation 5
    the gradient of s times  g = 1 / sqrt(N Q_P)                                                            section 2.2
    s starts at  2 <|v|> / sqrt(Q_P)  (step_init: paper), or at the least squared error (mse)               section 2.1

Equation 3 is `learned_gradient_terms` (core/kernels.py), summed over the elements, and its factor g is applied by
Rounding.gradients (core/fake_quantize.py).

Q_N = 0 and Q_P = 2^b - 1 where v cannot be negative, else Q_N = 2^(b-1) and Q_P = 2^(b-1) - 1. v, s, Q_N, Q_P, N and g
are named so below. Steps of weights are initialized from the weights, those of activations from the first batch, in
place, so that the optimizer's Parameter is the one in use. They get no weight decay (utils/training/optim.py).

Differs from the paper: 8-bit weights keep to +-127, since batch norm may flip their sign (core/integer_layer.py);
weights have a step for each output channel unless granularity is per_tensor; N of an activation counts one sample, and
of a weight the elements that share the step; first and last layers, the image and the inputs of additions have
first_last_bits and residual_bits. Signed activations keep a symmetric range of b bits. A step stays positive.
"""

from typing import Literal

import torch
from torch import Tensor

from quant.core.activation import ClampedAffine
from quant.core.fake_quantize import Rounding
from quant.core.grid import Grid
from quant.core.method import Method
from quant.core.options import (
    NOTHING_QUANTIZED,
    DampeningOptions,
    TrainingOptions,
    unread_dampening,
    unread_training,
)
from quant.core.quantizer import (
    TINY,
    ActivationQuantizer,
    DataInitialized,
    DataInitializedActivationQuantizer,
    DataInitializedWeightQuantizer,
    Shape,
    WeightQuantizer,
)
from quant.core.settings import ResolvedQuant
from quant.core.uniform import best_clip


class Options(DampeningOptions, TrainingOptions):
    step_init: Literal["paper", "mse"] = "paper"
    """Where steps start: from the mean of |v| as in the paper, or at the least squared error."""


class LearnedStep(DataInitialized):
    """Mixin: the step. s: fp32 [], or [channels] for a weight."""

    def __init__(self, bits: int, Q_N: int, Q_P: int, init: str, shape: Shape = ()):
        super().__init__(bits, started=False)
        self.Q_N, self.Q_P, self.init = Q_N, Q_P, init
        self.s = torch.nn.Parameter(torch.ones(shape))

    def elements_per_step(self, v: Tensor) -> float:
        """N: the number of elements of v that share a step."""
        raise NotImplementedError

    def step(self) -> Tensor:
        """s as values are rounded with it: positive."""
        return self.s.detach().clamp(min=TINY)

    def rounding(self, v: Tensor) -> Rounding:
        s, g = self.step(), 1 / (self.elements_per_step(v) * self.Q_P) ** 0.5
        least, most = s.new_tensor(-self.Q_N), s.new_tensor(self.Q_P)
        learned = (self.s,) if self.s.requires_grad else ()
        return Rounding(s, least, most, least * s, most * s, learned=learned, gradient_scale=g)

    def keep_positive(self) -> None:
        """Clamp a step that the optimizer made negative to a small positive value; its gradient still points the right
        way."""
        if self.training:
            self.s.data.clamp_(min=TINY)

    def grid(self) -> Grid:
        s = self.step()
        return Grid(s, torch.zeros_like(s, dtype=torch.int32), -self.Q_N, self.Q_P)

    def initialize(self, v: Tensor) -> None:
        if self.init == "mse":
            s = best_clip(v, -self.Q_N, self.Q_P, per_channel=self.s.ndim > 0) / self.Q_P
        else:
            s = 2 * (v.abs().flatten(1).mean(1) if self.s.ndim else v.abs().mean()) / self.Q_P**0.5
        self.s.copy_(s.clamp(min=TINY))


class LearnedStepWeight(LearnedStep, DataInitializedWeightQuantizer):
    """A step for each output channel, or for the tensor."""

    def observe(self, w: Tensor) -> None:
        super().observe(w)
        self.keep_positive()

    def elements_per_step(self, w: Tensor) -> float:
        return w.numel() / max(1, self.s.numel())


class LearnedStepActivation(LearnedStep, DataInitializedActivationQuantizer):
    """One step for the tensor; N is the number of values in one sample."""

    def observe(self, x: Tensor, activation: ClampedAffine) -> None:
        super().observe(x, activation)
        self.keep_positive()

    def elements_per_step(self, x: Tensor) -> float:
        return x.numel() if x.ndim < 2 else x[0].numel()


def weight(spec: ResolvedQuant[Options], bits: int, shape: Shape) -> WeightQuantizer:
    half, steps = 2 ** (bits - 1), shape[:1] if spec.per_channel else ()
    Q_N, Q_P = min(half, spec.weight_limit), min(half - 1, spec.weight_limit)
    return LearnedStepWeight(bits, Q_N, Q_P, spec.options.step_init, steps)


def activation(spec: ResolvedQuant[Options], bits: int, signed: bool) -> ActivationQuantizer:
    Q_N, Q_P = (2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return LearnedStepActivation(bits, Q_N, Q_P, spec.options.step_init)


def unread(spec: ResolvedQuant[Options], ends_in_float: bool) -> dict[str, str]:
    found = {} if spec.quantizes else {"step_init": NOTHING_QUANTIZED}
    return found | unread_dampening(spec, ends_in_float) | unread_training(spec, ends_in_float)


METHOD = Method(
    Options,
    weight,
    activation,
    activation,
    weight_bits=range(2, 9),
    act_bits=range(2, 9),
    dampening=lambda options: options.oscillation_dampening,
    learns=True,
    unread=unread,
)
