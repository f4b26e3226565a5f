"""Fake quantization of whole tensors in training: rounding to a grid, and its gradients.

    u              =  clamp(v, bottom, top)                                the activation in front: ReLU, ReLU6 or none
    v_hat          =  scale clamp(round(u / scale), least, most)                                  ties to even, fp32
    d v_hat / d v  =  1  where  low < v < high  and  bottom < v < top,  0 elsewhere
    d v_hat / d t  =  (v_hat - u  or  0) / t  where  floor < u < ceiling,  (v_hat - o) / t  elsewhere
    d v_hat / d o  =  0  where  floor < u < ceiling,  1  elsewhere

t is the first tensor that a quantizer learns: a step, for which the rounding error v_hat - u counts inside the range
(LSQ), or a clip, which gets a gradient only from values beyond it (PACT). A second one may be an offset o, by which the
range is shifted; without one, o is 0. With a step s and an offset beta,

    v_hat  =  s round(clip((v - beta) / s, n, p)) + beta                       LSQ+, Bhalgat et al., arXiv 2004.09576
           =  s clamp(round(v / s), n - z, p - z),   z = round(-beta / s),     for beta = -z s, a multiple of s

The second line is what integers can represent: their zero point z is an integer. So beta is rounded to the grid in the
forward pass, least = n - z, most = p - z and o = -z s; the gradient of o is that of beta (straight through).

That d v_hat / d v is 1 is the straight-through estimator; core/rounding_gradient.py has others for its place.

The backward pass computes v_hat again: only v is saved.

After a batch norm, v = a x + b with a = gamma / sqrt(var + eps), b = beta - a mean of the batch. Normalization,
activation and rounding are then one pass over x. With h the gradient of v and M the number of values of a channel,

    d beta = sum h,    d gamma = sum h (x - mean) / sqrt(var + eps),    d x = a (h - d beta / M - x_norm d gamma / M)

are two. Only x, which a batch norm saves in any case, is saved, so that training with quantizers moves and stores no
more memory than training in float. That takes compiled kernels (core/kernels.py); without them torch's own batch norm
runs.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import TypeGuard

import numpy
import torch
from torch import Tensor, nn

from quant.core import kernels
from quant.core.activation import IDENTITY, ClampedAffine
from quant.core.batch_norm import running_statistics
from quant.core.kernels import run
from quant.core.numbers import Number, larger, smaller
from quant.core.rounding_gradient import Slope


@dataclass(frozen=True)
class Rounding:
    """How a quantizer rounds now: the numbers above as fp32 tensors [], or [C] for a weight's output channels, and as
    Python floats those that are known without data.

    ends: floor and ceiling, where they are not low and high. learned: the learned tensors: (), (t,) or (t, offset).
    origin: o as it is on the grid, where an offset is learned. counts_rounding_error: True: t gets a gradient from
    values inside the range too (LSQ). False: only from those beyond it (PACT). gradient_scale: factor on the gradients
    of the learned tensors. activation: the activation in front. slope: the gradient of v inside the range, if it is not
    straight through.
    """

    scale: Tensor
    least: Number
    most: Number
    low: Number
    high: Number
    ends: tuple[Number, Number] | None = None
    learned: tuple[Tensor, ...] = ()
    origin: Tensor | None = None
    counts_rounding_error: bool = True
    gradient_scale: float = 1.0
    activation: ClampedAffine = IDENTITY
    slope: Slope | None = None

    def after(self, activation: ClampedAffine) -> "Rounding":
        """The rounding of u = activation(v), as a function of v. The activation only clamps."""
        if activation == IDENTITY:
            return self
        bottom, top = activation.low, activation.high
        return replace(
            self,
            least=larger(self.least, self._rounded(bottom)),
            most=smaller(self.most, self._rounded(top)),
            low=larger(self.low, bottom),
            high=smaller(self.high, top),
            ends=self.ends or ((self.low, self.high) if self._may_be_cut_by(activation) else None),
            activation=activation,
        )

    def _rounded(self, bound: float) -> Number:
        """round(bound / scale)"""
        return bound if bound == 0 or math.isinf(bound) else (bound * self.inverse).round()

    def _may_be_cut_by(self, activation: ClampedAffine) -> bool:
        """Whether the activation may stop gradients of v that count for the learned tensors."""
        low = self.low if isinstance(self.low, float) else -math.inf
        high = self.high if isinstance(self.high, float) else math.inf
        return bool(self.learned) and (activation.low > low or activation.high < high)

    @functools.cached_property
    def inverse(self) -> Tensor:
        """1 / scale, which v is multiplied with, as in Grid.to_int: the same integer at a tie."""
        return self.scale.reciprocal()

    def of_forward(self) -> tuple[Number, ...]:
        """The arguments of kernels.forward after v."""
        return self.inverse, self.scale, self.least, self.most

    def of_slope(self) -> tuple | None:
        """The argument `slope` of the kernels."""
        if self.slope is None:
            return None
        return self.slope.of_position, self.slope.strength, self.inverse

    def of_learning(self) -> tuple:
        """The arguments of kernels.learned_gradient_terms after those of kernels.backward."""
        bounds = self.activation.low, self.activation.high
        return *bounds, self.counts_rounding_error, self.ends, len(self.learned) > 1, *self.of_forward()

    def gradients(self, t_times_gradient: Tensor, of_offset: Tensor | None = None) -> tuple[Tensor, ...]:
        """The gradients of the learned tensors from the sums of kernels.learned_gradient_terms."""
        per_t = self.learned[0].detach().reciprocal() * self.gradient_scale
        if of_offset is None:
            return (t_times_gradient * per_t,)
        if self.origin is None:
            raise ValueError("a rounding with a learned offset needs its origin")
        return (t_times_gradient - self.origin * of_offset) * per_t, of_offset * self.gradient_scale


def rounded(v: Tensor, rounding: Rounding) -> Tensor:
    """v_hat, of v's type; gradients flow to v and to the learned tensors."""
    return _Round.apply(v, rounding, *rounding.learned)


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v: Tensor, r: Rounding, *learned: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        ctx.rounding = r
        flat = run(kernels.forward, _flat(v, r), *_rows(r.of_forward()))
        return _shaped(flat, v).data  # not a view: later operators may work in place

    @staticmethod
    def backward(ctx, g: Tensor):
        (v,), r = ctx.saved_tensors, ctx.rounding
        flat = _flat(g.contiguous(memory_format=_layout(v)), r), _flat(v, r)
        passing = *_rows((r.low, r.high)), _row(r.of_slope())
        if not r.learned:
            return _shaped(run(kernels.backward, *flat, *passing), v), None
        of_v, *sums = run(kernels.backward_learning, *flat, *passing, *_rows(r.of_learning()))
        return _shaped(of_v, v), None, *r.gradients(*sums)


