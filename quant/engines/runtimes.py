"""Other people's engines: ONNX Runtime and OpenVINO, on the ONNX file that engines/onnx_qdq.py writes.

They choose and fuse their kernels by themselves; how often they predict what the simulation predicts is measured and
printed like everything else. Both are optional: requirements-deploy.txt.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from quant.engines.base import IntegerModel
from quant.engines.onnx_qdq import QdqEngine, missing, onnx_model
from quant.engines.onnx_sessions import Session, onnxruntime_session, openvino_session

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


def onnxruntime_engine() -> Runtime:
    return Runtime("onnxruntime", onnxruntime_session)


def openvino_engine() -> Runtime:
    return Runtime("openvino", openvino_session)
