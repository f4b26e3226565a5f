"""Exports the integer model as an ONNX file in QDQ format."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from quant.engines.base import IntegerModel
from quant.engines.convert import convert
from quant.engines.onnx_qdq import QdqEngine
from quant.engines.onnx_sessions import onnxruntime_session
from quant.engines.onnx_writer import missing, onnx_model
from utils.errors import UserError
from utils.files import write_atomically


def check_onnx(key: str) -> None:
    """Raise UserError, naming the setting `key`, if the packages that write ONNX files are not installed."""
    if missing():
        raise UserError(f"{key}: an ONNX file {missing()}")


def export_onnx(prepared: fx.GraphModule, file: Path, image_size: int, info: dict[str, Any]) -> IntegerModel:
    """Write the integer model of a prepared one as an ONNX file, and check it with ONNX Runtime if that is installed.

    Input "images": normalized float32 [N, 3, image_size, image_size], any N. Output "logits": float32 [N, classes].
    `info` becomes the file's metadata: text as it is, everything else as JSON. Returns the integer model. Raises
    UserError if a quantizer has not been calibrated, or if ONNX Runtime computes other logits.
    """
    import onnx

    model = convert(prepared, QdqEngine())
    proto = onnx_model(model.graph, torch.zeros(2, 3, image_size, image_size))
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in info.items()}
    onnx.helper.set_model_props(proto, texts)
    onnx.checker.check_model(proto, full_check=True)
    _check_by_running(proto.SerializeToString(), model, torch.randn(2, 3, image_size, image_size))
    write_atomically(file, lambda part: onnx.save(proto, part))
    return model


def _check_by_running(file: bytes, model: IntegerModel, images: Tensor) -> None:
    """Raise UserError if ONNX Runtime's logits are off by more than 10 % of the largest; skipped if not installed."""
    if missing("onnxruntime"):
        return
    ours, theirs = model(images), onnxruntime_session(file, images.shape, 1)(images)
    off = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-30))
    if off > 0.1:
        raise UserError(f"export: ONNX Runtime's logits of the file are off by {100 * off:.0f} % of the largest")
