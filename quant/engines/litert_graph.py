"""Build a graph of LiteRT's operators and the .tflite file that holds it, and run one.

The file is written with the schema that ai-edge-litert ships, by flatbuffers, without TensorFlow. Maps are stored in
the order N, H, W, C, the images and what the file returns, too.
"""

import functools
import hashlib
import importlib
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from quant.engines.nhwc_builder import Value, order, single
from utils.stderr import silenced

ALIGNMENT = 16
OPTIONS = {
    "ADD": "AddOptions",
    "SUB": "SubOptions",
    "MUL": "MulOptions",
    "DIV": "DivOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "GELU": "GeluOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "SOFTMAX": "SoftmaxOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "CONCATENATION": "ConcatenationOptions",
    "GATHER": "GatherOptions",
    "CAST": "CastOptions",
}
"""Tables of options, for the operators here that have one of their own."""
VERSIONS = {
    "ADD": 2,
    "SUB": 2,
    "MUL": 2,
    "MAXIMUM": 2,
    "MINIMUM": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 4,
    "DEQUANTIZE": 2,
    "QUANTIZE": 2,
    "PAD": 2,
    "PADV2": 2,
    "MAX_POOL_2D": 2,
    "CONCATENATION": 2,
    "TRANSPOSE": 2,
    "SLICE": 2,
    "SOFTMAX": 2,
    "GATHER": 2,
    "BATCH_MATMUL": 2,
}
"""The first version of an operator that takes int8, for older runtimes to tell; others are of version 1."""


@functools.cache
def schema() -> Any:
    """LiteRT's schema, imported when first needed: it is optional."""
    return importlib.import_module("ai_edge_litert.schema_py_generated")


class Graph:
    """The graph so far."""

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.buffers: list[Any] = [schema().BufferT()]
        self.kinds: list[str] = []
        self.inputs: list[int] = []
        self.outputs: list[int] = []
        self.stored: dict[str, int] = {}

    def input(self, shape: Sequence[int], scale: float | None = None, zero_point: int = 0) -> Value:
        """A new input; of a map, N, H, W, C."""
        value = self.value(shape, scale, zero_point)
        self.inputs.append(value.id)
        return value

    def output(self, value: Value) -> None:
        self.outputs.append(value.id)

    def value(
        self, shape: Sequence[int], scale: float | None = None, zero_point: int = 0, plain: bool = False
    ) -> Value:
        """A new value. plain: in torch's order of axes, even if it is a map."""
        stored, scale = [*shape] if plain else order(shape), single(scale)
        kind = numpy.dtype(numpy.float32 if scale is None else numpy.int8)
        return Value(self._tensor(stored, kind, scale, zero_point), tuple(shape), scale, zero_point)

    def of_int32(self, value: Value) -> Value:
        """A new value of the same shape, of plain int32."""
        shape = self.tensors[value.id].shape
        return Value(self._tensor(shape, numpy.dtype(numpy.int32)), value.shape)

    def constant(self, tensor: Tensor, scale: Tensor | float | None = None, zero_point: int = 0, axis: int = 0) -> int:
        """The id of a new constant, in the order of axes given. scale: one, or one for each index of `axis`."""
        numbers = tensor.detach().contiguous().numpy()
        scales = scale.detach().float().numpy() if isinstance(scale, Tensor) else scale
        return self._tensor(numbers.shape, numbers.dtype, scales, zero_point, axis, self._buffer(numbers.tobytes()))

    def node(self, kind: str, inputs: Sequence[int], output: Value, **options: Any) -> None:
        """A new node: CONV_2D, say."""
        if kind not in self.kinds:
            self.kinds.append(kind)
        s, named = schema(), OPTIONS.get(kind)
        self.operators.append(
            s.OperatorT(
                opcodeIndex=self.kinds.index(kind),
                inputs=numpy.array(inputs, numpy.int32),
                outputs=numpy.array([output.id], numpy.int32),
                builtinOptionsType=getattr(s.BuiltinOptions, named) if named else 0,
                builtinOptions=getattr(s, f"{named}T")(**options) if named else None,
            )
        )

    def _tensor(self, shape, kind: numpy.dtype, scale=None, zero_point: int = 0, axis: int = 0, buffer: int = 0) -> int:
        s, quantization = schema(), None
        if scale is not None:
            scales = numpy.atleast_1d(numpy.asarray(scale, numpy.float32))
            zero_points = numpy.full(len(scales), zero_point, numpy.int64)
            quantization = s.QuantizationParametersT(scale=scales, zeroPoint=zero_points, quantizedDimension=axis)
        self.tensors.append(
            s.TensorT(
                shape=numpy.array(shape, numpy.int32),
                type=getattr(s.TensorType, kind.name.upper()),
                buffer=buffer,
                name=f"value_{len(self.tensors)}",
                quantization=quantization,
                hasRank=True,
            )
        )
        return len(self.tensors) - 1

    def _buffer(self, content: bytes) -> int:
        key = hashlib.sha256(content).hexdigest()
        if key not in self.stored:
            self.stored[key] = len(self.buffers)
            self.buffers.append(_aligned(content))
        return self.stored[key]

    def _signature(self) -> Any:
        """Names for the input and the output, by which the file can be asked."""
        s = schema()
        named = []
        for name, (index,) in (("images", self.inputs), ("logits", self.outputs)):
            self.tensors[index].name = name
            named.append([s.TensorMapT(name, index)])
        return s.SignatureDefT(*named, "serving_default", 0)

    def program(self, texts: dict[str, str] | None = None) -> bytes:
        """The .tflite file. texts: of its metadata, by name."""
        import flatbuffers

        s = schema()
        metadata = [s.MetadataT(name, self._buffer(text.encode())) for name, text in (texts or {}).items()]
        main = s.SubGraphT(
            tensors=self.tensors,
            inputs=numpy.array(self.inputs, numpy.int32),
            outputs=numpy.array(self.outputs, numpy.int32),
            operators=self.operators,
            name="main",
        )
        model = s.ModelT(
            version=3,
            operatorCodes=[_code(kind) for kind in self.kinds],
            subgraphs=[main],
            description="integers",
            buffers=self.buffers,
            metadata=metadata,
            signatureDefs=[self._signature()] if len(self.inputs) == 1 else [],
        )
        builder = flatbuffers.Builder(sum(len(buffer.data or ()) for buffer in self.buffers) + 2**16)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _code(kind: str) -> Any:
    """An operator's number, also where old runtimes read it, which know the first 127."""
    number = getattr(schema().BuiltinOperator, kind)
    return schema().OperatorCodeT(min(number, 127), None, VERSIONS.get(kind, 1), number)


