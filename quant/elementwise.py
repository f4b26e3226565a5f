"""What quantizers compute over whole tensors: rounding to a grid and its gradients, in few passes over memory."""

import torch
from torch import Tensor

from quant.grid import Grid, along_channels


def fake_quantize(
    x: Tensor, grid: Grid, low: Tensor | None = None, high: Tensor | None = None, offset: Tensor | None = None
) -> Tensor:
    """x_hat = scale (q - zero_point); the gradient is 1 for low < x < high and 0 elsewhere.

    low and high: scalars or a value a row; None: where x rounds to an integer of the grid without being clipped.
    offset: integers to add to those of nearest rounding.
    """
    if low is None:
        low = grid.scale * (grid.q_min - 0.5 - grid.zero_point)
        high = grid.scale * (grid.q_max + 0.5 - grid.zero_point)
    return _FakeQuantize.apply(x, grid, low, high, offset)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, grid: Grid, low: Tensor, high: Tensor, offset: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, low, high)
        if offset is None:
            return rounded(x, grid)
        return grid.value(grid.to_int(x, offset).sub_(along_channels(grid.zero_point, x)))

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return within(gradient, *ctx.saved_tensors), None, None, None, None


def learned_step(x: Tensor, grid: Grid, s: Tensor, g: float) -> Tensor:
    """x_hat on the grid, whose scale is s; straight through for x inside its ends, and (LSQ's equation 3) with

    d x_hat / d s = round(x / s) - x / s  inside,  q_min - zero_point below,  q_max - zero_point above,  times g
    """
    return _LearnedStep.apply(x, s, grid, g)


class _LearnedStep(torch.autograd.Function):
    """Equation 3 times s is x_hat - x inside, x_hat beyond."""

    @staticmethod
    def forward(ctx, x: Tensor, s: Tensor, grid: Grid, g: float) -> Tensor:
        x_hat = rounded(x, grid)
        ctx.save_for_backward(x, x_hat)
        ctx.constants = grid, g
        return x_hat

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (x, x_hat), (grid, g) = ctx.saved_tensors, ctx.constants
        s = grid.scale
        ends = s * (grid.q_min - grid.zero_point), s * (grid.q_max - grid.zero_point)
        slope = within(x, x, *ends).neg_().add_(x_hat)  # times s; subtracted before it is summed, or fp32 loses it
        return within(gradient, x, *ends), inner(gradient, slope, s.ndim > 0) * (g / s), None, None


def rounded(x: Tensor, grid: Grid) -> Tensor:
    """The values of x on the grid."""
    return grid.centred(x).mul_(along_channels(grid.scale, x))


def within(gradient: Tensor, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The gradient where low < x < high, 0 elsewhere; low and high are scalars or a value for each row of x."""
    if low.ndim:
        return gradient * ((x > along_channels(low, x)) & (x < along_channels(high, x)))
    return torch.ops.aten.hardtanh_backward(gradient, x, float(low), float(high))


def just_below(x: Tensor) -> Tensor:
    """The next fp32 number down: x > just_below(a) says x >= a."""
    return torch.nextafter(x, torch.full_like(x, -torch.inf))


def just_above(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, torch.inf))


def inner(a: Tensor, b: Tensor, per_channel: bool) -> Tensor:
    """The sum of a * b: of everything, or of each row."""
    if per_channel:
        return (a * b).flatten(1).sum(1)
    return torch.dot(*_flat(a, b))


def _flat(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dimension and in the same order, without a copy where they are dense alike."""
    if a.ndim == 4 and a.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return a.reshape(-1), b.reshape(-1)
