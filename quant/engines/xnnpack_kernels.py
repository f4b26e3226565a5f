"""XNNPACK's kernels, each by itself: what engines/verify.py tries, and which ways to write an operator there are."""

import copy
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from quant.core.integer_operator import IntegerOperator, add, average, function, mul, sub
from quant.engines.base import Operator
from quant.engines.nhwc_builder import MIDDLE
from quant.engines.nhwc_writer import write
from quant.engines.onnx_qdq import Rounded, step_off_ties, written_average, written_in_float, written_product
from quant.engines.qdq_operators import on_grid
from quant.engines.xnnpack_builder import XnnpackBuilder
from quant.engines.xnnpack_graph import Loaded, silenced

XNNPACK, IN_FLOAT, OUTSIDE = "xnnpack", "xnnpack in float", "not in xnnpack"
"""Names of kernels: one of XNNPACK's for integers; some of its in fp32, which compute the same integers; none."""
LEAST_RATIO, RATIO = 2.0**-10, 2.0**8
"""XNNPACK adds integers whose scales, over that of the sum, are from the first up to the second."""
Ways = list[tuple[str, Operator]]
"""Names of kernels and how they are traced, the fastest first."""
qdq = torch.ops.qdq


@dataclass
class Kernel:
    """An operator native -> native. Traced, it is the operators that `traced` calls; else XNNPACK computes it.

    x: scale and zero point of each input. y: those of the output; None: it is float.
    """

    traced: Operator
    x: Sequence[tuple[float, int]]
    y: tuple[float, int] | None

    def __post_init__(self) -> None:
        self.shapes: tuple[torch.Size, ...] = ()
        self.run: Loaded | None = None

    def __call__(self, *values: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return self.traced(*values)
        shapes = tuple(value.shape for value in values)
        with silenced():
            if self.run is None or shapes != self.shapes:
                self.shapes, self.run = shapes, Loaded(self._program(shapes))
            found = self.run(*map(_to_int8, values, self.x))[0].clone()
        if self.y is None:
            return found
        scale, zero_point = self.y
        return (found.float() + (MIDDLE - zero_point)) * torch.tensor(scale)

    def _program(self, shapes: tuple[torch.Size, ...]) -> bytes:
        to, module = XnnpackBuilder(), exported(_Module(self.traced), *map(torch.zeros, shapes))
        inputs = [to.input_on_grid(shape, *grid) for shape, grid in zip(shapes, self.x, strict=True)]
        to.output(write(to, module, inputs))
        return to.program()


class Tried(Kernel):
    """A kernel that returns no numbers where XNNPACK refuses an operator, so that the next one is tried."""

    def __call__(self, *values: Tensor) -> Tensor:
        try:
            return super().__call__(*values)
        except RuntimeError:  # NotThere, too
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
    """An operator that XNNPACK does not have, or not exactly."""
    return lambda *values: traced(*map(qdq.outside, values))


def _sum(op: IntegerOperator, sign: int) -> Ways:
    output = on_grid(op.output_grid, op.lo, op.hi)
    scales, zero_points = zip(*(on_grid(grid, 0, 0)[:2] for grid in op.x), strict=True)
    fused = [(XNNPACK, lambda p, q: qdq.sum(p, q, scales, zero_points, sign, *output))]
    takes = all(LEAST_RATIO <= scale / output[0] < RATIO for scale in scales)
    return fused * takes + [(IN_FLOAT, written_in_float(op))]


def _products(op: IntegerOperator) -> Ways:
    output, step = on_grid(op.output_grid, op.lo, op.hi), float(op.divisor())
    scales, zero_points = zip(*(on_grid(grid, 0, 0)[:2] for grid in op.x), strict=True)
    fused = (XNNPACK, lambda p, q: qdq.product(p, q, scales, zero_points, step, *output))
    return [fused, (IN_FLOAT, written_product(op))]


def _function(op: IntegerOperator) -> Ways:
    """In float, on a step that is far from all ties if there is one; what is still off is corrected."""
    step, rounded = step_off_ties(op) or float(op.output_grid.scale), on_grid(op.output_grid, op.lo, op.hi)
    x, y = on_grid(op.x[0], 0, 0)[:2], rounded[:2]
    write, tried = Rounded(step, *rounded), []
    for run in (op.run, *([_COMPOSED[op.name]] if op.name in _COMPOSED else [])):
        kernel = Tried(functools.partial(_then, run, write), [x], y)
        off = _off(op, kernel)
        if not off:
            return [(IN_FLOAT, kernel)]
        tried.append((len(off), run, off))
    _, run, off = min(tried, key=lambda one: one[0])
    return [(IN_FLOAT, functools.partial(_then, functools.partial(_corrected, run, off, step / 2, x), write))]


def _then(run: Operator, write: Operator, *values: Tensor) -> Tensor:
    return write(run(*values))


def _corrected(run: Operator, off: dict[int, int], half: float, x: tuple[float, int], value: Tensor) -> Tensor:
    """run(value), moved by half a step for each step that its rounding is off for an integer."""
    n, found = qdq.integers(value, *x), run(value)
    for place, steps in off.items():
        found = found + (1 - (n - place).abs()).clamp(min=0) * (steps * half)
    return found


def _off(op: IntegerOperator, kernel: Kernel) -> dict[int, int]:
    """Centred integers for which a kernel of a function returns another integer than its table: how many steps off."""
    x = op.x[0]
    every = torch.arange(x.q_min, x.q_max + 1.0) - int(x.zero_point)
    off = op.table() - op.output_grid.centred(kernel(x.value(every).reshape(1, 1, -1, 1)).flatten())
    off = off.nan_to_num(1.0)  # where XNNPACK refuses the function
    return {int(every[i]): int(off[i]) for i in off.nonzero()[:, 0].tolist()}


_COMPOSED: dict[str, Operator] = {"hardswish": lambda x: x * (x + 3).clamp(0, 6) / 6}
"""What torch computes for a function that XNNPACK computes in another way, by the row of the table of operators."""
_WAYS: dict[Callable, Callable[[IntegerOperator], Ways]] = {
    add: functools.partial(_sum, sign=1),
    sub: functools.partial(_sum, sign=-1),
    mul: _products,
    average: lambda op: [(IN_FLOAT, written_average(op))],
    function: _function,
}


def ways_of(op: IntegerOperator) -> Ways:
    make = _WAYS.get(op.arithmetic)
    return [(IN_FLOAT, written_in_float(op))] if make is None else make(op)
