"""What quantizers compute over whole tensors in training: rounding, and its gradients.

    u              =  clamp(v, bottom, top)                                the activation in front: ReLU, ReLU6 or none
    v_hat          =  scale clamp(round(u / scale), least, most)                                  ties to even, fp32
    d v_hat / d v  =  1  where  low < v < high  and  bottom < v < top,  0 elsewhere
    d v_hat / d t  =  (v_hat - u  or  0) / t  where  floor < u < ceiling,  v_hat / t  elsewhere

t is what a quantizer learns: a step, whose rounding error v_hat - u counts inside (LSQ), or a clip, which is felt only
beyond (PACT). The backward pass computes v_hat again: v is all that is kept.

Behind a batch norm v = a x + b with a = gamma / sqrt(var + eps), b = beta - a mean of the batch, and normalisation,
activation and rounding are one pass over x; with h the gradient of v and M the values of a channel,

    d beta = sum h,    d gamma = sum h (x - mean) / sqrt(var + eps),    d x = a (h - d beta / M - x_norm d gamma / M)

are two. x, which the norm keeps anyway, is all that is kept, so that a net in training moves and holds no more memory
quantized than in float. That needs compiled kernels (core/kernels.py); without them the norm is torch's own.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from quant.core import kernels
from quant.core.activation import IDENTITY, ClampedAffine, is_clamp
from quant.core.kernels import run


@dataclass(frozen=True)
class Rounding:
    """How a quantizer rounds now: the numbers above as fp32 tensors [], or [C] for a weight's output channels.

    ends: floor and ceiling, where they are not low and high. learned: t. inside: whether the error inside counts.
    share: what t's gradient is multiplied with.
    """

    scale: Tensor
    least: Tensor
    most: Tensor
    low: Tensor
    high: Tensor
    ends: tuple[Tensor, Tensor] | None = None
    learned: Tensor | None = None
    inside: bool = True
    share: float = 1.0
    bounds: ClampedAffine = IDENTITY

    def behind(self, bounds: ClampedAffine) -> "Rounding":
        """The same, of u."""
        if bounds == IDENTITY:
            return self
        bottom, top = self._tensors(bounds)
        inverse = 1 / self.scale  # times that, as Grid.to_int has it: the same integer at a tie
        lo, hi = (bottom * inverse).round(), (top * inverse).round()
        return replace(
            self,
            least=torch.maximum(self.least, lo),
            most=torch.minimum(self.most, hi),
            low=torch.maximum(self.low, bottom),
            high=torch.minimum(self.high, top),
            ends=self.ends or ((self.low, self.high) if self._cuts(bounds) else None),
            bounds=bounds,
        )

    def _cuts(self, bounds: ClampedAffine) -> bool:
        """Whether the activation stops gradients of v that t would feel."""
        return bool(bounds.low > self.low) or bool(bounds.high < self.high)

    def to_v_hat(self) -> tuple[Tensor, ...]:
        """What kernels.forward takes beside v."""
        return 1 / self.scale, self.scale, self.least, self.most

    def to_t(self) -> tuple:
        """What kernels.of_log_t takes beside gradients and v."""
        return *self._tensors(self.bounds), self.inside, self.ends, *self.to_v_hat()

    def _tensors(self, bounds: ClampedAffine) -> tuple[Tensor, Tensor]:
        return self.scale.new_tensor(bounds.low), self.scale.new_tensor(bounds.high)

    def of_t(self, of_log_t: Tensor) -> Tensor:
        return of_log_t * (self.share / self.learned.detach())


def rounded(v: Tensor, rounding: Rounding) -> Tensor:
    """v_hat, of v's type; gradients flow to v and to what is learned."""
    return _Round.apply(v, rounding.learned, rounding)


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v: Tensor, learned: Tensor | None, r: Rounding) -> Tensor:
        ctx.save_for_backward(v)
        ctx.rounding = r
        flat = run(kernels.forward, _flat(v, r), *_rows(r.to_v_hat()))
        return _shaped(flat, v).data  # no view: what reads it may work in place

    @staticmethod
    def backward(ctx, g: Tensor):
        (v,), r = ctx.saved_tensors, ctx.rounding
        flat = _flat(g.contiguous(memory_format=_layout(v)), r), _flat(v, r)
        passing = _rows((r.low, r.high))
        if r.learned is None:
            return _shaped(run(kernels.backward, *flat, *passing), v), None, None
        of_v, of_log_t = run(kernels.backward_learning, *flat, *passing, *_rows(r.to_t()))
        return _shaped(of_v, v), r.of_t(of_log_t), None


