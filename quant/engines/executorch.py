"""ExecuTorch as an engine: XNNPACK's kernels, in the program that export=model.pte writes.

Each kernel is tried by itself, as for all engines: an operator alone is a small program (engines/xnnpack_kernels.py).
The whole graph becomes one program with one delegate (engines/xnnpack_writer.py), which is compared with the graph.
ExecuTorch is optional: requirements-executorch.txt.
"""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn

from quant.core.grid import Grid
from quant.core.integer_layer import IntegerLayer
from quant.core.integer_operator import IntegerOperator
from quant.engines.base import EngineFailed, IntegerModel, Operator
from quant.engines.nhwc_islands import ISLANDS
from quant.engines.nhwc_writer import write
from quant.engines.onnx_qdq import QdqEngine
from quant.engines.qdq_operators import on_grid
from quant.engines.xnnpack_builder import XnnpackBuilder
from quant.engines.xnnpack_graph import Loaded, silenced
from quant.engines.xnnpack_kernels import OUTSIDE, XNNPACK, Kernel, Tried, exported, outside, ways_of
from utils.errors import first_line

PACKAGES = ("executorch", "torchao", "ruamel.yaml", "tabulate", "flatbuffers")
"""What writing a program imports, of all that executorch asks for."""
INSTALL = "pip install --no-deps -r requirements-executorch.txt"
EQUAL, NEAR = 1e-5, 0.5
"""How far the logits of a program may be off, as a share of the largest, without and with sums in float that XNNPACK
adds in another order: there, an integer that is a step apart moves the logits of random weights far."""
MAX_PROGRAMS = 4
"""How many programs a model keeps."""
qdq = torch.ops.qdq


def missing() -> str:
    """What to install to write and run .pte files; empty if all is there."""
    absent = [name for name in PACKAGES if not _is_here(name)]
    return f"needs {' and '.join(absent)}: {INSTALL}" if absent else ""


def _is_here(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of a package above it
        return False


class XnnpackEngine(QdqEngine):
    """Native tensors are floats on the grid, as in engines/onnx_qdq.py."""

    name = "executorch"
    layout = torch.contiguous_format
    is_timed = False

    def missing(self) -> str:
        return missing()

    def kernels(self, layer: IntegerLayer) -> tuple[str, ...]:
        return (XNNPACK, OUTSIDE)

    def layer(self, layer: IntegerLayer, kernel: str) -> Operator:
        traced = super().layer(layer, kernel)
        if kernel == OUTSIDE:
            return outside(traced)
        y = None if layer.y is None else on_grid(layer.y, 0, 0)[:2]
        return Kernel(traced, [on_grid(layer.x, 0, 0)[:2]], y)

    def operators(self, op: IntegerOperator) -> list[tuple[str, Operator]]:
        x, y = [on_grid(grid, 0, 0)[:2] for grid in op.x], None if op.y is None else on_grid(op.y, 0, 0)[:2]
        if op.y is None:  # nothing is rounded
            return ways_of(op)[:1]
        ways = [(name, way if isinstance(way, Kernel) else Tried(way, x, y)) for name, way in ways_of(op)]
        return [*ways, *((OUTSIDE, outside(traced)) for _, traced in super().operators(op))]

    def shuffle(self, grid: Grid, groups: int) -> Operator:
        scale, zero_point, _, _ = on_grid(grid, 0, 0)
        return lambda x: qdq.shuffle(x, groups, scale, zero_point)

    def finalize(self, model: IntegerModel) -> IntegerModel:
        return XnnpackModel(self, model)


class XnnpackModel(IntegerModel):
    """An integer model that runs in ExecuTorch. Each shape of images, their number included, has a program of its own.

    It uses torch.get_num_threads() threads, read at each call.
    """

    engine: XnnpackEngine

    def __init__(self, engine: XnnpackEngine, model: IntegerModel):
        super().__init__(engine, model.graph, model.layers, model.operators, model.float_layers, model.node_map)
        self.programs: dict[torch.Size, Loaded] = {}

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        return self._program(images.shape)(images.contiguous())[0].clone()

    def compile_for(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """The model itself, whose program for such images is there."""
        self._program(images.shape)
        return self

    def file(self, shape: torch.Size) -> bytes:
        """The .pte file for images of this shape. Raises EngineFailed, a line, for a model that XNNPACK cannot run."""
        try:
            with silenced():
                return _checked(self.graph, torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        except RuntimeError as error:  # NotThere, or what executorch refuses
            raise EngineFailed(f"engines: executorch cannot run this model: {first_line(error, 200)}") from error

    def _program(self, shape: torch.Size) -> Loaded:
        if shape not in self.programs:
            if len(self.programs) == MAX_PROGRAMS:
                self.programs.pop(next(iter(self.programs)))
            self.programs[shape] = Loaded(self.file(shape))
        return self.programs[shape]


def _checked(graph: nn.Module, images: Tensor) -> bytes:
    """The program of a graph. Raises RuntimeError if it computes other logits for these images."""
    module, to = exported(graph, images), XnnpackBuilder()
    to.output(write(to, module, [to.input(images.shape)]))
    file = to.program()
    with torch.inference_mode():
        found, expected = Loaded(file)(images)[0], module(images)
    allowed = NEAR if any(node.target in ISLANDS for node in module.graph.nodes) else EQUAL
    if not float((found - expected).abs().max()) <= allowed * float(expected.abs().max()):  # nor are they NaN
        raise RuntimeError("its program computes other logits than its operators")
    return file
