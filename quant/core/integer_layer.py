"""Integer convolutions and linear layers: what one computes, which engines must reproduce, and how one is built.

`build_integer_layer` makes one from a prepared layer and absorbs its batch norm.

A layer reads integers n = q_x - z_x on scale s_x. Its weights are integers q on scales s_c, its batch norm is
absorbed: with g_c = gamma_c / sqrt(var_c + eps), conv + BN of channel c is the convolution with

    weights  sign(g_c) q_c   on scale  s_c |g_c|,      bias  beta_c + (bias_c - mean_c) g_c

exactly. The bias is rounded to an integer B_c on the grid s_x s_c |g_c|, and

    q_y = clamp(round(m_c (sum n q + B_c)) + z_y, lo, hi),     m_c = s_x s_c |g_c| / s_y,     ties to even.

ReLU and ReLU6 only set lo and hi. The affine maps of a bias correction (ptq/bias_correction.py) and of a hard-sigmoid
are absorbed as a batch norm is. Sums are exact; m_c and the product are fp32, as in fbgemm and qnnpack.

m_c is moved, by less than 1 / 2,000 of itself, to a fraction with an odd denominator d <= 4,095, or below 1 / 4,095 to
the nearest 1 / d. Then no (sum + B) m_c is nearer than 1 / 2 d to a tie, and kernels that multiply, divide or add the
bias in another order in fp32 all round alike: engines agree to the last bit, in fbgemm's order down to m_c = 1 / 8,000,
in oneDNN's to 1 / 4,095.

Below 8 bits the same weights are stored as k q on scale s / k with k = floor(limit / q_max): that refines the bias
grid. A scale so small that the bias would not fit in 2^30 steps (gamma near 0) is raised and its q rounded again; a
dead channel becomes q = 0.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quant.core.activation import ChannelAffine, ClampedAffine
from quant.core.batch_norm import BatchNorm, running_statistics
from quant.core.grid import Grid
from utils.device import exact_products

EXACT = 2.0**24
"""Integers up to here, and sums that stay below it, are exact in fp32."""


DENOMINATOR = 4095
"""The largest denominator of a multiplier. Ties are then at least 1.2e-4 away, four times the rounding error of fp32
below 512."""


@dataclass(frozen=True)
class Geometry:
    """The parameters of a convolution; stride, padding and dilation are empty for a linear layer."""

    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @property
    def linear(self) -> bool:
        return not self.stride

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.linear:
            return F.linear(x, weight, bias)
        return F.conv2d(x, self.of_maps(weight), bias, self.stride, self.padding, self.dilation, self.groups)

    def of_maps(self, weight: Tensor) -> Tensor:
        """Weights [O, I/g, k] of a convolution along one axis as [O, I/g, 1, k]; others as they are."""
        return weight.unsqueeze(2) if weight.ndim == 3 and not self.linear else weight


@dataclass(frozen=True)
class IntegerLayer:
    """weight: integers in fp32, [O, I/g, kh, kw] or [O, I]; scale fp32 [O]; bias: integers in fp32, [O].

    x and y are the grids of input and output; y None: the output is float. lo and hi bound the output's integers.
    """

    geometry: Geometry
    weight: Tensor
    scale: Tensor
    bias: Tensor
    x: Grid
    y: Grid | None
    lo: int
    hi: int

    @property
    def output_grid(self) -> Grid:
        """y. Raises ValueError where the output is float."""
        if self.y is None:
            raise ValueError("a layer whose output is float has no output grid")
        return self.y

    def accumulator_scale(self) -> Tensor:
        """s_x s_c, fp32 [O]: the scale of the integer sums."""
        return self.x.scale * self.scale

    def multiplier(self) -> Tensor:
        """m_c = s_x s_c / s_y, fp32 [O]."""
        return self.accumulator_scale() / self.output_grid.scale

    def off_ties(self) -> bool:
        """Whether no multiplier needs a denominator above DENOMINATOR, and biases are small enough to add in fp32."""
        m = self.multiplier()
        return bool(((m * DENOMINATOR >= 0.999) & (self.bias.abs() * m <= 512)).all())

    def accumulate(self, n: Tensor) -> Tensor:
        """The exact sums of centred integers n with the weights, plus the bias, rounded once to fp32."""
        largest = max(self.x.q_max - int(self.x.zero_point), int(self.x.zero_point) - self.x.q_min)
        return exact_sums(self.geometry, n, self.weight, largest, self.along_channels(self.bias))

    def __call__(self, n: Tensor) -> Tensor:
        """Centred output integers of centred input integers; float values where the layer has no output grid."""
        sums = self.accumulate(n)
        if self.y is None:
            return sums.mul_(self.along_channels(self.accumulator_scale()))
        multiplier = self.along_channels(self.multiplier())
        zero_point = int(self.y.zero_point)
        return sums.mul_(multiplier).round_().clamp_(self.lo - zero_point, self.hi - zero_point)

    def along_channels(self, values: Tensor) -> Tensor:
        """Values [O] shaped to broadcast over the layer's output."""
        return values if self.geometry.linear else values.view(-1, 1, 1)


def exact_sums(geometry: Geometry, n: Tensor, weight: Tensor, largest: int, bias: Tensor) -> Tensor:
    """sum n * weight + bias of integers with |n| <= largest, computed exactly, then rounded once to fp32.

    In fp32 where no partial sum can reach 2^24. Otherwise over groups of input channels for which that holds, added in
    fp64; a grouped convolution, which cannot be split so, runs in fp64.
    """
    with exact_products(n.device):
        return _exact_sums(geometry, n, weight, split_count(weight, largest, geometry.groups), bias)


