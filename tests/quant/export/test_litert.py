"""A .tflite file is run by LiteRT alone, and says beside it what it takes."""

import json

import numpy
import pytest
import torch

import models
import quant
from data.decoding import open_image, resize_and_crop
from quant.engines import litert
from quant.export.litert import check_litert
from tests.conftest import needs_litert, photos
from tests.helpers import calibrated
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


@needs_litert
def test_the_example_names_the_classes_of_a_picture_and_the_file_says_the_integers(tmp_path):
    from PIL import Image

    prepared = calibrated(models.build("mobilenet_v3_small", 4, 64, {}), photos(8, 64))
    geometry = {"image_size": 64, "resize": 70, "crop": "center", "interpolation": "bicubic"}
    info = {**geometry, "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3, "classes": ["a", "b", "c", "ö"]}
    quant.export_litert(prepared, tmp_path / "net.tflite", 64, info)
    picture = (photos(1, 97)[0].permute(1, 2, 0) * 32 + 128).clamp(0, 255).to(torch.uint8)[:, :83]
    Image.fromarray(picture.numpy()).save(tmp_path / "image.png")
    pixels = torch.tensor(numpy.asarray(resize_and_crop(open_image(tmp_path / "image.png"), *geometry.values())))
    with torch.inference_mode():
        shares = prepared((pixels.permute(2, 0, 1)[None] / 255 - 0.5) / 0.25)[0].softmax(0)
    expected = [(f"{100 * shares[i]:.2f}", info["classes"][i]) for i in shares.argsort(descending=True)]
    done = run_alone(tmp_path, "net_example.py", "image.png")
    assert done.returncode == 0, done.stderr
    assert [tuple(line.strip().split(" %  ")) for line in done.stdout.splitlines()] == expected
    said = json.loads((tmp_path / "net.json").read_text())
    integers = said.pop("integers")
    assert said == info
    assert json.dumps(info).encode() in (tmp_path / "net.tflite").read_bytes()
    assert {(one["least"], one["greatest"]) for one in integers["values"].values()} == {(-128, 127)}
    assert set(integers["kernels"].values()) <= {"litert", "litert in float", "litert table"}


def test_what_is_missing_is_a_line(monkeypatch):
    monkeypatch.setattr(litert, "PACKAGES", ("ai_edge_nothing",))
    with pytest.raises(UserError, match=r"^export: a \.tflite file needs ai-edge-nothing: pip install --no-deps"):
        check_litert("export")