class Straight(torch.autograd.Function):
    """Integers, or what else stands in place of n x, with the gradient of n x."""

    @staticmethod
    def forward(ctx, x: Tensor, integers: Tensor, n: int) -> Tensor:
        ctx.n = n
        return integers

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient * ctx.n, None, None


def fits(x: Tensor, norm: nn.Module | None, bounds: ClampedAffine) -> bool:
    """Whether norm_rounded can do it: a batch norm that is training, on channels_last, with compiled kernels."""
    plain = type(norm) is nn.BatchNorm2d and norm.affine and norm.track_running_stats and norm.momentum is not None
    if not (kernels.compiled() and plain and norm.training and is_clamp(bounds)):
        return False
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and x.numel() >= kernels.SMALL


@dataclass(frozen=True)
class Normed:
    """A batch norm's line a x + b on a batch [images, positions, channels], and the least and greatest value of v."""

    mean: Tensor
    deviation: Tensor
    a: Tensor
    b: Tensor
    ends: Tensor


@torch.no_grad()
def normed(x: Tensor, norm: nn.BatchNorm2d) -> Normed:
    """Measure a batch and update the norm's running statistics, as F.batch_norm does."""
    mean, variance, least, greatest = run(kernels.statistics, _positions(x))
    count = x.numel() // x.shape[1]
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
    deviation = (variance + norm.eps).sqrt()
    a = norm.weight / deviation
    b = norm.bias - a * mean
    return Normed(mean, deviation, a, b, torch.stack(torch.aminmax(torch.stack([least, greatest]) * a + b)))


def norm_rounded(x: Tensor, norm: nn.BatchNorm2d, found: Normed, rounding: Rounding) -> Tensor:
    """v_hat of v = a x + b, of x's type; gradients flow to x, to the norm's parameters and to what is learned."""
    return _NormRound.apply(x, norm.weight, norm.bias, rounding.learned, found, rounding)


class _NormRound(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, gamma: Tensor, beta: Tensor, learned: Tensor | None, n: Normed, r: Rounding) -> Tensor:
        ctx.save_for_backward(x)
        ctx.normed, ctx.rounding = n, r
        return _shaped(run(kernels.norm_forward, _positions(x), n.a, n.b, *r.to_v_hat()), x).data

    @staticmethod
    def backward(ctx, g: Tensor):
        (x,), n, r = ctx.saved_tensors, ctx.normed, ctx.rounding
        pair = _positions(g.contiguous(memory_format=torch.channels_last)), _positions(x)
        line, passing, learns = (n.a, n.b), (r.low, r.high), r.learned is not None
        sums = run(kernels.norm_sums, *pair, *line, n.mean, *passing, *(r.to_t() if learns else ()))
        of_beta, along, *of_log_t = sums
        of_gamma = along / n.deviation
        count = x.numel() // x.shape[1]
        p = -n.a * of_gamma / (n.deviation * count)
        q = -n.a * of_beta / count - p * n.mean
        of_x = _shaped(run(kernels.norm_backward, *pair, *line, *passing, p, q), x)
        return of_x, of_gamma, of_beta, r.of_t(of_log_t[0].sum()) if learns else None, None, None


def _layout(v: Tensor) -> torch.memory_format:
    last = v.ndim == 4 and v.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _in_memory_order(v: Tensor) -> Tensor:
    return v.permute(0, 2, 3, 1) if _layout(v) is torch.channels_last else v


def _flat(v: Tensor, rounding: Rounding) -> Tensor:
    """In one dimension, or a row for each output channel that has a scale of its own; a view where v is dense."""
    ordered = _in_memory_order(v)
    return ordered.reshape(len(v), -1) if rounding.scale.ndim else ordered.reshape(-1)


def _positions(x: Tensor) -> Tensor:
    """A view [images, positions, channels] of what lies in channels_last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _rows(numbers: tuple) -> list:
    """With an axis more, so that numbers of output channels meet rows."""
    return [n[:, None] if isinstance(n, Tensor) and n.ndim else n for n in numbers]


def _shaped(flat: Tensor, v: Tensor) -> Tensor:
    """What _flat or _positions made flat, in v's shape and layout."""
    if _layout(v) is torch.channels_last:
        n, c, h, w = v.shape
        return flat.view(n, h, w, c).permute(0, 3, 1, 2)
    return flat.view(v.shape)


def just_below(x: Tensor) -> Tensor:
    """The next fp32 number down: x > just_below(a) says x >= a."""
    return torch.nextafter(x, torch.full_like(x, -torch.inf))


def just_above(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, torch.inf))
