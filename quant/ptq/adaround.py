"""AdaRound (Nagel et al., arXiv 2004.10568): round each weight up or down so that the layer's output changes least.

    w~ = s clamp(floor(w / s) + h(V), q_min, q_max)
    h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1),    zeta = 1.1,  gamma = -0.1
    f(V) = sum 1 - |2 h(V) - 1|^beta

V is initialised so that h(V) = w / s - floor(w / s), and w~ therefore starts at w. beta falls from 20 to 2: h first
moves freely and is then driven to 0 or 1. The penalty f is left out of the first fifth of the steps. The result is an
offset to nearest rounding, -1, 0 or 1, which is stored in a buffer of the weight's quantizer. The weight itself does
not change.

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
    """The learned rounding of one weight. V: fp32, of the weight's shape."""

    def __init__(self, quantizer: ObservedWeightQuantizer, weight: Tensor):
        self.quantizer, self.grid = quantizer, quantizer.grid()
        steps = weight.detach().float() * along_channels(1.0 / self.grid.scale, weight)
        self.nearest, self.floor = steps.round(), steps.floor()
        share = (steps - self.floor - GAMMA) / (ZETA - GAMMA)
        self.V = torch.logit(share).requires_grad_()

    def h(self) -> Tensor:
        """h(V), in [0, 1]."""
        return (torch.sigmoid(self.V) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def weight(self) -> Tensor:
        """w~, the soft-rounded weight."""
        return self.grid.value((self.floor + self.h()).clamp(self.grid.q_min, self.grid.q_max))

    def penalty(self, beta: float) -> Tensor:
        """f(V), a scalar."""
        return (1 - (2 * self.h() - 1).abs().pow(beta)).sum()

    @torch.no_grad()
    def store(self) -> None:
        """Round h to 0 or 1 and store the offsets to nearest rounding in the quantizer."""
        if self.quantizer.offset is None:
            raise ValueError("the quantizer was made without learned_rounding")
        self.quantizer.offset.copy_(self.floor + (self.h() >= 0.5) - self.nearest)


def beta_at(done: float) -> float | None:
    """beta when the fraction `done` of the steps is done; None as long as the penalty is left out."""
    if done < WARM_UP:
        return None
    first, last = BETA
    return last + (first - last) * (1 - done) / (1 - WARM_UP)
