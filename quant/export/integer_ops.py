"""The operators of an exported integer model. A copy of this file lies next to the model and needs torch only.

    import integer_ops
    model = torch.export.load("model.pt2").module()
    logits = model(images)        float32 [N, 3, H, W], normalized as model.json says

integer::layer and integer::logits compute convolutions and linear layers on uint8 activations and int8 weights. They
use oneDNN's int8 kernels if those are exact on this CPU, which is tested at the first call, and float64 otherwise.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

LIBRARY = torch.library.Library("integer", "FRAGMENT")
ARGUMENTS = "Tensor x, Tensor weight, Tensor bias, Tensor scale, int[] geometry, int x_zero_point"
LIBRARY.define(f"layer({ARGUMENTS}, int zero_point, int lo, int hi, bool fused) -> Tensor")
LIBRARY.define(f"logits({ARGUMENTS}) -> Tensor")


def layer(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    geometry: list[int],
    x_zero_point: int,
    zero_point: int,
    lo: int,
    hi: int,
    fused: bool,
) -> Tensor:
    """clamp(round((sum (x - x_zero_point) weight + bias) scale) + zero_point, lo, hi), uint8; ties to even.

    x: uint8 [N, I, H, W] or [N, I]. weight: int8 [O, I/g, kh, kw] or [O, I]. bias: integers in fp32, [O]. scale: fp32
    [O]. geometry: stride, padding and dilation, each for height and width, and groups; empty for a linear layer.
    fused: no scaled sum is near a rounding tie, so a kernel that scales and rounds in another order is exact too.
    """
    x = _laid_out(x)
    if fused and _exact():
        return _onednn(x, weight, scale, bias * scale, geometry, x_zero_point, zero_point, torch.uint8).clamp_(lo, hi)
    sums = _sums(x, weight, bias, geometry, x_zero_point)
    return sums.mul_(_along(scale, geometry)).round_().add_(zero_point).clamp_(lo, hi).to(torch.uint8)


def logits(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, geometry: list[int], x_zero_point: int) -> Tensor:
    """(sum (x - x_zero_point) weight + bias) scale, fp32."""
    x = _laid_out(x)
    return _sums(x, weight, bias, geometry, x_zero_point).mul_(_along(scale, geometry))


def _sums(x: Tensor, weight: Tensor, bias: Tensor, geometry: list[int], x_zero_point: int) -> Tensor:
    if _exact():
        return _onednn(x, weight, torch.ones_like(bias), bias, geometry, x_zero_point, 0, torch.float32)
    return _float64(x, weight, bias, geometry, x_zero_point).float()


def _float64(x: Tensor, weight: Tensor, bias: Tensor, geometry: list[int], x_zero_point: int) -> Tensor:
    n, weight, bias = x.double() - x_zero_point, weight.double(), bias.double()
    return F.conv2d(n, weight, bias, *_strides(geometry)) if geometry else F.linear(n, weight, bias)


def _onednn(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, geometry: list[int], x_zero_point: int, zero_point: int, out
) -> Tensor:
    """oneDNN's kernel: fl(fl(sums scale) + bias) + zero_point, rounded if `out` is uint8."""
    functions, packed = torch.ops.onednn, _packed(weight, tuple(geometry), x_zero_point, (1, *x.shape[1:]))
    arguments = (x, 1.0, x_zero_point, packed, scale, torch.zeros(len(scale), dtype=torch.long), bias)
    after: tuple = (1.0, zero_point, out, "none", [], "")
    if geometry:
        return functions.qconv2d_pointwise.default(*arguments, *_strides(geometry), *after)
    return functions.qlinear_pointwise.default(*arguments, *after)


@functools.lru_cache(maxsize=512)
def _packed(weight: Tensor, geometry: tuple[int, ...], x_zero_point: int, shape: tuple[int, ...]) -> Tensor:
    """Weights in oneDNN's layout for inputs of this shape. Cached: without it, every call would pack them again."""
    if not geometry:
        return torch.ops.onednn.qlinear_prepack(weight, shape)
    ones = torch.ones(len(weight))
    return torch.ops.onednn.qconv_prepack(weight, ones, 1.0, x_zero_point, *_strides(geometry), shape)


@functools.cache
def _exact() -> bool:
    """Whether oneDNN's int8 sums do not saturate on this CPU."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (1, 64, 8, 8), generator=generator, dtype=torch.uint8)
    weight = torch.randint(-127, 128, (64, 64, 3, 3), generator=generator).to(torch.int8)
    geometry, bias = [1, 1, 1, 1, 1, 1, 1], torch.zeros(64)
    try:
        sums = _onednn(_laid_out(x), weight, torch.ones(64), bias, geometry, 0, 0, torch.float32)
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
    return torch.equal(sums, _float64(x, weight, bias, geometry, 0).float())


def _strides(geometry) -> tuple[list[int], list[int], list[int], int]:
    return list(geometry[:2]), list(geometry[2:4]), list(geometry[4:6]), geometry[6]


def _laid_out(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _along(values: Tensor, geometry: list[int]) -> Tensor:
    return values.view(-1, 1, 1) if geometry else values


def _like_float(x: Tensor, weight: Tensor, geometry: list[int]) -> Tensor:
    y = (
        F.conv2d(x.float(), weight.float(), None, *_strides(geometry))
        if geometry
        else F.linear(x.float(), weight.float())
    )
    return _laid_out(y)


LIBRARY.impl("layer", layer, "CPU")
LIBRARY.impl("logits", logits, "CPU")


@torch.library.register_fake("integer::layer", lib=LIBRARY)
def _(x, weight, bias, scale, geometry, x_zero_point, zero_point, lo, hi, fused):
    return _like_float(x, weight, geometry).to(torch.uint8)


@torch.library.register_fake("integer::logits", lib=LIBRARY)
def _(x, weight, bias, scale, geometry, x_zero_point):
    return _like_float(x, weight, geometry)
