"""Gradients of rounding in the backward pass (quant.rounding_gradient).

A value at the position p of its grid, on which neighbouring integers are 1 apart, becomes n = round(p). With d = p - n,
in [-1/2, 1/2], and the gradient g of n, the gradient of p is

    straight    g                                                                    Bengio et al., arXiv 1308.3432
    ewgs        g (1 + delta sign(g) (x_n - x_q))                                    Lee et al., arXiv 2104.00903
    fourier     g (1 - a c) / (1 + a c),   a = sqrt(2) pi A,   c = cos(pi (x + x_q))
                                                                          Chen et al., arXiv 2601.19320, equation 5

EWGS scales the gradient up where its step would reach a point where rounding changes, and down elsewhere. Its x_n and
x_q are p and n for a grid of L + 1 integers that spans [0, 1], so that x_n - x_q = d / L.

StableQAT turns the stairs of rounding by 45 degrees, which makes them a triangle wave, and takes the first term of its
Fourier series. x and x_q are p and n, so that c = cos(pi (2 n + d)) = cos(pi d). The gradient nearly vanishes at the
integers and is g where rounding changes. Over a step, the mean of its factor is 0.3: from layer to layer, activations
would hand back ever less. So it is the gradient of weights alone; of activations, straight is.

Differs from the papers: where a value is clipped, and for the learned steps, clips and offsets of quantizers, the
method's own gradient holds (EWGS scales that of its learned interval, too); delta is a constant (EWGS: measured by the
Hessian's trace every few epochs, or 0.001).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.core.numbers import Number
from utils.errors import UserError


def ewgs(g: Tensor, d: Tensor, per_step: Number) -> Tensor:
    """per_step: delta / L."""
    return g + g.abs() * d * per_step


def fourier(g: Tensor, d: Tensor, a: Number) -> Tensor:
    ac = torch.cos(d * math.pi) * a
    return g * (1 - ac) / (1 + ac)


@dataclass(frozen=True)
class Slope:
    """A gradient of rounding other than straight through: of_position(g, d, strength) is the gradient of p."""

    of_position: Callable[[Tensor, Tensor, Number], Tensor]
    strength: float

    def __call__(self, g: Tensor, d: Tensor) -> Tensor:
        return self.of_position(g, d, self.strength)


def _ewgs_slope(delta: float, L: float) -> Slope:
    return Slope(ewgs, delta / L)


def _fourier_slope(A: float, L: float) -> Slope:
    return Slope(fourier, math.sqrt(2) * math.pi * A)


MOST_A = 1 / (math.sqrt(2) * math.pi)
SLOPES: dict[str, Callable[[float, float], Slope]] = {"ewgs": _ewgs_slope, "fourier": _fourier_slope}
"""(strength, L) -> the slope."""
OF_WEIGHTS_ALONE = ("fourier",)
STRENGTHS = {"ewgs": 1e-3, "fourier": 0.21}
"""The papers' delta and A."""


def slope(name: str, strength: float | None, L: float, of_weights: bool) -> Slope | None:
    """The slope of that name for a grid of L + 1 integers; None if it is straight. strength: None is the paper's."""
    if name == "straight" or (name in OF_WEIGHTS_ALONE and not of_weights):
        return None
    return SLOPES[name](STRENGTHS[name] if strength is None else strength, L)


def check_strength(name: str, strength: float | None) -> None:
    """Raise UserError for an amplitude with which the gradient would change its sign."""
    if name == "fourier" and strength is not None and strength >= MOST_A:
        raise UserError(
            f"quant.gradient_strength: {strength:g}; from 1 / (sqrt(2) pi) on, fourier's gradient changes its sign at "
            f"the integers; choose less than {MOST_A:.4f}"
        )