def _exact_sums(geometry: Geometry, n: Tensor, weight: Tensor, count: int | None, bias: Tensor) -> Tensor:
    if count == 1:
        return geometry(n, weight).add_(bias)
    if count is None:
        return geometry(n.double(), weight.double()).add_(bias).float()
    inputs, weights = n.tensor_split(count, -1 if geometry.linear else 1), weight.tensor_split(count, 1)
    parts = (geometry(x, w).double() for x, w in zip(inputs, weights, strict=True))
    sums = sum(parts, n.new_zeros((), dtype=torch.float64))
    return sums.add_(bias).float()


def split_count(weight: Tensor, largest: int, groups: int) -> int | None:
    """The number of parts into which to split the input channels so that no sum reaches 2^24; None if no split does."""
    sizes, count = weight.abs(), 1
    sizes = sizes.flatten(2).sum(2) if sizes.ndim > 2 else sizes
    while count <= sizes.shape[1]:
        if all(float(part.sum(1).max()) * largest < EXACT for part in sizes.tensor_split(count, 1)):
            return count
        if groups > 1:
            return None
        count *= 2
    return None


@torch.no_grad()
def build_integer_layer(
    geometry: Geometry,
    weight: Tensor,
    grid: Grid,
    bias: Tensor | None,
    norm: BatchNorm | None,
    x: Grid,
    y: Grid | None,
    activation: ClampedAffine,
    limit: int,
    correction: ChannelAffine | None = None,
) -> IntegerLayer:
    """Build the integer layer from a layer's integer weights, float bias, batch norm and activation.

    weight: the integers, on `grid` (zero_point 0). bias: in float, or None. norm: the batch norm after it, or None.
    x, y: the grids of input and output; y None: the output is float. activation: the activation at the end.
    limit: the largest integer to store. correction: an affine map with positive gains between norm and activation,
    or None.
    """
    factor = refinement(grid, limit)
    q = weight.float() * factor
    scale = grid.scale.double().expand(len(q)) / factor
    shift = torch.zeros_like(scale) if bias is None else bias.double()
    if norm is not None:
        gain, shift = _norm(norm, shift)
        q = q * torch.sign(gain).float().view(-1, *[1] * (q.ndim - 1))
        scale = scale * gain.abs()
    if correction is not None:
        gain, offset = (value.double() for value in correction)
        scale, shift = scale * gain, shift * gain + offset
    scale, shift = scale * activation.gain, shift * activation.gain + activation.offset
    q, scale = _raised(q, scale, shift, x.scale.double())
    if y is not None:
        scale = _off_ties(scale, q, x.scale.double() / y.scale.double())
    scale = scale.float()
    steps = (shift / (x.scale * scale).double()).round().float()
    lo, hi = (0, 0) if y is None else integer_bounds(y, activation)
    return IntegerLayer(geometry, q, scale, steps, x, y, lo, hi)


def refinement(grid: Grid, limit: int) -> int:
    """k: weights q on this grid are stored as k q."""
    return max(1, limit // max(abs(grid.q_min), grid.q_max))


def integer_bounds(y: Grid, activation: ClampedAffine) -> tuple[int, int]:
    """The least and greatest integer of the grid y that the activation can return."""
    ends = torch.tensor([activation.low, activation.high], device=y.scale.device).clamp(-1e30, 1e30)
    lo, hi = y.to_int(ends).tolist()
    return int(lo), int(hi)


def _norm(norm: BatchNorm, bias: Tensor) -> tuple[Tensor, Tensor]:
    """(g, beta + (bias - mean) g) of a batch norm in eval, in fp64."""
    mean, variance = running_statistics(norm)
    gain = 1 / torch.sqrt(variance.double() + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight.double()
    shift = (bias - mean.double()) * gain
    return gain, shift if norm.bias is None else shift + norm.bias.double()


def _raised(q: Tensor, scale: Tensor, shift: Tensor, x_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Scales on which the bias fits in 2^30 steps and every product of scales is a normal fp32 number."""
    floor = torch.maximum(shift.abs() / 2**30, torch.full_like(shift, 2.0**-64)) / x_scale
    raised = torch.maximum(scale, floor)
    keep = (scale / raised).view(-1, *[1] * (q.ndim - 1))
    if not bool((keep == 1).all()):
        q = torch.where(keep == 1, q, (q * keep).round()).float()
    return q, raised


def _off_ties(scale: Tensor, q: Tensor, unit: Tensor) -> Tensor:
    """Scales that make of each multiplier m = scale unit a fraction p / d, d odd, d <= 4,095; below that, 1 / d.

    The nearest of those with the 16 largest p there are (p up to 4,095 m). A channel without weights takes any scale.
    """
    dead = q.flatten(1).abs().amax(1) == 0
    m = torch.where(dead, (scale * unit).clamp(min=1 / 64), scale * unit)[:, None]
    p = ((m * DENOMINATOR).floor() - torch.arange(16, device=m.device)).clamp(min=1)
    fractions = p / (2 * ((p / m - 1) / 2).round() + 1)
    return fractions.gather(1, (fractions - m).abs().argmin(1, keepdim=True))[:, 0] / unit
