"""Writes an integer model to a .npz file: plain arrays and a JSON text, no pickle, weights at their own bits.

    uint8, int8, int16, int32, float32    all tensors of that dtype, one after the other
    model                                 JSON: {"format", "info", "input", "nodes", "output"}

uint8 are packed weights, int8 those of channels that are not on their quantizer's grid, int16 tables of functions,
int32 biases, float32 scales and the tensors of what runs in float. A node is [name, operator, args, kwargs], in the
encoding of export/npz/codec.py; "input" is the name of the images, and "output" refers to the logits.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy
from torch import fx

from quant.engines.base import IntegerModel
from quant.engines.convert import convert
from quant.export.batch_check import check_batches
from quant.export.npz.codec import Encoder
from quant.export.npz.operators import RecordingEngine, packed_node
from quant.export.npz.read import FORMAT, load
from utils.files import write_atomically


def export(
    prepared: fx.GraphModule, file: Path, image_size: int, info: dict[str, Any], channels: int = 3
) -> IntegerModel:
    """Write the integer model of a prepared one, with `info` for its users; load the file and check the logits.

    Returns the model. Raises UserError for an operator that a file cannot represent, RuntimeError if the loaded model
    computes other logits.
    """
    model = convert(prepared, RecordingEngine())
    _save(prepared, model, file, info)
    check_batches(model, load(str(file)), image_size, 1e-5 if model.float_layers else 0.0, str(file), channels)
    return model


def _save(prepared: fx.GraphModule, model: IntegerModel, file: Path, info: dict[str, Any]) -> None:
    modules, encoder = dict(prepared.named_modules()), Encoder()
    sources = {node.name: modules[node.target] for node in prepared.graph.nodes if node.op == "call_module"}
    images, *nodes, output = model.graph.graph.nodes
    graph = {
        "format": FORMAT,
        "info": info,
        "input": images.name,
        "nodes": [
            encoder.encode([node.name, packed_node(node, sources.get(node.name)), list(node.args), node.kwargs])
            for node in nodes
        ],
        "output": encoder.encode(output.args[0]),
    }
    arrays: dict[str, Any] = {dtype: numpy.concatenate(parts) for dtype, parts in encoder.arrays.items()}
    arrays["model"] = numpy.array(json.dumps(graph, allow_nan=False))
    buffer = io.BytesIO()
    numpy.savez_compressed(buffer, **arrays)
    write_atomically(file, lambda part: part.write_bytes(buffer.getvalue()))
