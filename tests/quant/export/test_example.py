"""What stands beside an exported model asks it as training does, and says what it takes, without this repository."""

import ast
import csv
import json
import shutil

import numpy
import pytest
import torch

import quant
from data.decoding import open_image, resize_and_crop, upright
from quant.export import integer_ops
from quant.export.torch_export import example_text
from tests.conftest import photos, spec, with_real_statistics
from tests.quant.export.test_torch_export import run_alone
from utils import image_input


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "I;16", "CMYK"])
def test_the_example_sees_an_image_as_training_does(mode):
    from PIL import Image, ImageOps

    functions = [node for node in ast.parse(example_text()).body if isinstance(node, ast.FunctionDef)]
    copied = [node for node in functions if hasattr(image_input, node.name)]
    example = {"Image": Image, "ImageOps": ImageOps, "numpy": numpy}
    exec(compile(ast.Module(copied, []), "example.py", "exec"), example)
    image = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (45, 37, 3), dtype=numpy.uint8)).convert(mode)
    image.getexif()[0x0112] = 3
    expected = resize_and_crop(upright(image), 24, 27, "center", "bicubic")
    assert numpy.array_equal(
        numpy.asarray(example["resize_and_crop"](example["upright"](image), 24, 27, "center", "bicubic")),
        numpy.asarray(expected),
    )


def test_the_example_says_what_it_takes(tmp_path):
    (tmp_path / "example.py").write_text(example_text())
    shutil.copy(integer_ops.__file__, tmp_path)
    for arguments in ([], ["--help"], ["a.png", "b.png"]):
        done = run_alone(tmp_path, "example.py", *arguments)
        assert done.returncode == 1
        assert "python example.py photo.jpg" in done.stderr
    assert run_alone(tmp_path, "example.py", "no\nfile").stderr == "no picture and no folder: no\\nfile\n"


def test_the_example_names_the_classes_of_an_image_file(tmp_path):
    from PIL import Image
    from torchvision.models import resnet18

    model = with_real_statistics(resnet18(num_classes=4), photos(8, 64))
    prepared = quant.prepare(model, spec(method="ptq"))
    quant.calibrate(prepared, [photos(8, 64)])
    geometry = {"image_size": 64, "resize": 70, "crop": "center", "interpolation": "bicubic"}
    info = {**geometry, "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3, "classes": ["a", "b", "c", "d"]}
    quant.export(prepared, tmp_path, 64, info)
    picture = (photos(1, 97)[0].permute(1, 2, 0) * 32 + 128).clamp(0, 255).to(torch.uint8)[:, :83]
    Image.fromarray(picture.numpy()).save(tmp_path / "image.png")
    pixels = torch.tensor(numpy.asarray(resize_and_crop(open_image(tmp_path / "image.png"), *geometry.values())))
    seen = (pixels.permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
    with torch.inference_mode():
        shares = quant.convert(prepared, "reference")(seen)[0].softmax(0)
    expected = [(f"{100 * shares[i]:.2f}", info["classes"][i]) for i in shares.argsort(descending=True)]
    done = run_alone(tmp_path, "example.py", "image.png")
    assert done.returncode == 0, done.stderr
    assert [tuple(line.strip().split(" %  ")) for line in done.stdout.splitlines()] == expected
    assert json.loads((tmp_path / "model.json").read_text()) == info
    (tmp_path / "notes.txt").write_text("no picture")
    done = run_alone(tmp_path, "example.py", "notes.txt")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    (tmp_path / "pictures" / "more").mkdir(parents=True)
    shutil.copy(tmp_path / "notes.txt", tmp_path / "pictures" / "more" / "=1\n.txt")
    shutil.copy(tmp_path / "image.png", tmp_path / "pictures" / "more")
    done = run_alone(tmp_path, "example.py", "pictures")
    assert done.stderr.startswith("left out: pictures/more/=1\\n.txt (cannot identify image file")
    header, row = csv.reader((tmp_path / "predictions.csv").read_text().splitlines())
    assert header == ["image", *(f"{key} {i}" for i in range(1, 5) for key in ("class", "percent"))]
    assert row == ["pictures/more/image.png", *(cell for share, name in expected for cell in (name, share))]
