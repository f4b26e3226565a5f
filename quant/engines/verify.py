"""Check that a kernel is exact. Conversion checks the kernels of each layer and operator on this CPU, and takes the
fastest of a layer's exact ones.

The output of the kernel is compared with core/integer_layer.py, integer by integer, on random inputs that cover the
whole grid. Kernels may round exact ties and the last bit of a product differently. So a kernel counts as exact if at
most 0.01 % of the elements differ, by one step. Kernels that saturate are off by dozens of steps on several percent of
them.
"""

import functools
import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quant.core.grid import Grid
from quant.core.integer_layer import Geometry, IntegerLayer
from quant.core.integer_operator import IntegerOperator, average
from quant.engines.base import FLOAT32_KERNEL, Engine, Operator

MAX_STEPS, MAX_FRACTION = 1, 1e-4
ELEMENTS = 30_000
"""About how many output elements a check compares, and a kernel that is timed computes."""
CLEARLY_FASTER, CALLS = 0.7, 6
"""A kernel takes the place of the one that its engine prefers below this share of its time; how often each is timed."""


@dataclass(frozen=True)
class Difference:
    """steps: the largest distance, in steps of the output grid. differing: how many of all `elements` differ at all."""

    steps: float
    differing: int
    elements: int

    @property
    def fraction(self) -> float:
        return self.differing / self.elements

    def counts_as_exact(self) -> bool:
        """Whether this counts as exact. One differing element is always allowed, for small tensors."""
        return self.steps <= MAX_STEPS and self.differing <= max(1, MAX_FRACTION * self.elements)


def difference(ours: Tensor, theirs: Tensor) -> Difference:
    distance = (ours - theirs).abs()
    return Difference(float(distance.max()), int((distance > 0).sum()), distance.numel())


@torch.inference_mode()
def layer_difference(engine: Engine, layer: IntegerLayer, operator: Operator, n: Tensor) -> Difference:
    """How an engine's operator for a layer differs from the arithmetic of core/integer_layer.py.

    n: the input, centred integers in fp32. If the output is float, one step is the scale of the integer sums.
    """
    with engine.running():
        theirs = operator(engine.to_native(layer.x)(n))
    ours = layer(n)
    if layer.y is not None:
        return difference(ours, engine.from_native(layer.y)(theirs))
    unit = layer.along_channels(layer.accumulator_scale())
    return difference((ours / unit).round(), (theirs / unit).round())


def choose_kernel(engine: Engine, layer: IntegerLayer) -> tuple[str, Operator, Difference]:
    """The engine's fastest kernel that is exact for this layer: (kernel name, operator, its difference).

    Each kernel is checked twice: on random weights of the full range, in the layer's shape, and on the layer itself.
    Raises RuntimeError if no kernel is exact.
    """
    n, shape = full_range(layer.x, input_shape(layer)), _shape_of(layer)
    for kernel in _by_speed(engine, engine.kernels(layer), shape):
        operator, measured = _try_kernel(engine, layer, kernel, n)
        if operator is not None and measured.counts_as_exact():
            return kernel, operator, measured
    raise RuntimeError(f"{engine.name}: no kernel is exact for the layer {layer.geometry}, {tuple(layer.weight.shape)}")


@torch.inference_mode()
def choose_operator(engine: Engine, op: IntegerOperator) -> tuple[str, Operator]:
    """The engine's first implementation of an operator that is exact: (kernel name, operator).

    It must be right for every integer, or pair of integers, of the input grids; an average, on a feature map of random
    integers. Taken unchecked are a sole candidate and, for a pool whose window is larger than that map, the last one,
    the reference arithmetic. Raises RuntimeError if no implementation is exact.
    """
    candidates = engine.operators(op)
    if len(candidates) == 1:
        return candidates[0]
    if op.arithmetic is average:
        inputs = [full_range(op.x[0], (1, 8, 32, 32))]
    else:
        integers = [torch.arange(g.q_min, g.q_max + 1.0) - int(g.zero_point) for g in op.x]
        inputs = [n.reshape(1, 1, len(integers[0]), -1).contiguous() for n in torch.meshgrid(*integers, indexing="ij")]
    try:
        ours = op(*inputs)
    except RuntimeError:  # a pool whose window is larger than this feature map
        return candidates[-1]
    for kernel, operator in candidates:
        with engine.running():
            theirs = operator(*(engine.to_native(grid)(n) for grid, n in zip(op.x, inputs, strict=True)))
        if torch.equal(ours, engine.from_native(op.output_grid)(theirs)):
            return kernel, operator
    raise RuntimeError(f"{engine.name}: no kernel is exact for {op}")


