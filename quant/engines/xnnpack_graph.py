"""Build a graph of XNNPACK's operators, and the ExecuTorch program (.pte) whose one delegate runs it.

ExecuTorch's own lowering retraces a model dozens of times, puts transposes around what it does not know, and decides by
itself what to fuse. The graph is written directly instead, in the format of executorch.backends.xnnpack.serialization:
maps in the order N, H, W, C throughout, and each integer's scale as wanted.
"""

import contextlib
import functools
import hashlib
import importlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quant.engines.nhwc_builder import Value, order, single

Bounds = tuple[float, float] | None
"""The least and the greatest number that an operator returns."""
ABSENT = 2**32 - 1
INPUT, OUTPUT = 1, 2
ALIGNMENT = 16


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """ExecuTorch's imports without the warnings of other packages that they raise."""
    logger = logging.getLogger("torch.utils._pytree")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def imported(name: str) -> Any:
    """A module of executorch, imported when first needed: it takes seconds, and is optional."""
    with quiet():
        return importlib.import_module(f"executorch.{name}")


@dataclass
class Graph:
    """The graph so far. Its inputs are given first, in the order in which the program takes them."""

    values: list[Any] = field(default_factory=list)
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, bytes] = field(default_factory=dict)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.schema = imported("backends.xnnpack.serialization.xnnpack_graph_schema")
        self.data = [self.schema.ConstantDataOffset(0, 0)]

    def input(self, shape: Sequence[int], scale: float | None = None, zero_point: int = 0) -> Value:
        """A new input, in torch's order of axes."""
        scale = single(scale)
        added = self._value([*shape], scale, zero_point, external=len(self.inputs), flags=INPUT)
        self.inputs.append(Value(added, tuple(shape), scale, zero_point))
        return self.inputs[-1]

    def output(self, value: Value, number_of_inputs: int = 1) -> None:
        """Make a value, in torch's order of axes, the next output of the program."""
        tensor = self.values[value.id].xvalue_union
        tensor = getattr(tensor, "tensor_value", tensor)
        tensor.external_id, tensor.flags = number_of_inputs + len(self.outputs), OUTPUT
        self.outputs.append(value)

    def value(
        self, shape: Sequence[int], scale: float | None = None, zero_point: int = 0, plain: bool = False
    ) -> Value:
        """A new value. plain: in torch's order of axes, even if it is a map."""
        stored, scale = [*shape] if plain else order(shape), single(scale)
        return Value(self._value(stored, scale, zero_point), tuple(shape), scale, zero_point)

    def constant(self, tensor: Tensor, scale: Tensor | float | None = None, zero_point: int = 0, axis: int = 0) -> int:
        """The id of a new constant, in the order of axes given. scale: one of int8, or one for each index of `axis`."""
        tensor = tensor.detach().contiguous()
        kinds = self.schema.XNNDatatype
        types = {
            (torch.float32, False): kinds.xnn_datatype_fp32,
            (torch.int8, False): kinds.xnn_datatype_qint8,
            (torch.int8, True): kinds.xnn_datatype_qcint8,
            (torch.int32, True): kinds.xnn_datatype_qcint32,
        }
        datatype = types[tensor.dtype, isinstance(scale, Tensor)]
        if isinstance(scale, Tensor):
            where = self._stored(scale.float(), "scale_")
            quantization = self.schema.PerChannelQuant([], axis, where, scale.numel())
        else:
            quantization = None if scale is None else self.schema.PerTensorQuant(scale, zero_point)
        return self._define(datatype, [*tensor.shape], quantization, buffer=self._stored(tensor))

    def node(self, kind: str, clamp: Bounds = None, **arguments: Any) -> None:
        """A new node: XNNConv2d, say. clamp: the least and the greatest number that it returns."""
        union = getattr(self.schema, kind)(flags=0, **arguments)
        bounds = None
        if clamp is not None:
            texts = [text if math.isinf(value) else value for value, text in zip(clamp, ("-inf", "+inf"), strict=True)]
            bounds = self.schema.OutputMinMax(*texts)
        self.nodes.append(self.schema.XNode(union, 65535, bounds))

    def _value(self, dims, scale, zero_point, external: int = ABSENT, flags: int = 0) -> int:
        kinds = self.schema.XNNDatatype
        if scale is None:
            return self._define(kinds.xnn_datatype_fp32, dims, None, external=external, flags=flags)
        quantization = self.schema.PerTensorQuant(scale, zero_point)
        return self._define(kinds.xnn_datatype_qint8, dims, quantization, external=external, flags=flags)

    def _define(self, datatype, dims, quantization, buffer: int = 0, external: int = ABSENT, flags: int = 0) -> int:
        number = len(self.values)
        tensor = self.schema.XNNTensorValue(datatype, len(dims), dims, buffer, external, flags, number)
        if quantization is not None:
            tensor = self.schema.XNNQuantizedTensorValue(tensor, quantization)
        self.values.append(self.schema.XValue(tensor))
        return number

    def _stored(self, tensor: Tensor, prefix: str = "") -> int:
        content = tensor.contiguous().numpy().tobytes()
        key = prefix + hashlib.sha256(content).hexdigest()
        self.constants[key] = content
        self.data.append(self.schema.ConstantDataOffset(2**64 - 1, len(content), key))
        return len(self.data) - 1

    def program(self) -> bytes:
        """The .pte file: one method "forward", one delegate."""
        inputs, outputs = [one.id for one in self.inputs], [one.id for one in self.outputs]
        graph = self.schema.XNNGraph(
            "0", self.nodes, self.values, len(inputs) + len(outputs), inputs, outputs, self.data
        )
        serialize = imported("backends.xnnpack.serialization.xnnpack_graph_serialize").serialize_xnnpack_binary
        with quiet():
            return container(serialize(graph, bytearray()), self.constants, self.inputs, self.outputs)


