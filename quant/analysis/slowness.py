"""Why an operator of an integer model takes longer than its multiply-accumulates would at the peak: the first reason
that holds, of the table."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from quant.core.integer_layer import IntegerLayer
from quant.engines.base import FLOAT32_KERNEL

FEW_CHANNELS = 16
"""Kernels work on at least as many channels at once; with fewer, they multiply by zeros."""
FEW_PIXELS = 64
"""With fewer output pixels, each weight that is read from memory is used less than that many times."""
MANY_WEIGHTS = 100_000
"""More weights than that are not in the nearest cache when their layer is called."""
SMALL = 1_000_000
"""Multiply-accumulates below which starting threads and packing the input take longer than the sums."""


@dataclass(frozen=True)
class Facts:
    """What is known of an operator. layer: None for one without weights, or in float. converts: it only puts values on
    a grid, or takes them off. moves: it computes nothing else. in_layout: its inputs are in the engine's layout.
    plain: the engine has no other kernels than torch's in float."""

    name: str
    kernel: str
    layer: IntegerLayer | None
    output: tuple[int, ...]
    macs: int
    converts: bool = False
    moves: bool = False
    in_layout: bool = True
    plain: bool = False

    @property
    def weights(self) -> int:
        return 0 if self.layer is None else self.layer.weight.numel()

    @property
    def channels(self) -> int:
        """The fewest that a group of the layer reads or makes."""
        weight, groups = (self.layer.weight, self.layer.geometry.groups) if self.layer else (None, 1)
        return 0 if weight is None else min(weight.shape[1], len(weight) // groups)

    @property
    def pixels(self) -> int:
        """Of the output, of all images."""
        linear = self.layer is None or self.layer.geometry.linear
        return math.prod(self.output[:-1] if linear else self.output[:1] + self.output[2:])


REASONS: tuple[tuple[str, Callable[[Facts], bool]], ...] = (
    ("in float: no integer form, or its input has none", lambda f: f.kernel == "float"),
    ("reference: integers in float, by torch's operators", lambda f: f.plain and f.kernel == FLOAT32_KERNEL),
    ("exact fallback: no int8 kernel is exact for it", lambda f: f.kernel == FLOAT32_KERNEL and f.layer is not None),
    ("exact fallback: no faster way is exact for it", lambda f: f.kernel == FLOAT32_KERNEL),
    ("conversion between float and integers", lambda f: f.converts),
    ("moves values: memory alone", lambda f: f.moves),
    ("no multiply-accumulates: memory alone", lambda f: f.layer is None),
    ("layout: its input is laid out anew first", lambda f: not f.in_layout),
    ("depthwise: one input channel a filter", lambda f: f.layer is not None and f.layer.weight.shape[1] == 1),
    ("weights: read from memory, used for few pixels", lambda f: f.pixels < FEW_PIXELS and f.weights > MANY_WEIGHTS),
    ("small: the call itself", lambda f: f.macs < SMALL),
    ("few channels", lambda f: 0 < f.channels < FEW_CHANNELS),
)
"""(reason, whether it holds), in the order in which they are asked."""
OTHER, NEAR = "the kernel itself", "near the peak"
NEAR_PERCENT = 60
"""Share of the peak from which an operator is not slow."""


def reason_of(facts: Facts, peak_percent: float) -> str:
    if peak_percent >= NEAR_PERCENT:
        return NEAR
    return next((reason for reason, holds in REASONS if holds(facts)), OTHER)