def exact_in_int8(engine: Engine, largest: int) -> bool:
    """Whether an int8 kernel of the engine is exact on this CPU for weights up to +-largest."""
    shape = _Shape(Geometry((1, 1), (1, 1), (1, 1)), (64, 64, 3, 3), largest, 0, 255, False)
    kernels = engine.kernels(_zero_layer(shape))
    return any(_exact_for_shape(engine, kernel, shape) for kernel in (kernels[:-1] or kernels))


def full_range(grid: Grid, shape: tuple[int, ...]) -> Tensor:
    """Random centred integers, uniform over the whole grid; fp32, channels_last if there are four axes."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(grid.q_min, grid.q_max + 1, shape, generator=generator)
    n = (q - int(grid.zero_point)).float()
    return n.contiguous(memory_format=torch.channels_last) if n.ndim == 4 else n


def with_full_range_weights(layer: IntegerLayer, largest: int) -> IntegerLayer:
    """The layer with random weights, uniform up to +-largest, a random bias, and a matching output scale.

    The output scale is chosen so that the sums cover the output grid. Scales are random: multipliers that are simple
    fractions would put many sums on exact ties.
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
    """Everything of a layer that decides whether a kernel is exact: the key of a cache. largest: of |weight|."""

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
    layer = with_full_range_weights(_zero_layer(shape), shape.largest)
    return _try_kernel(engine, layer, kernel, full_range(layer.x, input_shape(layer)))[1].counts_as_exact()


@functools.lru_cache(maxsize=4096)
def _by_speed(engine: Engine, kernels: tuple[str, ...], shape: _Shape) -> list[str]:
    """The kernels that are exact for layers of a shape, in the engine's order, but the fastest first if it takes less
    than CLEARLY_FASTER of the time of the one that the engine prefers. Timed once in a process, if at all."""
    exact = [kernel for kernel in kernels if _exact_for_shape(engine, kernel, shape)]
    timed = [kernel for kernel in exact if kernel != FLOAT32_KERNEL]
    if len(timed) < 2 or not engine.is_timed:
        return exact
    layer = with_full_range_weights(_zero_layer(shape), shape.largest)
    seconds = _seconds(engine, layer, timed)
    fastest = min(timed, key=seconds.__getitem__)
    if seconds[fastest] > CLEARLY_FASTER * seconds[timed[0]]:
        return exact
    return [fastest, *(kernel for kernel in exact if kernel != fastest)]


@torch.inference_mode()
def _seconds(engine: Engine, layer: IntegerLayer, kernels: list[str]) -> dict[str, float]:
    """The least seconds of a call of each kernel on one image; calls are interleaved."""
    with engine.running():
        x = engine.to_native(layer.x)(full_range(layer.x, _one_image(layer)))
        operators = {kernel: engine.layer(layer, kernel) for kernel in kernels}
        least = dict.fromkeys(kernels, math.inf)
        for _ in range(CALLS):
            for kernel, operator in operators.items():
                start = time.perf_counter()
                operator(x)
                least[kernel] = min(least[kernel], time.perf_counter() - start)
    return least


def _one_image(layer: IntegerLayer) -> tuple[int, ...]:
    """An input for about ELEMENTS outputs of one image, or of one row of a linear layer."""
    outputs, inputs = layer.weight.shape[0], layer.weight.shape[1] * layer.geometry.groups
    if layer.geometry.linear:
        return 1, inputs
    side = max(1, math.isqrt(ELEMENTS // outputs))
    axes = zip(layer.weight.shape[2:], layer.geometry.stride, layer.geometry.dilation, strict=True)
    return 1, inputs, *(d * (k - 1) + 1 + (side - 1) * s for k, s, d in axes)


def _try_kernel(engine: Engine, layer: IntegerLayer, kernel: str, n: Tensor) -> tuple[Operator | None, Difference]:
    """(operator, its difference on n); (None, an infinite difference) if the kernel rejects the layer or is missing."""
    try:
        operator = engine.layer(layer, kernel)
        return operator, layer_difference(engine, layer, operator, n)
    except (RuntimeError, NotImplementedError, AttributeError):
        if kernel == FLOAT32_KERNEL:
            raise
        return None, Difference(math.inf, 1, 1)


def _zero_layer(shape: _Shape) -> IntegerLayer:
    x = Grid(torch.tensor(0.02), torch.tensor(shape.x_zero_point, dtype=torch.int32), 0, shape.x_max)
    y = None if shape.float_out else Grid(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), 0, 255)
    outputs = shape.weight[0]
    return IntegerLayer(
        shape.geometry, torch.zeros(shape.weight), torch.full((outputs,), 0.01), torch.zeros(outputs), x, y, 0, 255
    )


def input_shape(layer: IntegerLayer) -> tuple[int, ...]:
    """The input shape of a check: large enough to have borders and an interior, for about ELEMENTS outputs."""
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
