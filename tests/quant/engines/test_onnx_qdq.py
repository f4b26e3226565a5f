"""The graph of an ONNX file: types of its weights, and its values in torch."""

import pytest
import torch

import models
from quant.engines.convert import convert
from quant.engines.onnx_qdq import QdqEngine
from quant.export.onnx import export_onnx
from tests.conftest import photos
from tests.helpers import calibrated

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


def initializers(graph) -> dict:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}


def test_weights_are_int8_by_channel_and_biases_int32(tmp_path):
    images = photos(4, 32)
    prepared = calibrated(models.build("resnet20", 10, 32, {}), images)
    export_onnx(prepared, tmp_path / "model.onnx", 32, {})
    graph = onnx.load(tmp_path / "model.onnx").graph
    stored, made = initializers(graph), {node.output[0]: node for node in graph.node}
    for node in graph.node:
        if node.op_type == "Conv":
            weight, bias = (made[name] for name in node.input[1:])
            assert weight.op_type == bias.op_type == "DequantizeLinear"
            assert stored[weight.input[0]].dtype == "int8"
            assert len(stored[weight.input[1]]) == len(stored[weight.input[0]]), "a scale a channel"
            assert stored[bias.input[0]].dtype == "int32"


def test_the_written_graph_runs_in_torch_as_it_is_written():
    images = photos(4, 32)
    prepared = calibrated(models.build("resnet20", 10, 32, {}), images)
    with torch.inference_mode():
        assert torch.equal(convert(prepared, QdqEngine())(images), prepared(images))
