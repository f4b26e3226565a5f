"""AdaRound (Nagel et al., arXiv 2004.10568): each weight rounded up or down as serves the output, not the weight.

    w~ = s clamp(floor(w / s) + h(V), q_min, q_max)
    h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1),    zeta = 1.1,  gamma = -0.1
    f(V) = sum 1 - |2 h(V) - 1|^beta

V starts where h(V) = w / s - floor(w / s), so that w~ starts at w. beta falls from 20 to 2, which first lets h move and
then drives it to 0 or 1; for the first fifth of the steps f is left out. What is kept is an offset to nearest rounding,
of -1, 0 or 1, in a buffer of the weight's quantizer: the weight stays as it was.

Differs from the paper: nothing known but the number of steps (ptq/brecq.py).
"""

import torch
from torch import Tensor

from quant.core.grid import along_channels
from quant.core.observed import ObservedWeightQuantizer

ZETA, GAMMA = 1.1, -0.1
BETA = 20.0, 2.0
WARM_UP = 0.2


class SoftRounding:
    """V for one weight: fp32, of its shape."""

    def __init__(self, quantizer: ObservedWeightQuantizer, weight: Tensor):
        self.quantizer, self.grid = quantizer, quantizer.grid()
        steps = weight.detach().float() * along_channels(1.0 / self.grid.scale, weight)
        self.nearest, self.floor = steps.round(), steps.floor()
        share = (steps - self.floor - GAMMA) / (ZETA - GAMMA)
        self.V = torch.logit(share).requires_grad_()

    def h(self) -> Tensor:
        return (torch.sigmoid(self.V) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def weight(self) -> Tensor:
        """w~"""
        return self.grid.value((self.floor + self.h()).clamp(self.grid.q_min, self.grid.q_max))

    def penalty(self, beta: float) -> Tensor:
        """f(V)"""
        return (1 - (2 * self.h() - 1).abs().pow(beta)).sum()

    @torch.no_grad()
    def settle(self) -> None:
        """Leave the offsets in the quantizer."""
        self.quantizer.offset.copy_(self.floor + (self.h() >= 0.5) - self.nearest)


def beta_at(done: float) -> float | None:
    """beta after this share of the steps; None while there is no penalty."""
    if done < WARM_UP:
        return None
    first, last = BETA
    return last + (first - last) * (1 - done) / (1 - WARM_UP)
