"""The ONNX file: to ONNX Runtime, its convolutions are integer ones."""

import importlib.util
from collections import Counter

import pytest
from torch import nn

import models
from quant.engines.layerwise_check import check_layerwise
from quant.export import onnx as onnx_export
from quant.export.onnx import check_onnx, export_onnx
from tests.conftest import photos
from tests.helpers import calibrated
from utils.errors import UserError

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
    written = export_onnx(prepared, tmp_path / "model.onnx", size, {"classes": "a b", "mean": [0, 0, 0]})
    assert all(found.counts_as_exact() for found in check_layerwise(prepared, written, images).values())
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {entry.key: entry.value for entry in model.metadata_props} == {"classes": "a b", "mean": "[0, 0, 0]"}
    convolutions = Counter(node.op_type for node in model.graph.node)["Conv"]
    convolutions += Counter(node.op_type for node in model.graph.node)["ConvInteger"]
    assert convolutions == sum(not layer.layer.geometry.linear for layer in written.layers.values())
    fused = integer_operators(tmp_path / "model.onnx", tmp_path)
    assert fused["QLinearConv"] + fused["ConvInteger"] == convolutions
    assert fused["Conv"] == fused["FusedConv"] == 0
    assert fused["MatMulInteger"] + fused["ConvInteger"] == 1, "the logits"


def small_net():
    images = photos(2, 16)
    return calibrated(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3)), images)


def test_without_onnxruntime_the_file_is_not_checked(monkeypatch, tmp_path):
    def absent(*_):
        raise AssertionError("it is not installed")

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    monkeypatch.setattr(onnx_export, "check_by_running", absent)
    export_onnx(small_net(), tmp_path / "model.onnx", 16, {})
    assert (tmp_path / "model.onnx").is_file()


def test_a_package_that_is_missing_is_named_with_the_key(monkeypatch):
    check_onnx("export.onnx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^export\.onnx: an ONNX file needs onnx and onnxscript: pip install -r"):
        check_onnx("export.onnx")
