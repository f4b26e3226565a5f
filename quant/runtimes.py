"""Other people's engines: ONNX Runtime and OpenVINO, on the ONNX file that quant/qdq.py writes.

They choose and fuse their kernels by themselves; how often they predict what the simulation predicts is measured and
printed like everything else. Both are optional: requirements-deploy.txt.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quant.convert import IntegerModel
from quant.qdq import QdqEngine, missing, onnx_model

Session = Callable[[Tensor], Tensor]
KEPT = 4
"""Sessions a model keeps: one for each shape of images."""


class Runtime(QdqEngine):
    """A package that runs ONNX files; open_session(file's bytes, shape of images, threads) opens one."""

    layout = torch.contiguous_format
    multiplies_like = "x86"

    def __init__(self, name: str, open_session: Callable[[bytes, torch.Size, int], Session]):
        self.name, self.open_session = name, open_session

    def missing(self) -> str:
        return missing(self.name)

    def finished(self, model: IntegerModel) -> IntegerModel:
        return RuntimeModel(self, model)


class RuntimeModel(IntegerModel):
    """An integer model run by a package, in as many threads as torch has when it first meets a shape of images."""

    def __init__(self, engine: Runtime, written: IntegerModel):
        super().__init__(engine, written.graph, written.layers, written.operators, written.float_layers, written.twins)
        self.files: dict[torch.Size, bytes] = {}
        self.sessions: dict[tuple[torch.Size, int], Session] = {}

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        return self._session(images.shape, torch.get_num_threads())(images)

    def frozen(self, images: Tensor) -> Session:
        return self._session(images.shape, torch.get_num_threads())

    def _session(self, shape: torch.Size, threads: int) -> Session:
        if (shape, threads) not in self.sessions:
            if len(self.sessions) == KEPT:
                self.sessions.pop(next(iter(self.sessions)))
            self.sessions[shape, threads] = self.engine.open_session(self._file(shape[1:]), shape, threads)
        return self.sessions[shape, threads]

    def _file(self, shape: torch.Size) -> bytes:
        """The ONNX file for images of this shape."""
        if shape not in self.files:
            self.files[shape] = onnx_model(self.graph, torch.zeros(2, *shape)).SerializeToString()
        return self.files[shape]


def onnxruntime_session(file: bytes, shape: torch.Size, threads: int) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_free_dimension_override_by_name("batch", shape[0])
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.contiguous().numpy()})[0])


def openvino_session(file: bytes, shape: torch.Size, threads: int) -> Session:
    import openvino

    return compiled(openvino.Core().read_model(model=file), shape, threads)


def compiled(model: Any, shape: torch.Size, threads: int) -> Session:
    """A session of an openvino.Model."""
    import openvino

    model.reshape({"images": list(shape)})
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    return lambda images: torch.from_numpy(request.infer({"images": images.contiguous().numpy()})["logits"].copy())


def onnxruntime_engine() -> Runtime:
    return Runtime("onnxruntime", onnxruntime_session)


def openvino_engine() -> Runtime:
    return Runtime("openvino", openvino_session)
