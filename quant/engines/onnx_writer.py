"""Write a graph that engines/onnx_qdq.py made as an ONNX file.

`Translation` writes the operators of engines/qdq_operators.py, and torch.onnx the rest.
"""

import contextlib
import functools
import importlib.util
import io
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import Tensor, fx

PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""torch's names of the ways to pad, and ONNX's."""


class Translation:
    """Writes the operators of engines/qdq_operators.py, and those that torch.onnx writes wrongly, in ONNX's.

    symmetric: write int8 for uint8, and for each integer the one that is less by 128.
    """

    def __init__(self, symmetric: bool):
        import onnx_ir
        from onnxscript import opset18

        self.symmetric = symmetric
        self.op: Any = opset18  # its functions are typed by their ONNX tensors, and called with what is traced
        self.ir: Any = onnx_ir

    def constant(self, value: Any, kind):
        return self.op.Constant(value=self.ir.tensor(numpy.array(value, kind)))

    def integer(self, q: int):
        return self.constant(q - 128, numpy.int8) if self.symmetric else self.constant(q, numpy.uint8)

    def rounded(self, y, step, scale: float, zero_point: int, lo: int, hi: int):
        """Integers of y / step, as values on the grid."""
        zero = self.integer(zero_point)
        q = self.op.QuantizeLinear(y, step, zero)
        if (lo, hi) != (0, 255):
            q = self.op.Clip(q, self.integer(lo), self.integer(hi))
        return self.op.DequantizeLinear(q, self.constant(scale, numpy.float32), zero)

    def kept(self, x, scale: float, zero_point: int):
        made = x.producer()
        if made is not None and made.op_type == "DequantizeLinear":
            return x
        return self.to_fuse(x, scale, scale, zero_point, 0, 255)

    def to_fuse(self, y, step: float, *on_grid):
        return self.rounded(y, self.constant(step, numpy.float32), *on_grid)

    def quantize(self, y, step: float, *on_grid):
        """Round is not left to QuantizeLinear: OpenVINO would fold the multiplication into it, and round after it has
        added the zero point, where sums near a tie have lost their last bits."""
        scaled = self.op.Mul(y, self.constant(numpy.float32(1) / numpy.float32(step), numpy.float32))
        return self.rounded(self.op.Round(scaled), self.constant(1, numpy.float32), *on_grid)

    def stored(self, x, scale: float, zero):
        """The integers of values on a grid; those that x was dequantized from, if it was."""
        made = x.producer()
        if made is not None and made.op_type == "DequantizeLinear":
            return made.inputs[0]
        return self.op.QuantizeLinear(x, self.constant(scale, numpy.float32), zero)

    def unfused(self, x, scale: float, zero_point: int):
        """The larger of x and what is below all values of its grid, which is x.

        Where QuantizeLinear is fused, OpenVINO computes q * scale - zero_point * scale behind it, rounded once. There,
        a Max with 0 of the integers comes first. With scale 1 both are exact.
        """
        zero = self.integer(zero_point)
        q = self.stored(x, scale, zero)
        if scale != 1 and _is_fused(q):
            x = self.op.DequantizeLinear(self.op.Max(q, self.integer(0)), self.constant(scale, numpy.float32), zero)
        return self.op.Max(x, self.constant(-scale * (zero_point + 1), numpy.float32))

    def concatenate(self, values, axis: int, scale: float, zero_point: int):
        step, zero = self.constant(scale, numpy.float32), self.integer(zero_point)
        return self.op.DequantizeLinear(
            self.op.Concat(*(self.stored(x, scale, zero) for x in values), axis=axis), step, zero
        )

    def integers(self, x, scale: float, zero_point: int):
        zero = self.integer(zero_point)
        return self.op.DequantizeLinear(self.stored(x, scale, zero), self.constant(1, numpy.float32), zero)

    def look_up(self, x, table, x_scale: float, x_zero_point: int, scale: float, zero_point: int):
        q = self.stored(x, x_scale, self.integer(x_zero_point))
        q = self.op.Cast(q, to=self.ir.DataType.INT32)
        if self.symmetric:
            q = self.op.Add(q, self.constant(128, numpy.int32))
            table = self.op.Sub(self.op.Cast(table, to=self.ir.DataType.INT32), self.constant(128, numpy.int32))
            table = self.op.Cast(table, to=self.ir.DataType.INT8)
        return self.op.DequantizeLinear(
            self.op.Gather(table, q), self.constant(scale, numpy.float32), self.integer(zero_point)
        )

    def layer(self, x, weight, weight_scale, bias, bias_scale, x_scale: float, x_zero_point: int, geometry, *on_grid):
        return self.to_fuse(self.sums(x, weight, weight_scale, bias, bias_scale, geometry), on_grid[0], *on_grid)

    def sums(self, x, weight, weight_scale, bias, bias_scale, geometry):
        b = self.op.DequantizeLinear(bias, bias_scale, axis=0)
        w = self.op.DequantizeLinear(weight, weight_scale, axis=0 if geometry else 1)
        if geometry:
            return self.op.Conv(x, w, b, **self.attributes(geometry))
        return self.op.Gemm(x, w, b) if len(x.shape) == 2 else self.op.Add(self.op.MatMul(x, w), b)

    def last_layer(self, x, weight, weight_scale, bias, bias_scale, x_scale: float, x_zero_point: int, geometry):
        if self.symmetric:  # TensorRT has neither MatMulInteger nor ConvInteger
            return self.sums(x, weight, weight_scale, bias, bias_scale, geometry)
        zero = self.integer(x_zero_point)
        q, axes = self.stored(x, x_scale, zero), [-1, 1, 1] if geometry else [-1]
        exact = (
            self.op.ConvInteger(q, weight, zero, **self.attributes(geometry))
            if geometry
            else self.op.MatMulInteger(q, weight, zero)
        )
        shape = self.op.Constant(value_ints=axes)
        exact = self.op.Add(exact, self.op.Reshape(bias, shape))
        return self.op.Mul(self.op.Cast(exact, to=self.ir.DataType.FLOAT), self.op.Reshape(bias_scale, shape))

    def attributes(self, geometry: list[int]) -> dict[str, Any]:
        s, p, d, groups = geometry[:2], geometry[2:4], geometry[4:6], geometry[6]
        return {"strides": s, "pads": [*p, *p], "dilations": d, "group": groups}

    def avg_pool2d(self, x, size, stride=(), padding=(0, 0), ceil_mode=False, count_include_pad=True, divisor=None):
        """As torch.onnx writes it, which leaves out a divisor: with one, the sums are a convolution with ones."""
        (size, padding), stride = _pairs(size, padding), _pairs(stride or size)[0]
        if divisor is None:
            shape = {"kernel_shape": size, "strides": stride, "pads": [*padding, *padding]}
            return self.op.AveragePool(x, **shape, ceil_mode=int(ceil_mode), count_include_pad=int(count_include_pad))
        sides = zip(x.shape[2:], size, stride, padding, strict=True)
        ends = [p + _beyond(side, k, s, p) * ceil_mode for side, k, s, p in sides]
        ones = self.constant(numpy.ones((x.shape[1], 1, *size)), numpy.float32)
        sums = self.op.Conv(x, ones, strides=stride, pads=[*padding, *ends], group=x.shape[1])
        return self.op.Div(sums, self.constant(divisor, numpy.float32))

    def pad(self, x, sides, mode="constant", value=None):
        """Zeros are put around integers where x has some: OpenVINO fails on channels of zeros with a zero point."""
        before, after = ([*sides[start::2], *[0] * (len(x.shape) - len(sides) // 2)][::-1] for start in (0, 1))
        ends, made = self.op.Constant(value_ints=[*before, *after]), x.producer()
        if mode != "constant" or value or made is None or made.op_type != "DequantizeLinear":
            return self.op.Pad(x, ends, self.constant(value or 0, numpy.float32), mode=PAD_MODES[mode])
        q, step, zero = made.inputs
        return self.op.DequantizeLinear(self.op.Pad(q, ends, zero), step, zero)

    def table(self) -> dict:
        """For each operator that torch.onnx does not know, or writes wrongly: the function that writes it."""
        qdq = torch.ops.qdq
        methods: dict[Any, Callable] = {
            qdq.quantize.default: self.quantize,
            qdq.to_fuse.default: self.to_fuse,
            qdq.kept.default: self.kept,
            qdq.unfused.default: self.unfused,
            qdq.concatenate.default: self.concatenate,
            qdq.integers.default: self.integers,
            qdq.look_up.default: self.look_up,
            qdq.layer.default: self.layer,
            qdq.last_layer.default: self.last_layer,
            torch.ops.aten.avg_pool2d.default: self.avg_pool2d,
            torch.ops.aten.pad.default: self.pad,
        }
        return {operator: _function(method) for operator, method in methods.items()}


def _function(method: Callable) -> Callable:
    """A method as a plain function: torch.onnx notes the signature on what it is given."""

    @functools.wraps(method)
    def write(*args, **kwargs):
        return method(*args, **kwargs)

    return write


def _is_fused(q: Any) -> bool:
    """Whether integers are rounded together with the operator before: all but those of `quantize`."""
    made = q.producer()
    while made is not None and made.op_type == "Clip":
        made = made.inputs[0].producer()
    if made is None or made.op_type != "QuantizeLinear":
        return False
    before = made.inputs[0].producer()
    return before is None or before.op_type != "Round"


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
            custom_translation_table=Translation(symmetric).table(),
            dynamo=True,
            opset_version=18,
            verbose=False,
        )
    if written is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return _with_named_batch(written.model_proto)


def _with_named_batch(proto: Any) -> Any:
    """The same ONNX model, whose number of images is called "batch" where torch has a symbol for it, s77 say."""
    symbol = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    word = re.compile(rf"\b{re.escape(symbol)}\b")
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = word.sub("batch", dimension.dim_param)
    return proto
