"""What runs programs that engines/nhwc_writer.py writes: the engines `executorch` and `litert`.

Each kernel is tried by itself, as for all engines: an operator alone is a small program (engines/program_kernels.py).
The whole graph becomes one program, which is compared with the graph.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from quant.core.grid import Grid
from quant.core.integer_layer import IntegerLayer
from quant.core.integer_operator import IntegerOperator
from quant.engines.base import EngineFailed, IntegerModel, Operator
from quant.engines.nhwc_builder import Builder
from quant.engines.nhwc_islands import ISLANDS
from quant.engines.nhwc_writer import write
from quant.engines.onnx_qdq import QdqEngine, written_in_float
from quant.engines.program_kernels import Kernel, Table, Tried, Ways, exported, outside
from quant.engines.qdq_operators import on_grid
from utils.errors import first_line
from utils.stderr import silenced

EQUAL, NEAR = 1e-5, 0.5
"""How far the logits of a program may be off, as a share of the largest, without and with sums in float that a runtime
adds in another order: there, an integer that is a step apart moves the logits of random weights far."""
MAX_PROGRAMS = 4
"""How many programs a model keeps."""
qdq = torch.ops.qdq


class ProgramEngine(QdqEngine):
    """Native tensors are floats on the grid, as in engines/onnx_qdq.py.

    builder: writes the runtime's graphs. int8, in_float, outside: names of a kernel for integers, of one in fp32, of
    none. table: how operators without weights are written.
    """

    builder: type[Builder]
    int8: str
    in_float: str
    outside: str
    table: Table
    layout = torch.contiguous_format
    is_timed = False

    def ways(self, op: IntegerOperator) -> Ways:
        """How an operator without weights may be written, the fastest first."""
        make = self.table.get(op.arithmetic)
        return [(self.in_float, written_in_float(op))] if make is None else make(op)

    def kernels(self, layer: IntegerLayer) -> tuple[str, ...]:
        return (self.int8, self.outside)

    def layer(self, layer: IntegerLayer, kernel: str) -> Operator:
        traced = super().layer(layer, kernel)
        if kernel == self.outside:
            return outside(traced)
        y = None if layer.y is None else on_grid(layer.y, 0, 0)[:2]
        return Kernel(traced, [on_grid(layer.x, 0, 0)[:2]], y, self.builder)

    def operators(self, op: IntegerOperator) -> list[tuple[str, Operator]]:
        x, y = [on_grid(grid, 0, 0)[:2] for grid in op.x], None if op.y is None else on_grid(op.y, 0, 0)[:2]
        if op.y is None:  # nothing is rounded
            return self.ways(op)[:1]
        kernels = [(name, way if isinstance(way, Kernel) else self._tried(way, x, y)) for name, way in self.ways(op)]
        return [*kernels, *((self.outside, outside(traced)) for _, traced in super().operators(op))]

    def _tried(self, way: Operator, x, y) -> Operator:
        return Tried(way, x, y, self.builder)

    def shuffle(self, grid: Grid, groups: int) -> Operator:
        scale, zero_point, _, _ = on_grid(grid, 0, 0)
        return lambda x: qdq.shuffle(x, groups, scale, zero_point)

    def finalize(self, model: IntegerModel) -> IntegerModel:
        return ProgramModel(self, model)


class ProgramModel(IntegerModel):
    """An integer model that runs as programs. Each shape of images, their number included, has one of its own.

    It uses torch.get_num_threads() threads, read at each call.
    """

    runs_by_operator = False
    engine: ProgramEngine

    def __init__(self, engine: ProgramEngine, model: IntegerModel):
        super().__init__(engine, model.graph, model.layers, model.operators, model.float_layers, model.node_map)
        self.programs: dict[torch.Size, Callable[..., list[Tensor]]] = {}

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        return self._program(images.shape)(images)[0].clone()

    def compile_for(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """The model itself, whose program for such images is there."""
        self._program(images.shape)
        return self

    def written(self, shape: torch.Size) -> Builder:
        """The graph for images of this shape. Raises EngineFailed, a line, for a model that the runtime cannot run."""
        try:
            with silenced():
                return self._checked(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        except (RuntimeError, ValueError) as error:  # NotThere, or what the runtime refuses
            line = first_line(error, 200)
            raise EngineFailed(f"engines: {self.engine.name} cannot run this model: {line}") from error

    def _checked(self, images: Tensor) -> Builder:
        """The graph. Raises RuntimeError if its program computes other logits for these images."""
        module, to = exported(self.graph, images), self.engine.builder()
        to.output(write(to, module, [to.input(images.shape)]))
        with torch.inference_mode():
            found, expected = to.loaded()(images)[0], module(images)
        allowed = NEAR if any(node.target in ISLANDS for node in module.graph.nodes) else EQUAL
        if not float((found - expected).abs().max()) <= allowed * float(expected.abs().max()):  # nor are they NaN
            raise RuntimeError("its program computes other logits than its operators")
        return to

    def _program(self, shape: torch.Size) -> Callable[..., list[Tensor]]:
        if shape not in self.programs:
            if len(self.programs) == MAX_PROGRAMS:
                self.programs.pop(next(iter(self.programs)))
            self.programs[shape] = self.written(shape).loaded()
        return self.programs[shape]
