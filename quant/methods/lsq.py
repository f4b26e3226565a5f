"""LSQ, learned step size quantization (Esser et al., arXiv 1902.08153): the step s of every quantizer is trained.

    v_bar = round(clip(v / s, -Q_N, Q_P)),    v_hat = v_bar s                                          equations 1 and 2
    d v_hat / d s = round(v / s) - v / s  if  -Q_N < v / s < Q_P,  -Q_N below,  Q_P above                    equation 3
    d v_hat / d v = 1  if  -Q_N < v / s < Q_P,  0 elsewhere                                                  equation 5
    the gradient of s times  g = 1 / sqrt(N Q_P)                                                            section 2.2
    s starts at  2 <|v|> / sqrt(Q_P)  (step_init: paper), or at the least squared error (mse)               section 2.1

With offset: learned, activations that can be negative have LSQ+'s offset beta (Bhalgat et al., arXiv 2004.09576), which
is trained as well. It suits Swish, h-swish and the linear ends of blocks, whose values are negative, but not as far:

    v_bar = round(clip((v - beta) / s, 0, Q_P)),    v_hat = v_bar s + beta,    Q_P = 2^b - 1               section 3.1
    d v_hat / d s = round(f) - f  if  0 < f < Q_P,  0 below,  Q_P above,    f = (v - beta) / s
    d v_hat / d beta = 0  if  0 < f < Q_P,  1 elsewhere
    s and beta start at the least squared error, their gradients are times g                               section 3.2

Equation 3 is `learned_gradient_terms` (core/kernels.py), summed over the elements, and its factor g is applied by
Rounding.gradients (core/fake_quantize.py).

Q_N = 0 and Q_P = 2^b - 1 where v cannot be negative, else Q_N = 2^(b-1) and Q_P = 2^(b-1) - 1. v, s, Q_N, Q_P, N and g
are named so below. Steps of weights are initialized from the weights, those of activations from the first batch, in
place, so that the optimizer's Parameter is the one in use. They get no weight decay (utils/training/optim.py).

Differs from the paper: 8-bit weights keep to +-127, since batch norm may flip their sign (core/integer_layer.py);
weights have a step for each output channel unless granularity is per_tensor; N of an activation counts one sample, and
of a weight the elements that share the step; first and last layers, the image and the inputs of additions have
first_last_bits and residual_bits. Signed activations keep a symmetric range of b bits. A step stays positive. Of LSQ+:
beta is rounded to a multiple of s, and zero is kept on the grid, since the zero point of integers is an integer;
activations that cannot be negative have no offset; s and beta start from the first batch alone; steps of weights start
as LSQ's do.
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from quant.core.activation import IDENTITY, ClampedAffine
from quant.core.fake_quantize import Rounding
from quant.core.grid import Grid
from quant.core.method import Method
from quant.core.numbers import Number
from quant.core.observed import ObservedActivationQuantizer
from quant.core.options import (
    FLOAT_ACTIVATIONS,
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
from utils.errors import UserError


class StepOptions(DampeningOptions, TrainingOptions):
    step_init: Literal["paper", "mse"] = "paper"
    """Where steps start: from the mean of |v| as in the paper, or at the least squared error."""


class Options(StepOptions):
    offset: Literal["none", "learned"] = "none"
    """Activations that can be negative: a range around zero, or from a learned offset on (LSQ+)."""


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

    def limits(self) -> tuple[Number, Number]:
        """The least and the greatest v_hat / s."""
        return float(-self.Q_N), float(self.Q_P)

    def rounding(self, v: Tensor) -> Rounding:
        s, g = self.step(), 1 / (self.elements_per_step(v) * self.Q_P) ** 0.5
        least, most = self.limits()
        low = 0.0 if isinstance(least, float) and not least else least * s
        learned = (self.s,) if self.s.requires_grad else ()
        return Rounding(s, least, most, low, most * s, learned=learned, gradient_scale=g)

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


class LearnedOffsetActivation(LearnedStepActivation):
    """LSQ+'s: a step s and an offset beta, fp32 []. Integers are 0 .. Q_P."""

    def __init__(self, bits: int):
        super().__init__(bits, 0, 2**bits - 1, "mse")
        self.beta = torch.nn.Parameter(torch.tensor(0.0))

    def zero_point(self) -> Tensor:
        """-beta in steps, rounded; fp32."""
        return (-self.beta.detach() / self.step()).round().clamp(0, self.Q_P)

    def limits(self) -> tuple[Number, Number]:
        z = self.zero_point()
        return -z, self.Q_P - z

    def rounding(self, v: Tensor) -> Rounding:
        return replace(super().rounding(v), learned=(self.s, self.beta), origin=-self.zero_point() * self.step())

    def grid(self) -> Grid:
        return Grid(self.step(), self.zero_point().int(), 0, self.Q_P)

    def initialize(self, v: Tensor) -> None:
        search = ObservedActivationQuantizer(self.bits, "mse").to(v.device).train()
        search.observe(v, IDENTITY)
        search.finish_observing()
        self.s.copy_(search.grid().scale)
        self.beta.copy_(search.low)


def weight(spec: ResolvedQuant[Options], bits: int, shape: Shape) -> WeightQuantizer:
    half, steps = 2 ** (bits - 1), shape[:1] if spec.per_channel else ()
    Q_N, Q_P = min(half, spec.weight_limit), min(half - 1, spec.weight_limit)
    return LearnedStepWeight(bits, Q_N, Q_P, spec.options.step_init, steps)


def activation(spec: ResolvedQuant[Options], bits: int, signed: bool) -> ActivationQuantizer:
    if signed and spec.options.offset == "learned":
        return LearnedOffsetActivation(bits)
    Q_N, Q_P = (2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return LearnedStepActivation(bits, Q_N, Q_P, spec.options.step_init)


def check(spec: ResolvedQuant[Options]) -> None:
    if spec.options.offset == "learned" and spec.symmetric_activations:
        raise UserError("quant.offset: learned gives activations zero points; quant.symmetric_activations allows none")


def unread_steps(spec: ResolvedQuant[Any], ends_in_float: bool) -> dict[str, str]:
    """Method.unread for StepOptions."""
    found = {} if spec.quantizes else {"step_init": NOTHING_QUANTIZED}
    return found | unread_dampening(spec, ends_in_float) | unread_training(spec, ends_in_float)


def unread(spec: ResolvedQuant[Options], ends_in_float: bool) -> dict[str, str]:
    found = {} if spec.quantizes_activations else {"offset": FLOAT_ACTIVATIONS}
    return found | unread_steps(spec, ends_in_float)


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
    check=check,
)
