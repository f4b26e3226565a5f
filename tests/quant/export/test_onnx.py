"""The ONNX file: to ONNX Runtime, its convolutions are integer ones."""

from collections import Counter

import pytest

import models
from quant.engines.layerwise_check import check_layerwise
from quant.export.onnx import export_onnx
from tests.conftest import photos
from tests.helpers import calibrated

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


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
    assert all(found.counts_as_exact() for found in check_layerwise(prepared, written, images).values())
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
