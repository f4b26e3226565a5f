"""Third-party engines: ONNX Runtime and OpenVINO. They run the ONNX model that engines/onnx_qdq.py writes.

They choose and fuse their kernels themselves, so their integers are not guaranteed to be those of the simulation. How
often they agree with it is measured and printed, as for every engine. Both are optional: requirements-deploy.txt.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from quant.engines.base import EngineFailed, IntegerModel
from quant.engines.onnx_qdq import QdqEngine
from quant.engines.onnx_sessions import Session, onnxruntime_session, openvino_session
from quant.engines.onnx_writer import missing, onnx_model
from utils.errors import first_line

MAX_SESSIONS = 4
"""How many sessions a model keeps. Each shape of images and number of threads needs its own."""


class Runtime(QdqEngine):
    """An engine that runs models in another package. open_session(ONNX bytes, shape of images, threads) -> session."""

    layout = torch.contiguous_format
    multiplies_like = "x86"

    def __init__(self, name: str, open_session: Callable[[bytes, torch.Size, int], Session]):
        super().__init__()
        self.name, self.open_session = name, open_session

    def missing(self) -> str:
        return missing(self.name)

    def finalize(self, model: IntegerModel) -> IntegerModel:
        return RuntimeModel(self, model)


class RuntimeModel(IntegerModel):
    """An integer model that runs in another package. It uses torch.get_num_threads() threads, read at each call.

    Raises EngineFailed, a line with the first of the package's own, for a model that the package refuses.
    """

    runs_by_operator = False
    engine: Runtime

    def __init__(self, engine: Runtime, model: IntegerModel):
        super().__init__(engine, model.graph, model.layers, model.operators, model.float_layers, model.node_map)
        self.files: dict[torch.Size, bytes] = {}
        self.sessions: dict[tuple[torch.Size, int], Session] = {}

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        with _one_line(self.engine.name):
            return self._session(images.shape, torch.get_num_threads())(images)

    def compile_for(self, images: Tensor) -> Session:
        """The session for such images. It has run once: what compiles may still not run."""
        with _one_line(self.engine.name):
            session = self._session(images.shape, torch.get_num_threads())
            session(images)
            return session

    def _session(self, shape: torch.Size, threads: int) -> Session:
        if (shape, threads) not in self.sessions:
            if len(self.sessions) == MAX_SESSIONS:
                self.sessions.pop(next(iter(self.sessions)))
            self.sessions[shape, threads] = self.engine.open_session(self._file(shape[1:]), shape, threads)
        return self.sessions[shape, threads]

    def _file(self, shape: torch.Size) -> bytes:
        """The ONNX file for images [N, *shape]; N is free."""
        if shape not in self.files:
            self.files[shape] = onnx_model(self.graph, torch.zeros(2, *shape)).SerializeToString()
        return self.files[shape]


@contextlib.contextmanager
def _one_line(engine: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise EngineFailed(f"engines: {engine} cannot run this model: {first_line(error, 200)}") from error


def onnxruntime_engine() -> Runtime:
    return Runtime("onnxruntime", onnxruntime_session)


def openvino_engine() -> Runtime:
    return Runtime("openvino", openvino_session)
