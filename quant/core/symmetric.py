"""Activations whose zero point is 0 and whose integers fit int8 (quant.symmetric_activations).

TensorRT, for one, reads no other grids. A value that can be negative gets a symmetric range, +-(2^(bits-1) - 1) steps.
One that cannot gets 0 .. 2^bits - 1, and at 8 bits 0 .. 127: 7 bits, since int8 ends there. A symmetric int8 range, of
which such a value uses the upper half, would have the same steps.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from quant.core.grid import Grid
from quant.core.method import AnyMethod
from quant.core.observed import ObservedActivationQuantizer
from quant.core.quantizer import ActivationQuantizer
from quant.core.settings import ResolvedQuant
from utils.errors import UserError

UNSIGNED_BITS = 7
"""The most bits of a value that cannot be negative."""
Make = Callable[[ResolvedQuant[Any], int, bool], ActivationQuantizer]


def with_symmetric_activations(method: AnyMethod) -> AnyMethod:
    """The method, with activation quantizers that are symmetric."""
    activation = _symmetric(method.activation)
    same = method.residual is method.activation
    return replace(method, activation=activation, residual=activation if same else _symmetric(method.residual))


def _symmetric(make: Make) -> Make:
    def symmetric(spec: ResolvedQuant[Any], bits: int, signed: bool) -> ActivationQuantizer:
        if signed and bits == 1:
            raise UserError("quant.symmetric_activations: a value that can be negative needs 2 bits or more")
        quantizer = make(spec, bits if signed else min(bits, UNSIGNED_BITS), signed)
        if isinstance(quantizer, ObservedActivationQuantizer):
            quantizer.make_symmetric(signed)
        quantizer.symmetric = True
        check_symmetric(quantizer.grid(), type(quantizer).__name__)
        return quantizer

    return symmetric


def check_symmetric(grid: Grid, name: str) -> None:
    """Raise UserError for a grid that has a zero point or that int8 does not hold. name: of its quantizer."""
    if not grid.zero_point.is_meta and bool((grid.zero_point != 0).any()):
        raise UserError(f"quant.symmetric_activations: {name} has a zero point of its own; set it to false")
    if grid.q_min < -128 or grid.q_max > 127:
        raise UserError(f"quant.symmetric_activations: {grid.q_min} .. {grid.q_max} of {name} do not fit in int8")
