"""Translate an integer model to ONNX in the QDQ format: float operators between DequantizeLinear and QuantizeLinear.

Runtimes recognize this pattern and run it as an integer operator. A convolution, for example, reads DequantizeLinear of
its input (uint8), of its weights (int8, one scale per channel) and of its bias (int32, scale s_x s_c), and
QuantizeLinear reads its result. Grids keep their zero points. If a grid has fewer than 8 bits, or an activation clamps
its range, a uint8 Clip stands between QuantizeLinear and DequantizeLinear. (A Clip before QuantizeLinear would prevent
fusion in ONNX Runtime.)

The operators of the library `qdq` below are translated by the table of `_translations`; torch.onnx translates the rest.
"""

import contextlib
import importlib.util
import io
import warnings
from typing import Any

import numpy
import torch
from torch import Tensor, fx

from quant.core.grid import Grid
from quant.core.integer_layer import Geometry, IntegerLayer
from quant.core.integer_operator import IntegerOperator
from quant.engines.base import Engine, Operator
from quant.graph import operator_row

LIBRARY = torch.library.Library("qdq", "FRAGMENT")
ON_GRID = "float scale, int zero_point, int lo, int hi"
LIBRARY.define(f"quantize(Tensor x, {ON_GRID}) -> Tensor")
LAYER = "Tensor x, Tensor weight, Tensor weight_scale, Tensor bias, Tensor bias_scale"
LAYER += ", float x_scale, int x_zero_point, int[] geometry"
LIBRARY.define(f"layer({LAYER}, {ON_GRID}) -> Tensor")
LIBRARY.define(f"last_layer({LAYER}) -> Tensor")


class QdqEngine(Engine):
    """Native tensors are floats on the grid: the values between a DequantizeLinear and the next QuantizeLinear."""

    name = "onnx"

    def quantize(self, grid: Grid) -> Operator:
        on_grid = _on_grid(grid, grid.q_min, grid.q_max)
        return lambda x: torch.ops.qdq.quantize(x, *on_grid)

    def dequantize(self, grid: Grid) -> Operator:
        return lambda x: x

    def to_native(self, grid: Grid) -> Operator:
        return grid.value

    def from_native(self, grid: Grid) -> Operator:
        return grid.centred

    def kernels(self, layer: IntegerLayer) -> tuple[str, ...]:
        return (self.name,)

    def layer(self, layer: IntegerLayer, kernel: str) -> Operator:
        g = layer.geometry
        geometry = [] if g.linear else [*g.stride, *g.padding, *g.dilation, g.groups]
        weight, bias = layer.weight.to(torch.int8), layer.bias.to(torch.int32)
        weight = weight.t().contiguous() if g.linear else weight.contiguous()
        x_scale, x_zero_point, _, _ = _on_grid(layer.x, 0, 0)
        given = (weight, layer.scale, bias, layer.accumulator_scale(), x_scale, x_zero_point, geometry)
        if layer.y is None:
            return lambda x: torch.ops.qdq.last_layer(x, *given)
        on_grid = _on_grid(layer.y, layer.lo, layer.hi)
        return lambda x: torch.ops.qdq.layer(x, *given, *on_grid)

    def operators(self, op: IntegerOperator) -> list[tuple[str, Operator]]:
        if op.y is None:
            return [(self.name, op.run)]
        on_grid = _on_grid(op.y, op.lo, op.hi)
        return [(self.name, lambda *values: torch.ops.qdq.quantize(op.run(*values), *on_grid))]

    def concatenate(self, grid: Grid, axis: int) -> Operator:
        requantize = self.quantize(grid)
        return lambda values: requantize(torch.cat(values, axis))

    def shuffle(self, grid: Grid, groups: int) -> Operator:
        requantize = self.quantize(grid)
        return lambda x: requantize(_shuffled(x, groups))

    def relu(self, grid: Grid) -> Operator:
        requantize = self.quantize(grid)
        return lambda x: requantize(torch.relu(x))

    def conversions_around(self, grid: Grid, row: operator_row.Operator) -> tuple[Operator, Operator]:
        """Re-quantize after each pass-through operator.

        Runtimes only fuse an operator that has a Dequantize and a Quantize to itself.
        """
        return (lambda x: x), self.quantize(grid)


def _shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.reshape(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def _on_grid(y: Grid, lo: int, hi: int) -> tuple[float, int, int, int]:
    """(scale, zero_point, lo, hi) of grid y as the operators below take them: integers shifted so that q_min is 0."""
    return float(y.scale), int(y.zero_point) - y.q_min, lo - y.q_min, hi - y.q_min


def _grid(scale: float, zero_point: int) -> Grid:
    return Grid(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), 0, 255)


def quantize(x: Tensor, scale: float, zero_point: int, lo: int, hi: int) -> Tensor:
    grid = _grid(scale, zero_point)
    return grid.value(grid.to_int(x).clamp_(lo, hi).sub_(zero_point))


