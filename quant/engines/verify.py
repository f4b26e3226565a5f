"""Is a kernel exact? Asked of every layer at conversion, on this CPU: no kernel is trusted.

An engine's output is compared with core/integer_layer.py, integer by integer, on random inputs that fill the whole grid.
Rounding of exact ties and the last bit of a product may differ: one step, on at most 0.01 % of the elements, is
'exact'. Saturating kernels are off by dozens of steps on percents of them.
"""

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quant.core.grid import Grid
from quant.core.integer_layer import Geometry, IntegerLayer
from quant.core.integer_operator import IntegerOperator, average
from quant.engines.base import FLOAT32_KERNEL, Engine, Operator

MOST_STEPS, MOST_SHARE = 1, 1e-4
ELEMENTS = 30_000


@dataclass(frozen=True)
class Difference:
    """Largest distance in steps of the output grid, and how many of the elements differ at all."""

    steps: float
    differing: int
    elements: int

    @property
    def share(self) -> float:
        return self.differing / self.elements

    def within(self) -> bool:
        """Whether this counts as exact. One element may always be off: small tensors have no smaller share."""
        return self.steps <= MOST_STEPS and self.differing <= max(1, MOST_SHARE * self.elements)


def difference(ours: Tensor, theirs: Tensor) -> Difference:
    distance = (ours - theirs).abs()
    return Difference(float(distance.max()), int((distance > 0).sum()), distance.numel())


@torch.inference_mode()
def layer_difference(engine: Engine, layer: IntegerLayer, operator: Operator, n: Tensor) -> Difference:
    """How an engine's operator for a layer differs from the layer's own arithmetic on centred integers n.

    A float output counts in units of its sums.
    """
    with engine.running():
        theirs = operator(engine.to_native(layer.x)(n))
    ours = layer(n)
    if layer.y is not None:
        return difference(ours, engine.from_native(layer.y)(theirs))
    unit = layer.along_channels(layer.accumulator_scale())
    return difference((ours / unit).round(), (theirs / unit).round())


def choose_kernel(engine: Engine, layer: IntegerLayer) -> tuple[str, Operator, Difference]:
    """The engine's first kernel that is exact for this layer: for its shape with full-range weights, and as it is.

    Raises RuntimeError if none is.
    """
    n = full_range(layer.x, input_shape(layer))
    for kernel in engine.kernels(layer):
        if not _exact_for_shape(engine, kernel, _shape_of(layer)):
            continue
        operator, found = _tried(engine, layer, kernel, n)
        if found.within():
            return kernel, operator, found
    raise RuntimeError(f"{engine.name}: no kernel reproduces the layer {layer.geometry}, {tuple(layer.weight.shape)}")


@torch.inference_mode()
def choose_operator(engine: Engine, op: IntegerOperator) -> tuple[str, Operator]:
    """The engine's first way to run an operator that is right for every integer, or pair of integers, of its grids; an
    average, for a map of random integers."""
    ways = engine.operators(op)
    if len(ways) == 1:
        return ways[0]
    if op.arithmetic is average:
        given = [full_range(op.x[0], (1, 8, 32, 32))]
    else:
        every = [torch.arange(g.q_min, g.q_max + 1.0) - int(g.zero_point) for g in op.x]
        given = [n.reshape(1, 1, len(every[0]), -1).contiguous() for n in torch.meshgrid(*every, indexing="ij")]
    try:
        ours = op(*given)
    except RuntimeError:  # a pool whose window such a map does not hold
        return ways[-1]
    for kernel, operator in ways:
        with engine.running():
            theirs = operator(*(engine.to_native(grid)(n) for grid, n in zip(op.x, given, strict=True)))
        if torch.equal(ours, engine.from_native(op.y)(theirs)):
            return kernel, operator
    raise RuntimeError(f"{engine.name}: nothing reproduces {op}")


def exact_in_int8(engine: Engine, largest: int) -> bool:
    """Whether one of the engine's int8 kernels multiplies weights up to +-largest exactly on this CPU."""
    shape = _Shape(Geometry((1, 1), (1, 1), (1, 1)), (64, 64, 3, 3), largest, 0, 255, False)
    kernels = engine.kernels(_blank(shape))
    return any(_exact_for_shape(engine, kernel, shape) for kernel in (kernels[:-1] or kernels))