def _aligned(content: bytes) -> Any:
    """A buffer as the schema wants it, at a multiple of 16: the object API does not see to that."""

    buffer: Any = schema().BufferT

    class Aligned(buffer):
        def Pack(self, builder):
            builder.StartVector(1, len(content), ALIGNMENT)
            builder.head -= len(content)
            builder.Bytes[builder.head : builder.head + len(content)] = content
            data = builder.EndVector()
            schema().BufferStart(builder)
            schema().BufferAddData(builder, data)
            return schema().BufferEnd(builder)

    return Aligned(data=content)


class Loaded:
    """A file as a function: tensors in torch's order of axes -> its outputs, in that order, too.

    torch.get_num_threads() threads compute it, read at each call. kernels: a name of LiteRT's OpResolverType; AUTO:
    XNNPACK's, and LiteRT's own where XNNPACK has none.
    """

    def __init__(self, program: bytes, kernels: str = "AUTO"):
        self.program, self.kernels, self.threads = program, kernels, 0
        self._load()

    def _load(self) -> None:
        package = importlib.import_module("ai_edge_litert.interpreter")
        self.threads = torch.get_num_threads()
        with silenced():  # it says that there is XNNPACK
            self.interpreter = package.Interpreter(
                model_content=self.program,
                num_threads=self.threads,
                experimental_op_resolver_type=package.OpResolverType[self.kernels],
            )
            self.interpreter.allocate_tensors()
        self.inputs, self.outputs = (
            [one["index"] for one in details]
            for details in (self.interpreter.get_input_details(), self.interpreter.get_output_details())
        )

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        if self.threads != torch.get_num_threads():
            self._load()
        for index, value in zip(self.inputs, inputs, strict=True):
            stored = value.permute(0, 2, 3, 1) if value.ndim == 4 else value
            self.interpreter.set_tensor(index, stored.contiguous().numpy())
        self.interpreter.invoke()
        found = [torch.from_numpy(self.interpreter.get_tensor(index)) for index in self.outputs]
        return [value.permute(0, 3, 1, 2) if value.ndim == 4 else value for value in found]
