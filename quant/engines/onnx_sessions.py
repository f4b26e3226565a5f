"""Sessions of ONNX Runtime and OpenVINO on an ONNX file in memory.

file: the bytes of the ONNX file. shape: the shape of the images, [N, 3, H, W]. threads: how many the session uses.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quant.engines import openvino_trial

Session = Callable[[Tensor], Tensor]
"""float images of the session's shape -> float logits."""


def onnxruntime_session(file: bytes, shape: torch.Size, threads: int) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_free_dimension_override_by_name("batch", shape[0])
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.contiguous().numpy()})[0])


@functools.cache
def openvino_core() -> Any:
    """The openvino.Core that all sessions of the process share.

    A Core replaces the signal stack of the thread and puts the earlier one back when it is freed. Two Cores that are
    not freed in the reverse order leave a stack that is gone, on which the next Ctrl-C is a segmentation fault.
    """
    import openvino

    return openvino.Core()


def openvino_session(file: bytes, shape: torch.Size, threads: int) -> Session:
    """Raises RuntimeError for a model on which OpenVINO's compiler crashes."""
    openvino_trial.check_survived(file, shape, threads)
    return openvino_model_session(openvino_core().read_model(model=file), shape, threads)


def openvino_model_session(model: Any, shape: torch.Size, threads: int) -> Session:
    """A session of an openvino.Model, compiled for images of this shape."""
    request = openvino_trial.request(openvino_core(), model, shape, threads)
    return lambda images: torch.from_numpy(request.infer({"images": images.contiguous().numpy()})["logits"].copy())
