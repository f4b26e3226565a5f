"""A .pte file is run by ExecuTorch alone, and says beside it what it takes."""

import json

import numpy
import pytest
import torch

import models
import quant
from data.decoding import open_image, resize_and_crop
from tests.conftest import needs_executorch, photos
from tests.helpers import calibrated
from tests.quant.export.test_torch_export import run_alone
from utils.errors import UserError

PROGRAM = """
import torch
from executorch.runtime import Runtime
program = Runtime.get().load_program(open("net.pte", "rb").read())
run = program.load_method("forward")
images = torch.load("images.pt")
torch.save(torch.cat([run.execute([image[None].contiguous()])[0].clone() for image in images]), "logits.pt")
"""


@needs_executorch
def test_a_trained_net_taken_away_gives_the_same_logits(net, simulated, digits32, tmp_path):
    _, images, _ = digits32
    quant.export_executorch(net, tmp_path / "net.pte", 32, {"classes": []})
    torch.save(images[:64], tmp_path / "images.pt")
    done = run_alone(tmp_path, "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "logits.pt"), simulated[:64])
    int8 = sum(converted.layer.weight.numel() for converted in quant.convert(net, "reference").layers.values())
    assert (tmp_path / "net.pte").stat().st_size < 1.2 * int8 + 200_000, "int8 weights but for the last layer"


@needs_executorch
def test_the_example_names_the_classes_of_a_picture_and_the_file_says_the_integers(tmp_path):
    from PIL import Image

    prepared = calibrated(models.build("mobilenet_v3_small", 4, 64, {}), photos(8, 64))
    geometry = {"image_size": 64, "resize": 70, "crop": "center", "interpolation": "bicubic"}
    info = {**geometry, "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3, "classes": ["a", "b", "c", "d"]}
    quant.export_executorch(prepared, tmp_path / "net.pte", 64, info)
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
    assert {(one["least"], one["greatest"]) for one in integers["values"].values()} == {(-128, 127)}
    assert set(integers["kernels"].values()) == {"xnnpack", "xnnpack in float"}


def test_what_is_missing_is_a_line(monkeypatch):
    from quant.engines import executorch
    from quant.export.executorch import check_executorch

    monkeypatch.setattr(executorch, "_is_here", lambda name: name != "torchao")
    with pytest.raises(
        UserError, match=r"^export: a \.pte file needs torchao: pip install --no-deps -r requirements-ex"
    ):
        check_executorch("export")