class Straight(torch.autograd.Function):
    """Returns `integers` with the gradient of n x: the straight-through estimator for values that approximate n x.

    With a slope, that is the gradient of rounding. step: the distance between neighbouring integers.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, integers: Tensor, n: int, step: Tensor | float = 1.0, slope: Slope | None = None
    ) -> Tensor:
        ctx.n, ctx.slope = n, slope
        if slope is not None:
            ctx.save_for_backward((x * n - integers) / step)
        return integers

    @staticmethod
    def backward(ctx, gradient: Tensor):
        if ctx.slope is not None:
            gradient = ctx.slope(gradient, *ctx.saved_tensors)
        return gradient * ctx.n, None, None, None, None


def can_fuse_norm(norm: nn.Module, x: Tensor, activation: ClampedAffine) -> TypeGuard[nn.BatchNorm2d]:
    """Whether norm_rounded can compute this batch norm too: one in training, on a large channels_last tensor, with
    compiled kernels."""
    if not (type(norm) is nn.BatchNorm2d and norm.affine and norm.track_running_stats and norm.momentum is not None):
        return False
    if not (kernels.compiled() and norm.training and activation.is_clamp):
        return False
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and x.numel() >= kernels.SMALL


@dataclass(frozen=True)
class Normed:
    """A batch norm on one batch: v = a x + b, tensors [channels], and `extremes`, the least and greatest value of v."""

    mean: Tensor
    deviation: Tensor
    a: Tensor
    b: Tensor
    extremes: Tensor


@torch.no_grad()
def normed(x: Tensor, norm: nn.BatchNorm2d) -> Normed:
    """Measure the statistics of a batch and update the running ones, as F.batch_norm does. norm: one that
    `can_fuse_norm`."""
    running_mean, running_variance = running_statistics(norm)
    batches, momentum = norm.num_batches_tracked, norm.momentum
    if batches is None or momentum is None:
        raise ValueError("the kernels know no batch norm that counts no batches or averages over all of them")
    mean, variance, least, greatest = run(kernels.statistics, _positions(x))
    count = x.numel() // x.shape[1]
    batches.add_(1)
    running_mean.lerp_(mean, momentum)
    running_variance.lerp_(variance * (count / (count - 1)), momentum)
    deviation = (variance + norm.eps).sqrt()
    a = norm.weight / deviation
    b = norm.bias - a * mean
    return Normed(mean, deviation, a, b, torch.stack(torch.aminmax(torch.stack([least, greatest]) * a + b)))


def norm_rounded(x: Tensor, norm: nn.BatchNorm2d, found: Normed, rounding: Rounding) -> Tensor:
    """v_hat of v = a x + b, of x's type; gradients flow to x, the norm's parameters and the learned tensors."""
    return _NormRound.apply(x, norm.weight, norm.bias, found, rounding, *rounding.learned)


class _NormRound(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, gamma: Tensor, beta: Tensor, n: Normed, r: Rounding, *learned: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.normed, ctx.rounding = n, r
        return _shaped(run(kernels.norm_forward, _positions(x), n.a, n.b, *r.of_forward()), x).data

    @staticmethod
    def backward(ctx, g: Tensor):
        (x,), n, r = ctx.saved_tensors, ctx.normed, ctx.rounding
        pair = _positions(g.contiguous(memory_format=torch.channels_last)), _positions(x)
        affine, passing = (n.a, n.b), (r.low, r.high, r.of_slope())
        of_learning = r.of_learning() if r.learned else ()
        of_beta, along, *sums = run(kernels.norm_sums, *pair, *affine, n.mean, *passing, *of_learning)
        of_gamma = along / n.deviation
        count = x.numel() // x.shape[1]
        p = -n.a * of_gamma / (n.deviation * count)
        q = -n.a * of_beta / count - p * n.mean
        of_x = _shaped(run(kernels.norm_backward, *pair, *affine, *passing, p, q), x)
        of_learned = r.gradients(*(each.sum() for each in sums)) if r.learned else ()
        return of_x, of_gamma, of_beta, None, None, *of_learned


def _layout(v: Tensor) -> torch.memory_format:
    last = v.ndim == 4 and v.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _in_memory_order(v: Tensor) -> Tensor:
    return v.permute(0, 2, 3, 1) if _layout(v) is torch.channels_last else v


def _flat(v: Tensor, rounding: Rounding) -> Tensor:
    """v in one dimension, or one row for each output channel where scales are per channel; a view where v is dense."""
    ordered = _in_memory_order(v)
    return ordered.reshape(len(v), -1) if rounding.scale.ndim else ordered.reshape(-1)


def _positions(x: Tensor) -> Tensor:
    """A view [images, positions, channels] of a channels_last tensor."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _rows(numbers: tuple) -> tuple:
    """Tensors [C] as [C, 1], to broadcast over rows; scalars as they are."""
    return tuple(map(_row, numbers))


def _row(number):
    if isinstance(number, tuple):
        return _rows(number)
    return number[:, None] if isinstance(number, Tensor) and number.ndim else number


def _shaped(flat: Tensor, v: Tensor) -> Tensor:
    """Undo _flat or _positions: the same values in v's shape and layout."""
    if _layout(v) is torch.channels_last:
        n, c, h, w = v.shape
        return flat.view(n, h, w, c).permute(0, 3, 1, 2)
    return flat.view(v.shape)


def just_below(x: Number) -> Number:
    """The next smaller fp32 number: x > just_below(a) is x >= a."""
    return _next(x, -math.inf)


def just_above(x: Number) -> Number:
    """The next larger fp32 number: x < just_above(a) is x <= a."""
    return _next(x, math.inf)


def _next(x: Number, towards: float) -> Number:
    if isinstance(x, Tensor):
        return torch.nextafter(x, torch.full_like(x, towards))
    return float(numpy.nextafter(numpy.float32(x), numpy.float32(towards)))
