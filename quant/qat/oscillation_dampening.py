"""Oscillation dampening (Nagel et al., arXiv 2203.11086, section 4.1): weights drawn to their integers.

    L_dampen = || w_hat - clip(w, n s, p s) ||^2,    its gradient  2 (clip(w, n s, p s) - w_hat)  inside,  0 beyond

w_hat counts as a constant, n s and p s are the ends of the grid. Near the end of low-bit training a weight between two
integers jumps from one to the other at each step and never settles. The term's strength lambda rises from 0 to
`damping` along half a cosine: weights can choose an integer early in training, and keep it later.

Differs from the paper: the strength rises over the whole of the quantized training (there: one of several schedules).
"""

import math
from collections.abc import Callable

import torch
from torch import nn

from quant.core.grid import along_channels
from quant.graph.quant_layers import QuantLayer


class Dampening:
    """Hook on an optimizer: adds the gradient of damping * L_dampen to the weights of `model` before each step.

    progress(): the share of the quantized training that is done, in [0, 1].
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, model: nn.Module, damping: float, progress: Callable[[], float]
    ):
        self.damping, self.progress = damping, progress
        layers = [module for module in model.modules() if isinstance(module, QuantLayer)]
        self.layers = [layer for layer in layers if layer.weight_quantizer is not None]
        optimizer.register_step_pre_hook(lambda *_: self.add())

    @torch.no_grad()
    def add(self) -> None:
        strength = self.damping * 0.5 * (1 - math.cos(math.pi * self.progress()))
        for layer in self.layers:
            if layer.weight.grad is not None and layer.weight_quantizer.is_calibrated():
                layer.weight.grad.add_(distance_to_grid(layer), alpha=2 * strength)


def distance_to_grid(layer: QuantLayer) -> torch.Tensor:
    """clip(w, n s, p s) - w_hat"""
    grid, w = layer.weight_quantizer.grid(), layer.weight.float()
    least, most = (along_channels(grid.scale * q, w) for q in (grid.q_min, grid.q_max))
    return w.clamp(least, most) - grid.value(grid.centred(w))
