"""A .tflite file is run by LiteRT alone, and says beside it what it takes."""

import numpy
import pytest
import torch

import quant
from quant.engines import litert
from quant.export.litert import check_litert
from tests.conftest import needs_litert
from tests.quant.export.test_torch_export import run_alone
from utils.errors import UserError

PROGRAM = """
import sys
import numpy
from ai_edge_litert.interpreter import Interpreter
run = Interpreter("net.tflite").get_signature_runner()
images = numpy.load("images.npy")
numpy.save("logits.npy", numpy.concatenate([run(images=image[None])["logits"] for image in images]))
assert "torch" not in sys.modules
"""


@needs_litert
def test_a_trained_net_taken_away_gives_the_same_logits(net, simulated, digits32, tmp_path):
    _, images, _ = digits32
    quant.export_litert(net, tmp_path / "net.tflite", 32, {"classes": []})
    numpy.save(tmp_path / "images.npy", images[:64].permute(0, 2, 3, 1).contiguous().numpy())
    done = run_alone(tmp_path, "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.from_numpy(numpy.load(tmp_path / "logits.npy")), simulated[:64])
    int8 = sum(converted.layer.weight.numel() for converted in quant.convert(net, "reference").layers.values())
    assert (tmp_path / "net.tflite").stat().st_size < 1.1 * int8 + 350_000, (
        "int8 weights, and 16 bits in the last layer"
    )


def test_what_is_missing_is_a_line(monkeypatch):
    monkeypatch.setattr(litert, "PACKAGES", ("ai_edge_nothing",))
    with pytest.raises(UserError, match=r"^export: a \.tflite file needs ai-edge-nothing: pip install --no-deps"):
        check_litert("export")
