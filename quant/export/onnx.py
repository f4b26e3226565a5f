"""Exports the integer model as an ONNX file in QDQ format."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import fx

from quant.core.quantizer import ActivationQuantizer
from quant.core.symmetric import check_symmetric
from quant.engines.base import IntegerModel
from quant.engines.convert import convert
from quant.engines.onnx_qdq import QdqEngine
from quant.engines.onnx_writer import missing, onnx_model
from quant.export.onnx_check import check_by_running
from quant.graph.views import quantizers
from utils.errors import UserError
from utils.files import write_atomically


def check_onnx(key: str) -> None:
    """Raise UserError, naming the setting `key`, if the packages that write ONNX files are not installed."""
    if missing():
        raise UserError(f"{key}: an ONNX file {missing()}")


def export_onnx(
    prepared: fx.GraphModule, file: Path, image_size: int, info: dict[str, Any], channels: int = 3
) -> IntegerModel:
    """Write the integer model of a prepared one as an ONNX file, and check it with ONNX Runtime if that is installed.

    Input "images": normalized float32 [N, channels, image_size, image_size], any N. Output "logits": float32
    [N, classes]. `info` becomes the file's metadata: text as it is, everything else as JSON. Returns the integer model.
    Raises UserError if a quantizer has not been calibrated, or if ONNX Runtime computes another function.
    """
    import onnx

    symmetric = _is_symmetric(prepared)
    model = convert(prepared, QdqEngine(symmetric))
    proto = onnx_model(model.graph, torch.zeros(2, channels, image_size, image_size), symmetric)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in info.items()}
    onnx.helper.set_model_props(proto, texts)
    onnx.checker.check_model(proto, full_check=True)
    if not missing("onnxruntime"):
        check_by_running(proto, model, image_size, symmetric, channels)
    write_atomically(file, lambda part: onnx.save(proto, part))
    return model


def _is_symmetric(prepared: fx.GraphModule) -> bool:
    """Whether quant.symmetric_activations is set. Raises UserError if it is and a grid has found a zero point."""
    activations = [q for q in quantizers(prepared).values() if isinstance(q, ActivationQuantizer) and q.symmetric]
    for quantizer in activations:
        check_symmetric(quantizer.grid(), type(quantizer).__name__)
    return bool(activations)
