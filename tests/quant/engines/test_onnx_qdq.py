"""The graph of an ONNX file: types of its weights, and its values in torch."""

import pytest
import torch
from torch import nn

import models
from quant.engines.convert import convert
from quant.engines.onnx_qdq import QdqEngine
from quant.engines.onnx_writer import onnx_model
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


def test_linear_layers_on_vectors_are_written_as_gemm_and_on_maps_as_matmul():
    """As ONNX Runtime fuses them; the logits are integer sums."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(256, 6))
    net.extend([nn.ReLU(), nn.Linear(6, 3)])
    images = photos(2, 8)
    model = convert(calibrated(net, images), QdqEngine())
    written = onnx_model(model.graph, torch.zeros(2, 3, 8, 8))
    found = [node.op_type for node in written.graph.node]
    kinds = ("Conv", "Gemm", "MatMul", "MatMulInteger", "ConvInteger")
    assert [found.count(kind) for kind in kinds] == [1, 1, 1, 1, 0]


def test_an_output_is_put_on_its_grid_and_a_float_one_is_not():
    x, weight, scale = torch.rand(2, 3) * 0.3, torch.randint(-127, 128, (3, 4)).to(torch.int8), torch.full((4,), 0.01)
    given = (x, weight, scale, torch.zeros(4, dtype=torch.int32), scale * 0.01, 0.01, 3, [])
    floats = torch.ops.qdq.last_layer(*given)
    n = (x / 0.01).round()
    assert torch.allclose(floats, n @ weight.float() * 0.01 * 0.01, rtol=1e-5, atol=1e-7)
    on_grid = torch.ops.qdq.layer(*given, 0.02, 100, 90, 140)
    expected = ((floats / 0.02).round() + 100).clamp(90, 140)
    assert torch.allclose(on_grid, (expected - 100) * 0.02, atol=1e-6)
    assert torch.allclose(on_grid / 0.02, (on_grid / 0.02).round(), atol=1e-4)
