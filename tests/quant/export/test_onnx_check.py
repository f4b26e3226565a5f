"""A file that computes another function than the integer model is refused, with the operator that differs."""

import pytest
import torch
from torch import nn

from quant.engines.convert import convert
from quant.engines.onnx_qdq import QdqEngine
from quant.engines.onnx_writer import onnx_model
from quant.export import onnx as onnx_export
from quant.export import onnx_check
from quant.export.onnx import export_onnx
from quant.export.onnx_check import check_by_running, first_difference
from tests.conftest import photos
from tests.helpers import calibrated
from utils.errors import UserError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.pool, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.AvgPool2d(2), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.b(self.pool(self.a(x).relu())).relu().mean((2, 3)))


def with_largest_for_average(graph, images, symmetric):
    """The file of a graph, whose pools take the largest value instead of the mean."""
    proto = onnx_model(graph, images, symmetric)
    for node in proto.graph.node:
        if node.op_type == "AveragePool":
            node.op_type = "MaxPool"
            kept = [attribute for attribute in node.attribute if attribute.name in ("kernel_shape", "strides")]
            del node.attribute[:]
            node.attribute.extend(kept)
    return proto


@pytest.fixture
def prepared():
    return calibrated(Net(), photos(8, 16))


def test_a_file_as_written_passes(prepared):
    model = convert(prepared, QdqEngine())
    check_by_running(onnx_model(model.graph, torch.zeros(2, 3, 16, 16)), model, 16)
    assert first_difference(model, photos(8, 16)) == "the logits"


def test_the_operator_that_differs_is_named_and_nothing_is_written(prepared, monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_export, "onnx_model", with_largest_for_average)
    monkeypatch.setattr(onnx_check, "onnx_model", with_largest_for_average)
    with pytest.raises(UserError, match=r"^export: ONNX Runtime does not compute this net: .* difference is at .*pool"):
        export_onnx(prepared, tmp_path / "model.onnx", 16, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("share", "refused"), [(0.5, False), (2, True)])
def test_logits_may_differ_by_what_a_step_of_the_image_changes(share, refused, prepared, monkeypatch):
    model = convert(prepared, QdqEngine())
    step = float(next(grid for _, grid in model.node_map.values() if grid).scale)

    def session(file, shape, threads):
        return lambda images: model(images) + share * (model(images + step) - model(images))

    monkeypatch.setattr(onnx_check, "onnxruntime_session", session)
    monkeypatch.setattr(onnx_check, "first_difference", lambda *_: "an operator")
    proto = onnx_model(model.graph, torch.zeros(2, 3, 16, 16))
    if not refused:
        check_by_running(proto, model, 16)
        return
    with pytest.raises(UserError, match=r"off 2\.0 times as far as a step of the image"):
        check_by_running(proto, model, 16)
