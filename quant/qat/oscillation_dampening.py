"""Oscillation dampening (Nagel et al., arXiv 2203.11086, section 4.1): pull each weight towards its quantized value.

    L_dampen = || w_hat - clip(w, n s, p s) ||^2
    gradient:  2 (clip(w, n s, p s) - w_hat)  inside the grid,  0 outside

w_hat, the quantized weight, is treated as a constant. n s and p s are the ends of the grid. Near the end of low-bit
training, a weight half-way between two integers oscillates: it changes from one to the other at each step and never
settles. The strength lambda of the term rises from 0 to its final value along half a cosine. So weights can still
choose their integer at first, and keep it later.

Differs from the paper: the strength rises over the whole quantized training (the paper tries several schedules).
"""

import math
from collections.abc import Callable

import torch
from torch import nn

from quant.core.grid import along_channels
from quant.graph.quant_layers import QuantLayer


class Dampening:
    """Adds the gradient of lambda L_dampen to the gradients of the weights of `model`, before each step of `optimizer`.

    strength: the final lambda. progress(): the fraction of the quantized training that is done, in [0, 1].
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, model: nn.Module, strength: float, progress: Callable[[], float]
    ):
        self.strength, self.progress = strength, progress
        layers = {id(module.weight): module for module in model.modules() if isinstance(module, QuantLayer)}
        self.layers = [layer for layer in layers.values() if layer.weight_quantizer is not None]
        optimizer.register_step_pre_hook(lambda *_: self.add_gradients())

    @torch.no_grad()
    def add_gradients(self) -> None:
        strength = self.strength * 0.5 * (1 - math.cos(math.pi * self.progress()))
        for layer in self.layers:
            calibrated = layer.weight_quantizer is not None and layer.weight_quantizer.is_calibrated()
            if layer.weight.grad is not None and calibrated:
                layer.weight.grad.add_(distance_to_grid(layer), alpha=2 * strength)


def distance_to_grid(layer: QuantLayer) -> torch.Tensor:
    """clip(w, n s, p s) - w_hat, of the weight's shape."""
    if layer.weight_quantizer is None:
        raise ValueError("float weights have no grid to be near to")
    grid, w = layer.weight_quantizer.grid(), layer.weight.float()
    least, most = (along_channels(grid.scale * q, w) for q in (grid.q_min, grid.q_max))
    return w.clamp(least, most) - grid.value(grid.centred(w))
