"""LSQ, learned step size quantization (Esser et al., arXiv 1902.08153): the step s of every quantizer is trained.

    v_bar = round(clip(v / s, -Q_N, Q_P)),    v_hat = v_bar s                                          equations 1 and 2
    d v_hat / d s = round(v / s) - v / s  if  -Q_N < v / s < Q_P,  -Q_N below,  Q_P above                    equation 3
    d v_hat / d v = 1  if  -Q_N < v / s < Q_P,  0 elsewhere                                                  equation 5
    the gradient of s times  g = 1 / sqrt(N Q_P)                                                            section 2.2
    s starts at  2 <|v|> / sqrt(Q_P)  (step_init: paper), or at the least squared error (mse)               section 2.1

Q_N = 0 and Q_P = 2^b - 1 where v cannot be negative, else Q_N = 2^(b-1) and Q_P = 2^(b-1) - 1. v, s, Q_N, Q_P, N and g
are named so below. Steps of weights start from the weights, those of activations from the first batch, in place: the
Parameter that the optimizer holds is the one that is trained. They get no weight decay (utils/training/optim.py).

Differs from the paper: 8-bit weights keep to +-127, since batch norm may flip their sign (core/integer_layer.py); weights
have a step an output channel unless granularity is per_tensor; N of an activation counts one sample, and of a weight
the elements that share the step; first and last layers, the image and the inputs of additions have first_last_bits and
residual_bits. Signed activations keep a symmetric range of b bits. A step stays positive.
"""

import torch
from torch import Tensor

from quant.core.activation import ClampedAffine
from quant.core.fake_quantize import Rounding
from quant.core.grid import Grid
from quant.core.method import Method
from quant.core.quantizer import TINY, Quantizer, Shape, StartedQuantizer
from quant.core.uniform import best_clip
from utils.config import QuantSettings


class LearnedStep(StartedQuantizer):
    """s: fp32 [] or [channels] (a weight's, on axis 0)."""

    def __init__(self, bits: int, Q_N: int, Q_P: int, weight: bool, channels: int | None, init: str):
        super().__init__(bits, started=False, weight=weight)
        self.Q_N, self.Q_P, self.init = Q_N, Q_P, init
        self.s = torch.nn.Parameter(torch.ones(() if channels is None else (channels,)))

    def observe(self, v: Tensor, bounds: ClampedAffine) -> None:
        """A step that the optimizer has taken below zero is a small one again: its gradient still tells which way."""
        super().observe(v, bounds)
        if self.training:
            self.s.data.clamp_(min=TINY)

    def rounding(self, v: Tensor) -> Rounding:
        N = (v if self.weight or v.ndim < 2 else v[0]).numel() / max(1, self.s.numel())
        s, g = self.s.detach().clamp(min=TINY), 1 / (N * self.Q_P) ** 0.5
        least, most = s.new_tensor(-self.Q_N), s.new_tensor(self.Q_P)
        return Rounding(s, least, most, least * s, most * s, learned=self.s, share=g)

    def grid(self) -> Grid:
        s = self.s.detach().clamp(min=TINY)
        return Grid(s, torch.zeros_like(s, dtype=torch.int32), -self.Q_N, self.Q_P)

    def start(self, v: Tensor) -> None:
        if self.init == "mse":
            s = best_clip(v, -self.Q_N, self.Q_P, per_channel=self.s.ndim > 0) / self.Q_P
        else:
            s = 2 * (v.abs().flatten(1).mean(1) if self.s.ndim else v.abs().mean()) / self.Q_P**0.5
        self.s.copy_(s.clamp(min=TINY))


def weight(spec: QuantSettings, bits: int, shape: Shape) -> Quantizer:
    half, count = 2 ** (bits - 1), shape[0] if spec.granularity == "per_channel" else None
    return LearnedStep(
        bits, min(half, spec.weight_limit), min(half - 1, spec.weight_limit), True, count, spec.step_init
    )


def activation(spec: QuantSettings, bits: int, signed: bool) -> Quantizer:
    Q_N, Q_P = (2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return LearnedStep(bits, Q_N, Q_P, False, None, spec.step_init)


METHOD = Method(
    weight,
    activation,
    activation,
    float_epochs=lambda spec, epochs: 0,
    weight_bits=range(2, 9),
    act_bits=range(2, 9),
    observers=(),
    options=frozenset({"step_init", "damping"}),
)