def container(delegate: bytes, constants: dict[str, bytes], inputs: list[Value], outputs: list[Value]) -> bytes:
    """An ExecuTorch program that hands its inputs to one XNNPACK delegate and returns what that computes."""
    s, serialization = imported("exir.schema"), imported("exir._serialize")
    store = imported("exir._serialize._named_data_store").NamedDataStore()
    for key, content in constants.items():
        store.add_named_data(key, content, ALIGNMENT)
    values, end = [], 0
    for value in (*inputs, *outputs):
        where = s.AllocationDetails(memory_id=1, memory_offset_low=end, memory_offset_high=0)
        values.append(s.EValue(_tensor(s, value, where)))
        size = math.prod(value.shape) * (4 if value.scale is None else 1)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    given, made = [*range(len(inputs))], [*range(len(inputs), len(values))]
    reference = s.BackendDelegateDataReference(s.DataLocation.INLINE, 0)
    call = s.Instruction(s.DelegateCall(0, [*given, *made]))
    plan = s.ExecutionPlan(
        name="forward",
        container_meta_type=s.ContainerMetadata("", ""),
        values=values,
        inputs=given,
        outputs=made,
        chains=[s.Chain(inputs=[], outputs=[], instructions=[call], stacktrace=None)],
        operators=[],
        delegates=[s.BackendDelegate("XnnpackBackend", reference, [])],
        non_const_buffer_sizes=[0, end],
    )
    program = s.Program(
        version=0,
        execution_plan=[plan],
        constant_buffer=[s.Buffer(b"")],
        backend_delegate_data=[s.BackendDelegateInlineData(delegate)],
        segments=[],
        constant_segment=s.SubsegmentOffsets(0, []),
    )
    file = serialization._PTEFile(program=program, named_data=store.get_named_data_store_output())
    return bytes(serialization._serialize_pte_binary(file, extract_delegate_segments=True))


def _tensor(s: Any, value: Value, where: Any) -> Any:
    kinds = imported("exir.scalar_type").ScalarType
    return s.Tensor(
        scalar_type=kinds.FLOAT if value.scale is None else kinds.CHAR,
        storage_offset=0,
        sizes=[*value.shape],
        dim_order=[*range(len(value.shape))],
        requires_grad=False,
        layout=0,
        data_buffer_idx=0,
        allocation_info=where,
        shape_dynamism=s.TensorShapeDynamism.STATIC,
    )


class Loaded:
    """A program as a function: tensors -> its outputs, which the next call overwrites.

    torch.get_num_threads() threads compute it, read at each call. A module that was loaded keeps a pointer to the
    threads that there were, which is gone when their number changes: it is loaded again then.
    """

    changes = 0
    """How often the number of threads changed in this process."""

    def __init__(self, program: bytes):
        self.program = program  # the module reads it, and does not hold it
        self._load()

    def _load(self) -> None:
        _set_threads()
        self.module, self.loaded_at = runtime()._load_for_executorch_from_buffer(self.program), Loaded.changes

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        _set_threads()
        if self.loaded_at != Loaded.changes:
            self._load()
        return self.module.forward([value.contiguous() for value in inputs])


def _set_threads() -> None:
    if runtime()._threadpool_get_thread_count() != torch.get_num_threads():
        with contextlib.redirect_stderr(io.StringIO()):  # it says so
            runtime()._unsafe_reset_threadpool(torch.get_num_threads())
        Loaded.changes += 1


@functools.cache
def runtime() -> Any:
    """ExecuTorch's runtime."""
    portable = imported("extension.pybindings.portable_lib")
    with contextlib.redirect_stderr(io.StringIO()):  # what it prints of the processor when it is first used
        portable._threadpool_get_thread_count()
    return portable