def full_range(grid: Grid, shape: tuple[int, ...]) -> Tensor:
    """Centred integers drawn evenly from the whole grid; fp32, channels_last where there are four axes."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(grid.q_min, grid.q_max + 1, shape, generator=generator)
    n = (q - int(grid.zero_point)).float()
    return n.contiguous(memory_format=torch.channels_last) if n.ndim == 4 else n


def with_full_range_weights(layer: IntegerLayer, largest: int) -> IntegerLayer:
    """The layer with even random weights up to +-largest, random bias, and scales that show its sums.

    Scales are random too: multipliers that are simple fractions would put many sums on exact ties.
    """
    generator = torch.Generator().manual_seed(1)
    weight = torch.randint(-largest, largest + 1, layer.weight.shape, generator=generator).float()
    spread = math.sqrt(weight[0].numel()) * largest * (layer.x.q_max - layer.x.q_min) / 3
    bias = (torch.randn(len(weight), generator=generator) * spread / 4).round()
    if layer.y is None:
        return replace(layer, weight=weight, bias=bias)
    scale = (0.5 + torch.rand(len(weight), generator=generator)) * layer.scale.max()
    steps = max(layer.y.q_max - int(layer.y.zero_point), 1)
    y = replace(layer.y, scale=2 * spread * layer.x.scale * scale.mean() / steps)
    return replace(layer, weight=weight, bias=bias, scale=scale, y=y)


@dataclass(frozen=True)
class _Shape:
    geometry: Geometry
    weight: tuple[int, ...]
    largest: int
    x_zero_point: int
    x_max: int
    float_out: bool


def _shape_of(layer: IntegerLayer) -> _Shape:
    largest = max(1, int(layer.weight.abs().max()))
    x = layer.x
    return _Shape(
        layer.geometry,
        tuple(layer.weight.shape),
        largest,
        int(x.zero_point) - x.q_min,
        x.q_max - x.q_min,
        layer.y is None,
    )


@functools.lru_cache(maxsize=4096)
def _exact_for_shape(engine: Engine, kernel: str, shape: _Shape) -> bool:
    layer = with_full_range_weights(_blank(shape), shape.largest)
    return _tried(engine, layer, kernel, full_range(layer.x, input_shape(layer)))[1].within()


def _tried(engine: Engine, layer: IntegerLayer, kernel: str, n: Tensor) -> tuple[Operator | None, Difference]:
    """The operator and its difference on n; infinitely far off if the kernel refuses the layer or is not there."""
    try:
        operator = engine.layer(layer, kernel)
        return operator, layer_difference(engine, layer, operator, n)
    except (RuntimeError, NotImplementedError, AttributeError):
        if kernel == FLOAT32_KERNEL:
            raise
        return None, Difference(math.inf, 1, 1)


def _blank(shape: _Shape) -> IntegerLayer:
    x = Grid(torch.tensor(0.02), torch.tensor(shape.x_zero_point, dtype=torch.int32), 0, shape.x_max)
    y = None if shape.float_out else Grid(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), 0, 255)
    outputs = shape.weight[0]
    return IntegerLayer(
        shape.geometry, torch.zeros(shape.weight), torch.full((outputs,), 0.01), torch.zeros(outputs), x, y, 0, 255
    )


def input_shape(layer: IntegerLayer) -> tuple[int, ...]:
    """Just large enough to have borders and an inside, and some 30,000 outputs."""
    outputs, inputs = layer.weight.shape[0], layer.weight.shape[1] * layer.geometry.groups
    if layer.geometry.linear:
        return max(4, min(256, ELEMENTS // outputs)), inputs
    sides = [
        dilation * (kernel - 1) + 1 + 3 * stride
        for kernel, stride, dilation in zip(
            layer.weight.shape[2:], layer.geometry.stride, layer.geometry.dilation, strict=True
        )
    ]
    return max(1, min(64, ELEMENTS // (outputs * 16))), inputs, *sides
