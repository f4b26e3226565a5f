"""The operators that engines/executorch.py and litert.py put into a graph beside those of engines/qdq_operators.py.

Each takes and returns floats on a grid; the functions here compute the simulation's integers.

    sum      the sum (sign 1) or difference (sign -1) of two tensors, whose scales are given, as one integer kernel
    product  the product of two tensors as one integer kernel
    outside  values as they are, read by an operator that the runtime does not have
    shuffle  the channels in the order of nn.ChannelShuffle(groups)
"""

import torch
from torch import Tensor

from quant.engines.qdq_operators import LIBRARY, ON_GRID, integers, quantize

LIBRARY.define(f"sum(Tensor p, Tensor q, float[] scales, int[] zero_points, int sign, {ON_GRID}) -> Tensor")
LIBRARY.define(f"product(Tensor p, Tensor q, float[] scales, int[] zero_points, float step, {ON_GRID}) -> Tensor")
LIBRARY.define("outside(Tensor x) -> Tensor")
LIBRARY.define("shuffle(Tensor x, int groups, float scale, int zero_point) -> Tensor")


def sum_(p: Tensor, q: Tensor, scales: list[float], zero_points: list[int], sign: int, *on_grid) -> Tensor:
    return quantize(p + q if sign > 0 else p - q, on_grid[0], *on_grid)


def product(p: Tensor, q: Tensor, scales: list[float], zero_points: list[int], step: float, *on_grid) -> Tensor:
    p, q = (integers(*given) for given in zip((p, q), scales, zero_points, strict=True))
    return quantize(p * q, step, *on_grid)


def shuffle(x: Tensor, groups: int, scale: float, zero_point: int) -> Tensor:
    return torch.channel_shuffle(x.contiguous(), groups).contiguous()


def outside(x: Tensor) -> Tensor:
    return x.clone()


for name, function in {"outside": outside, "sum": sum_, "product": product, "shuffle": shuffle}.items():
    LIBRARY.impl(name, function, "CPU")


@torch.library.register_fake("qdq::sum", lib=LIBRARY)
@torch.library.register_fake("qdq::product", lib=LIBRARY)
def _(p, q, *rest):
    return torch.empty_like(p + q)


@torch.library.register_fake("qdq::outside", lib=LIBRARY)
def _(x):
    return torch.empty_like(x)


@torch.library.register_fake("qdq::shuffle", lib=LIBRARY)
def _(x, *rest):
    return torch.empty_like(x, memory_format=torch.contiguous_format)
