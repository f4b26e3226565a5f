"""The tool names what a runtime rounds otherwise, and each node that is written to keep OpenVINO from it is needed."""

import pytest
import torch
from torch import nn

import quant
from tests.conftest import RUNTIMES, photos
from tests.helpers import calibrated

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
from quant.core.quantizer import ActivationQuantizer
from quant.engines.onnx_writer import Translation
from quant.graph.views import quantizers
from tests.onnx_cuts import differences

needs_openvino = pytest.mark.skipif(set(RUNTIMES) != {"onnxruntime", "openvino"}, reason="openvino is not installed")


class Sums(nn.Module):
    """Sums of convolutions, and of what was selected; an average that is not global."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.pool, self.fc = nn.AvgPool2d(3), nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([self.b(x), x + self.a(x)], 1)[:, 16:] + x
        return self.fc(self.pool(x).mean((2, 3)))


@pytest.fixture(scope="module")
def sums():
    """Prepared with grids on which every other sum of two integers is a tie, but for the rounding of their scales."""
    torch.manual_seed(0)
    images = photos(8, 32)
    prepared = calibrated(Sums(), images, reduce_range=True)
    for name, quantizer in quantizers(prepared).items():
        if isinstance(quantizer, ActivationQuantizer):
            is_sum = name in ("quantizers.cat", "operators.add_2.output")
            quantizer.low.fill_(-2.0 if is_sum else -1.0)
            quantizer.high.fill_(3.1 if is_sum else 1.55)
    return prepared, images


def first_difference(prepared, images, runtime: str) -> str:
    model = quant.convert(prepared, runtime)
    model(images)
    return next(differences(model.files[images.shape[1:]], images, runtime), "")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_integer_is_what_the_file_says(sums, runtime):
    assert first_difference(*sums, runtime) == ""


@needs_openvino
def test_a_sum_is_off_where_quantizelinear_rounds_it(sums, monkeypatch):
    written = Translation.quantize

    def without_round(self, y, *given):
        monkeypatch.setattr(self.op, "Round", lambda x: x, raising=False)
        return written(self, y, *given)

    monkeypatch.setattr(Translation, "quantize", without_round)
    assert "Mul" in first_difference(*sums, "openvino")


@needs_openvino
def test_a_sum_is_off_where_it_is_fused_with_what_it_reads(sums, monkeypatch):
    monkeypatch.setattr(Translation, "unfused", lambda self, x, scale, zero_point: x)
    assert "Add" in first_difference(*sums, "openvino")


@needs_openvino
def test_a_sum_is_off_where_a_zero_point_is_subtracted_after_scaling(sums, monkeypatch):
    monkeypatch.setattr("quant.engines.onnx_writer._is_fused", lambda q: False)
    assert "Add" in first_difference(*sums, "openvino")
