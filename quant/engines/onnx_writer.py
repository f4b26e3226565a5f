"""Write a graph that engines/onnx_qdq.py made as an ONNX file.

The operators of engines/qdq_operators.py are translated by the table of `_translations`; torch.onnx translates the
rest.
"""

import contextlib
import importlib.util
import io
import math
import warnings
from typing import Any

import numpy
import torch
from torch import Tensor, fx

PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""torch's names of the ways to pad, and ONNX's."""


def _translations(symmetric: bool) -> dict:
    """For each operator that torch.onnx does not know, or writes wrongly: the function that writes it in ONNX's.

    symmetric: write int8 for uint8, and for each integer the one that is less by 128.
    """
    import onnx_ir as ir
    from onnxscript import opset18

    op: Any = opset18  # its functions are typed by their ONNX tensors, and called with what is traced

    def constant(value: Any, kind):
        return op.Constant(value=ir.tensor(numpy.array(value, kind)))

    def integer(q: int):
        return constant(q - 128, numpy.int8) if symmetric else constant(q, numpy.uint8)

    def rounded(y, step, scale: float, zero_point: int, lo: int, hi: int):
        """Integers of y / step, as values on the grid."""
        zero = integer(zero_point)
        q = op.QuantizeLinear(y, step, zero)
        if (lo, hi) != (0, 255):
            q = op.Clip(q, integer(lo), integer(hi))
        return op.DequantizeLinear(q, constant(scale, numpy.float32), zero)

    def kept(x, scale: float, zero_point: int):
        made = x.producer()
        if made is not None and made.op_type == "DequantizeLinear":
            return x
        return to_fuse(x, scale, scale, zero_point, 0, 255)

    def to_fuse(y, step: float, *on_grid):
        return rounded(y, constant(step, numpy.float32), *on_grid)

    def quantize(y, step: float, *on_grid):
        scaled = op.Mul(y, constant(numpy.float32(1) / numpy.float32(step), numpy.float32))
        return rounded(scaled, constant(1, numpy.float32), *on_grid)

    def stored(x, scale: float, zero):
        """The integers of values on a grid; those that x was dequantized from, if it was."""
        made = x.producer()
        if made is not None and made.op_type == "DequantizeLinear":
            return made.inputs[0]
        return op.QuantizeLinear(x, constant(scale, numpy.float32), zero)

    def unfused(x, scale: float, zero_point: int):
        zero = integer(zero_point)
        q = stored(x, scale, zero)
        if not _of_convolution(q):
            return x
        return op.DequantizeLinear(op.Max(q, integer(0)), constant(scale, numpy.float32), zero)

    def concatenate(values, axis: int, scale: float, zero_point: int):
        step, zero = constant(scale, numpy.float32), integer(zero_point)
        return op.DequantizeLinear(op.Concat(*(stored(x, scale, zero) for x in values), axis=axis), step, zero)

    def integers(x, scale: float, zero_point: int):
        zero = integer(zero_point)
        return op.DequantizeLinear(stored(x, scale, zero), constant(1, numpy.float32), zero)

    def look_up(x, table, x_scale: float, x_zero_point: int, scale: float, zero_point: int):
        q = stored(x, x_scale, integer(x_zero_point))
        q = op.Cast(q, to=ir.DataType.INT32)
        if symmetric:
            q = op.Add(q, constant(128, numpy.int32))
            table = op.Sub(op.Cast(table, to=ir.DataType.INT32), constant(128, numpy.int32))
            table = op.Cast(table, to=ir.DataType.INT8)
        return op.DequantizeLinear(op.Gather(table, q), constant(scale, numpy.float32), integer(zero_point))

    def layer(x, weight, weight_scale, bias, bias_scale, x_scale: float, x_zero_point: int, geometry, *on_grid):
        return to_fuse(sums(x, weight, weight_scale, bias, bias_scale, geometry), on_grid[0], *on_grid)

    def sums(x, weight, weight_scale, bias, bias_scale, geometry):
        b = op.DequantizeLinear(bias, bias_scale, axis=0)
        w = op.DequantizeLinear(weight, weight_scale, axis=0 if geometry else 1)
        if geometry:
            return op.Conv(x, w, b, **attributes(geometry))
        return op.Gemm(x, w, b) if len(x.shape) == 2 else op.Add(op.MatMul(x, w), b)

    def last_layer(x, weight, weight_scale, bias, bias_scale, x_scale: float, x_zero_point: int, geometry):
        if symmetric:  # TensorRT has neither MatMulInteger nor ConvInteger
            return sums(x, weight, weight_scale, bias, bias_scale, geometry)
        zero = integer(x_zero_point)
        q, axes = stored(x, x_scale, zero), [-1, 1, 1] if geometry else [-1]
        exact = (
            op.ConvInteger(q, weight, zero, **attributes(geometry)) if geometry else op.MatMulInteger(q, weight, zero)
        )
        shape = op.Constant(value_ints=axes)
        exact = op.Add(exact, op.Reshape(bias, shape))
        return op.Mul(op.Cast(exact, to=ir.DataType.FLOAT), op.Reshape(bias_scale, shape))

    def attributes(geometry: list[int]) -> dict[str, Any]:
        s, p, d, groups = geometry[:2], geometry[2:4], geometry[4:6], geometry[6]
        return {"strides": s, "pads": [*p, *p], "dilations": d, "group": groups}

    def avg_pool2d(x, size, stride=(), padding=(0, 0), ceil_mode=False, count_include_pad=True, divisor=None):
        """As torch.onnx writes it, which leaves out a divisor: with one, the sums are a convolution with ones."""
        (size, padding), stride = _pairs(size, padding), _pairs(stride or size)[0]
        if divisor is None:
            shape = {"kernel_shape": size, "strides": stride, "pads": [*padding, *padding]}
            return op.AveragePool(x, **shape, ceil_mode=int(ceil_mode), count_include_pad=int(count_include_pad))
        sides = zip(x.shape[2:], size, stride, padding, strict=True)
        ends = [p + _beyond(side, k, s, p) * ceil_mode for side, k, s, p in sides]
        ones = constant(numpy.ones((x.shape[1], 1, *size)), numpy.float32)
        sums = op.Conv(x, ones, strides=stride, pads=[*padding, *ends], group=x.shape[1])
        return op.Div(sums, constant(divisor, numpy.float32))

    def pad(x, sides, mode="constant", value=None):
        """Zeros are put around integers where x has some: OpenVINO fails on channels of zeros with a zero point."""
        before, after = ([*sides[start::2], *[0] * (len(x.shape) - len(sides) // 2)][::-1] for start in (0, 1))
        ends, made = op.Constant(value_ints=[*before, *after]), x.producer()
        if mode != "constant" or value or made is None or made.op_type != "DequantizeLinear":
            return op.Pad(x, ends, constant(value or 0, numpy.float32), mode=PAD_MODES[mode])
        q, step, zero = made.inputs
        return op.DequantizeLinear(op.Pad(q, ends, zero), step, zero)

    qdq = torch.ops.qdq
    return {
        qdq.quantize.default: quantize,
        qdq.to_fuse.default: to_fuse,
        qdq.kept.default: kept,
        qdq.unfused.default: unfused,
        qdq.concatenate.default: concatenate,
        qdq.integers.default: integers,
        qdq.look_up.default: look_up,
        qdq.layer.default: layer,
        qdq.last_layer.default: last_layer,
        torch.ops.aten.avg_pool2d.default: avg_pool2d,
        torch.ops.aten.pad.default: pad,
    }


def _of_convolution(q: Any) -> bool:
    """Whether integers are the rounded output of a convolution."""
    made = q.producer()
    while made is not None and made.op_type in ("Clip", "QuantizeLinear"):
        made = made.inputs[0].producer()
    return made is not None and made.op_type == "Conv"


def _pairs(*values) -> list[list[int]]:
    """Each as two numbers: [n] stands for [n, n]."""
    return [[*value] * (2 if len(value) == 1 else 1) for value in values]


def _beyond(side: int, size: int, stride: int, padding: int) -> int:
    """How far the last window of a pool with ceil_mode reaches over the padded end; it has to start before that."""
    windows = math.ceil((side + 2 * padding - size) / stride)
    if windows * stride >= side + padding:
        windows -= 1
    return max(0, windows * stride + size - (side + 2 * padding))


def missing(*packages: str) -> str:
    """Which packages to install to write ONNX files, and to run them with `packages`; empty if all are installed."""
    absent = [name for name in ("onnx", "onnxscript", *packages) if not importlib.util.find_spec(name)]
    return f"needs {' and '.join(absent)}: pip install -r requirements-deploy.txt" if absent else ""


def onnx_model(graph: fx.GraphModule, images: Tensor, symmetric: bool = False) -> Any:
    """The ONNX model of a graph that QdqEngine converted.

    images: an example [N, 3, H, W]; the batch size stays free. symmetric: as the engine was.
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
            custom_translation_table=_translations(symmetric),
            dynamo=True,
            opset_version=18,
            verbose=False,
        )
    if written is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return written.model_proto
