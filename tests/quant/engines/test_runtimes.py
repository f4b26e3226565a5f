"""The ONNX file: its convolutions are integer ones to ONNX Runtime, and runtimes predict what is simulated."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
import quant
from quant.engines.convert import convert
from quant.engines.layerwise_check import forced
from quant.engines.onnx_qdq import QdqEngine
from quant.export.onnx import export_onnx
from tests.conftest import RUNTIMES, photos, spec, with_real_statistics

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


def calibrated(model: nn.Module, images: torch.Tensor, **keys):
    prepared = quant.prepare(with_real_statistics(model, images), spec(**({"method": "ptq"} | keys)))
    quant.calibrate(prepared, [images])
    return prepared


def integer_operators(file, tmp_path) -> Counter:
    """Operators of the file as ONNX Runtime has fused it."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)


NETS = {
    "resnet20": (32, {}),
    "mobilenet_v2": (32, {"form": "imagenet"}),
    "mobilenet_v3_small_relu": (64, {"form": "imagenet", "variant": "reference"}),
    "mobilenet_v3_small": (64, {"form": "imagenet"}),
    "shufflenet_v2_x0_5": (64, {"form": "imagenet"}),
}


@pytest.mark.parametrize(("name", "bits"), [(name, 8) for name in NETS] + [("resnet20", 2), ("mobilenet_v3_small", 4)])
def test_every_convolution_becomes_an_integer_one(name, bits, tmp_path):
    size, options = NETS[name]
    images = photos(8, size)
    prepared = calibrated(models.build(name, 10, size, options), images, weight_bits=bits, act_bits=bits)
    written = export_onnx(prepared, tmp_path / "model.onnx", size, {"classes": "a b", "mean": "0 0 0"})
    assert all(found.within() for found in forced(prepared, written, images).values())
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {entry.key: entry.value for entry in model.metadata_props} == {"classes": "a b", "mean": "0 0 0"}
    convolutions = Counter(node.op_type for node in model.graph.node)["Conv"]
    convolutions += Counter(node.op_type for node in model.graph.node)["ConvInteger"]
    assert convolutions == sum(not layer.layer.geometry.linear for layer in written.layers.values())
    fused = integer_operators(tmp_path / "model.onnx", tmp_path)
    assert fused["QLinearConv"] + fused["ConvInteger"] == convolutions
    assert fused["Conv"] == fused["FusedConv"] == 0
    assert fused["MatMulInteger"] + fused["ConvInteger"] == 1, "the logits"


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


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_trained_net_predicts_what_it_simulates(runtime, net, digits32):
    _, images, labels = digits32
    with torch.inference_mode():
        simulated = net(images)
    logits = quant.convert(net, runtime)(images)
    exact = runtime == "onnxruntime"  # OpenVINO rounds after scales of its own
    assert (logits.argmax(1) == simulated.argmax(1)).float().mean() >= (0.999 if exact else 0.97)
    assert (logits.argmax(1) == labels).float().mean() >= 0.95
    assert (logits - simulated).norm() < (0.01 if exact else 0.05) * simulated.norm()
    if exact:  # OpenVINO's worst logit is up to 5.2 % off, by CPU
        assert torch.allclose(logits, simulated, atol=0.05 * float(simulated.abs().max()))


class Strange(nn.Module):
    """A sigmoid gate, tokens, an average that is not global, a part in float, and a product with a number."""

    def __init__(self):
        super().__init__()
        self.a, self.gate, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.ConvTranspose2d(8, 8, 2, 2)
        self.tokens, self.fc = nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = F.hardswish(self.a(x * 0.5))
        x = F.avg_pool2d(x * torch.sigmoid(self.gate(x)), 2)
        x = self.up(x)[:, :, ::2]
        return self.fc(F.gelu(self.tokens(x.flatten(2).transpose(1, 2))).mean(1))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_is_no_integer_operator_is_written_in_float(runtime):
    images = photos(4, 16)
    prepared = calibrated(Strange(), images)
    with torch.inference_mode():
        simulated = prepared(images)
    found = quant.convert(prepared, runtime)(images)
    assert torch.allclose(found, simulated, atol=0.03 * float(simulated.abs().max()))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_any_number_of_images(runtime):
    images = photos(5, 32)
    model = quant.convert(calibrated(models.build("resnet20", 10, 32, {}), images), runtime)
    whole = model(images)
    assert torch.allclose(torch.cat([model(images[:2]), model(images[2:])]), whole, atol=1e-5)


def test_a_missing_package_is_named_in_a_line(monkeypatch):
    import importlib.util

    from utils.errors import UserError

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    quant.engine.cache_clear()
    with pytest.raises(UserError, match=r"^engines: onnxruntime needs onnxscript: pip install -r requirements-deploy"):
        quant.engine("onnxruntime", "engines")
    quant.engine.cache_clear()


def test_the_written_graph_runs_in_torch_as_it_is_written():
    images = photos(4, 32)
    prepared = calibrated(models.build("resnet20", 10, 32, {}), images)
    with torch.inference_mode():
        assert torch.equal(convert(prepared, QdqEngine())(images), prepared(images))
