"""What stands beside a program: its example, and the integers of its values."""

import json

import numpy
import pytest
import torch

import models
import quant
from data.decoding import open_image, resize_and_crop
from quant.export.program import check_beside, contract, example_text
from tests.conftest import needs_executorch, needs_litert, photos
from tests.helpers import calibrated
from tests.quant.export.test_torch_export import run_alone
from utils.errors import UserError


@pytest.mark.parametrize("template", ["pte_example.py", "tflite_example.py"])
def test_the_example_asks_for_the_file_beside_it_and_for_nothing_of_this_repository(template):
    text = example_text(template, "net_example.py")
    assert "python net_example.py photo.jpg" in text
    assert "from quant" not in text
    assert "from utils" not in text
    assert ("import torch" in text) == (template == "pte_example.py")
    compile(text, "net_example.py", "exec")


XNNPACK, LITERT = {"xnnpack", "xnnpack in float"}, {"litert", "litert in float", "litert table"}
FORMATS = [
    pytest.param(quant.export_executorch, "net.pte", XNNPACK, XNNPACK, id="pte", marks=[needs_executorch]),
    pytest.param(quant.export_litert, "net.tflite", set(), LITERT, id="tflite", marks=[needs_litert]),
]
"""What writes a program, its name, and the kernels that the file names: at least, and at most."""


@pytest.mark.parametrize(("export", "name", "least", "most"), FORMATS)
def test_the_example_names_the_classes_of_a_picture_and_the_file_says_the_integers(export, name, least, most, tmp_path):
    from PIL import Image

    prepared = calibrated(models.build("mobilenet_v3_small", 4, 64, {}), photos(8, 64))
    geometry = {"image_size": 64, "resize": 70, "crop": "center", "interpolation": "bicubic"}
    info = {**geometry, "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3, "classes": ["a", "b", "c", "ö"]}
    export(prepared, tmp_path / name, 64, info)
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
    if name.endswith(".tflite"):
        assert json.dumps(info).encode() in (tmp_path / name).read_bytes()
    assert {(one["least"], one["greatest"]) for one in integers["values"].values()} == {(-128, 127)}
    assert least <= set(integers["kernels"].values()) <= most


def test_integers_are_said_as_int8_with_their_limits():
    images = photos(2, 32)
    prepared = calibrated(models.build("resnet20", 10, 32, {}), images, method="lsq", weight_bits=4, act_bits=4)
    said = contract(quant.convert(prepared, "reference"))
    assert said["kernels"]
    limits = {(one["least"], one["greatest"]) for one in said["values"].values()}
    assert limits == {(-128, 127), (-128, -113)}
    assert all(one["least"] <= one["zero_point"] <= one["greatest"] for one in said["values"].values())


@pytest.mark.parametrize(("there", "asked"), [(".pte", ".tflite"), (".tflite", ".pte")])
def test_what_is_beside_another_program_is_not_overwritten(there, asked, tmp_path):
    check_beside(tmp_path / f"net{there}")
    (tmp_path / f"net{there}").write_bytes(b"")
    check_beside(tmp_path / f"net{there}")
    check_beside(tmp_path / f"other{asked}")
    with pytest.raises(UserError, match=rf"^export: net.json and .* those of net\{there}; choose another"):
        check_beside(tmp_path / f"net{asked}")
