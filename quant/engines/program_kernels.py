"""Kernels of a runtime that runs programs, each by itself: what engines/verify.py tries."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from quant.core.integer_operator import IntegerOperator
from quant.engines.base import Operator
from quant.engines.nhwc_builder import MIDDLE, Builder
from quant.engines.nhwc_writer import write
from quant.engines.qdq_operators import on_grid
from utils.stderr import silenced

Ways = list[tuple[str, Operator]]
"""Names of kernels and how they are traced, the fastest first."""
Table = dict[Callable, Callable[[IntegerOperator], Ways]]
"""Arithmetic of an operator -> function that gives the ways to write it."""
qdq = torch.ops.qdq


@dataclass
class Kernel:
    """An operator native -> native. Traced, it is the operators that `traced` calls; else the runtime computes it.

    x: scale and zero point of each input. y: those of the output; None: it is float.
    """

    traced: Operator
    x: Sequence[tuple[float, int]]
    y: tuple[float, int] | None
    builder: type[Builder]

    def __post_init__(self) -> None:
        self.shapes: tuple[torch.Size, ...] = ()
        self.run: Callable[..., list[Tensor]] | None = None

    def __call__(self, *values: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return self.traced(*values)
        shapes = tuple(value.shape for value in values)
        with silenced():
            if self.run is None or shapes != self.shapes:
                self.shapes, self.run = shapes, self._loaded(shapes)
            found = self.run(*map(_to_int8, values, self.x))[0].clone()
        if self.y is None:
            return found
        scale, zero_point = self.y
        return (found.float() + (MIDDLE - zero_point)) * torch.tensor(scale)

    def _loaded(self, shapes: tuple[torch.Size, ...]) -> Callable[..., list[Tensor]]:
        to, module = self.builder(), exported(_Module(self.traced), *map(torch.zeros, shapes))
        inputs = [to.input_on_grid(shape, *grid) for shape, grid in zip(shapes, self.x, strict=True)]
        to.output(write(to, module, inputs))
        return to.loaded()


class Tried(Kernel):
    """A kernel that returns no numbers where the runtime refuses an operator, so that the next one is tried."""

    def __call__(self, *values: Tensor) -> Tensor:
        try:
            return super().__call__(*values)
        except (RuntimeError, ValueError):  # NotThere, too
            return torch.full_like(self.traced(*values), math.nan)


def exported(module: nn.Module, *examples: Tensor) -> fx.GraphModule:
    """The graph of a module for inputs of these shapes, in torch's operators and ours."""
    with torch.inference_mode(False), torch.no_grad():
        module = copy.deepcopy(module).requires_grad_(False)  # which inference tensors cannot do
        module = torch.export.export(module, tuple(torch.zeros(x.shape) for x in examples)).module()
    if not isinstance(module, fx.GraphModule):
        raise TypeError(f"torch.export gives a {type(module).__name__}")
    return module


class _Module(nn.Module):
    def __init__(self, run: Operator):
        super().__init__()
        self.run = run

    def forward(self, *values: Tensor) -> Tensor:
        return self.run(*values)


def _to_int8(value: Tensor, grid: tuple[float, int]) -> Tensor:
    scale, zero_point = grid
    return (value / scale).round_().add_(zero_point - MIDDLE).to(torch.int8).contiguous()


def outside(traced: Operator) -> Operator:
    """An operator that the runtime does not have, or not exactly."""
    return lambda *values: traced(*map(qdq.outside, values))


def fused_sum(op: IntegerOperator, sign: int) -> Operator:
    """A sum or a difference as one integer kernel."""
    output = on_grid(op.output_grid, op.lo, op.hi)
    scales, zero_points = zip(*(on_grid(grid, 0, 0)[:2] for grid in op.x), strict=True)
    return lambda p, q: qdq.sum(p, q, scales, zero_points, sign, *output)


def fused_product(op: IntegerOperator) -> Operator:
    """A product as one integer kernel."""
    output, step = on_grid(op.output_grid, op.lo, op.hi), float(op.divisor())
    scales, zero_points = zip(*(on_grid(grid, 0, 0)[:2] for grid in op.x), strict=True)
    return lambda p, q: qdq.product(p, q, scales, zero_points, step, *output)


def then(run: Operator, write: Operator) -> Operator:
    """One operator after another."""
    return lambda *values: write(run(*values))


COMPOSED: dict[str, Operator] = {"hardswish": lambda x: x * (x + 3).clamp(0, 6) / 6}
"""What torch computes for a function that runtimes compute in another way, by the row of the table of operators."""