def layer(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    bias_scale: Tensor,
    x_scale: float,
    x_zero_point: int,
    geometry: list[int],
    scale: float | None = None,
    zero_point: int = 0,
    lo: int = 0,
    hi: int = 0,
) -> Tensor:
    """An IntegerLayer whose input and output are float values on their grids.

    The weights of a linear layer are [I, O], and its `geometry` is empty. Otherwise geometry holds stride (2), padding
    (2), dilation (2) and groups. scale None: the output is float and not quantized.
    """
    g, weight = geometry, weight if geometry else weight.t()
    shape = Geometry((g[0], g[1]), (g[2], g[3]), (g[4], g[5]), g[6]) if g else Geometry()
    source = _grid(x_scale, x_zero_point)
    y = None if scale is None else _grid(scale, zero_point)
    integer_layer = IntegerLayer(shape, weight.float(), weight_scale, bias.float(), source, y, lo, hi)
    output = integer_layer(source.centred(x))
    return output if y is None else y.value(output)


LIBRARY.impl("quantize", quantize, "CPU")
LIBRARY.impl("layer", layer, "CPU")
LIBRARY.impl("last_layer", layer, "CPU")


@torch.library.register_fake("qdq::quantize", lib=LIBRARY)
def _(x, scale, zero_point, lo, hi):
    return torch.empty_like(x)


@torch.library.register_fake("qdq::layer", lib=LIBRARY)
def _(x, weight, weight_scale, bias, bias_scale, x_scale, x_zero_point, geometry, scale, zero_point, lo, hi):
    return _like(x, weight, geometry)


@torch.library.register_fake("qdq::last_layer", lib=LIBRARY)
def _(x, weight, weight_scale, bias, bias_scale, x_scale, x_zero_point, geometry):
    return _like(x, weight, geometry)


def _like(x: Tensor, weight: Tensor, g: list[int]) -> Tensor:
    if not g:
        return x.new_empty((*x.shape[:-1], weight.shape[1]))
    return torch.nn.functional.conv2d(x, weight.float(), None, g[:2], g[2:4], g[4:6], g[6])


def _translations() -> dict:
    """For each operator above, the function that writes it in ONNX operators."""
    import onnx_ir as ir
    from onnxscript import opset18

    op: Any = opset18  # its functions are typed by their ONNX tensors, and called with what is traced

    def constant(value: float, kind):
        return op.Constant(value=ir.tensor(numpy.array(value, kind)))

    def quantize(y, scale: float, zero_point: int, lo: int, hi: int):
        step, zero = constant(scale, numpy.float32), constant(zero_point, numpy.uint8)
        q = op.QuantizeLinear(y, step, zero)
        if (lo, hi) != (0, 255):
            q = op.Clip(q, constant(lo, numpy.uint8), constant(hi, numpy.uint8))
        return op.DequantizeLinear(q, step, zero)

    def layer(x, weight, weight_scale, bias, bias_scale, x_scale: float, x_zero_point: int, geometry, *on_grid):
        b, of_weight = op.DequantizeLinear(bias, bias_scale, axis=0), 0 if geometry else 1
        w = op.DequantizeLinear(weight, weight_scale, axis=of_weight)
        if geometry:
            y = op.Conv(x, w, b, **attributes(geometry))
        else:
            y = op.Gemm(x, w, b) if len(x.shape) == 2 else op.Add(op.MatMul(x, w), b)
        return quantize(y, *on_grid)

    def last_layer(x, weight, weight_scale, bias, bias_scale, x_scale: float, x_zero_point: int, geometry):
        zero = constant(x_zero_point, numpy.uint8)
        q, axes = op.QuantizeLinear(x, constant(x_scale, numpy.float32), zero), [-1, 1, 1] if geometry else [-1]
        sums = (
            op.ConvInteger(q, weight, zero, **attributes(geometry)) if geometry else op.MatMulInteger(q, weight, zero)
        )
        shape = op.Constant(value_ints=axes)
        sums = op.Add(sums, op.Reshape(bias, shape))
        return op.Mul(op.Cast(sums, to=1), op.Reshape(bias_scale, shape))

    def attributes(geometry: list[int]) -> dict[str, Any]:
        s, p, d, groups = geometry[:2], geometry[2:4], geometry[4:6], geometry[6]
        return {"strides": s, "pads": [*p, *p], "dilations": d, "group": groups}

    functions = torch.ops.qdq
    return {
        functions.quantize.default: quantize,
        functions.layer.default: layer,
        functions.last_layer.default: last_layer,
    }


def missing(*packages: str) -> str:
    """Which packages to install to write ONNX files, and to run them with `packages`; empty if all are installed."""
    absent = [name for name in ("onnx", "onnxscript", *packages) if not importlib.util.find_spec(name)]
    return f"needs {' and '.join(absent)}: pip install -r requirements-deploy.txt" if absent else ""


def onnx_model(graph: fx.GraphModule, images: Tensor) -> Any:
    """The ONNX model of a graph that QdqEngine converted.

    images: an example [N, 3, H, W]; the batch size stays free.
    """
    batch = {0: torch.export.Dim("batch")}
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.export.export(graph, (images,), dynamic_shapes=(batch,))
        written = torch.onnx.export(
            program,
            (images,),
            input_names=["images"],
            output_names=["logits"],
            custom_translation_table=_translations(),
            dynamo=True,
            opset_version=18,
            verbose=False,
        )
    if written is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return written.model_proto
