"""The exported file computes what the simulation computes, in a process that knows nothing of this repository."""

import ast
import json
import os
import subprocess
import sys

import numpy
import pytest
import torch

import quant
from data.decoding import open_image, resize_and_crop, upright
from quant.engines import verify
from quant.export.torch_export import EXAMPLE
from tests.conftest import photos, spec, with_real_statistics

PROGRAM = """
import integer_ops, torch
model = torch.export.load("model.pt2").module()
torch.save([model(images) for images in torch.load("images.pt")], "logits.pt")
"""


def run_alone(folder, *command: str) -> subprocess.CompletedProcess:
    """In `folder`, with no path to the repository."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_a_trained_net_taken_away_gives_the_same_predictions(net, simulated, digits32, tmp_path):
    _, images, labels = digits32
    quant.export(net, tmp_path, 32, {"classes": []})
    torch.save([images[:1], images], tmp_path / "images.pt")
    done = run_alone(tmp_path, "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    one, every = torch.load(tmp_path / "logits.pt")
    assert torch.equal(one[0], every[0])
    assert (every.argmax(1) == labels).float().mean() >= 0.95
    assert (every.argmax(1) == simulated.argmax(1)).float().mean() >= 0.995
    int8 = sum(converted.layer.weight.numel() for converted in quant.convert(net, "reference").layers.values())
    assert (tmp_path / "model.pt2").stat().st_size < 1.1 * int8 + 500_000, "int8 weights, and a graph"


def test_pools_gates_and_hard_swish_survive_the_export(tmp_path):
    """A net with max-pools, concatenations, squeeze-excitation and float islands, at 4 bits."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.Hardswish())
            self.pool, self.conv = torch.nn.MaxPool2d(3, 2, 1), torch.nn.Conv2d(16, 16, 3, padding=1, groups=16)
            self.gate, self.fc = torch.nn.Conv2d(16, 16, 1), torch.nn.Linear(64, 5)

        def forward(self, x):
            x = self.pool(self.stem(x))
            y = torch.relu(self.conv(x))
            y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
            x = torch.nn.functional.pad(torch.cat([x + y, y], 1), (0, 0, 0, 0, 16, 16))
            return self.fc(torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))

    images = photos(4, 32)
    prepared = quant.prepare(Net().eval(), spec(method="ptq", weight_bits=4, act_bits=4))
    quant.calibrate(prepared, [images])
    quant.export(prepared, tmp_path, 32, {})
    torch.save([images], tmp_path / "images.pt")
    done = run_alone(tmp_path, "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    with torch.inference_mode():
        assert torch.equal(torch.load(tmp_path / "logits.pt")[0], quant.convert(prepared, "reference")(images))


class Tokens(torch.nn.Module):
    """Linear layers on [N, H, W, C], as many outputs as rows."""

    def __init__(self):
        super().__init__()
        self.conv, self.mix, self.fc = torch.nn.Conv2d(3, 8, 2, 2), torch.nn.Linear(8, 16), torch.nn.Linear(16, 16)

    def forward(self, x):
        return self.fc(torch.relu(self.mix(torch.relu(self.conv(x)).permute(0, 2, 3, 1)))).mean((1, 2))


@pytest.mark.parametrize("keys", [{}, {"weight_bits": 32}, {"act_bits": 32}, {"first_last_bits": 32}], ids=str)
def test_layers_on_tokens_and_layers_in_float_survive_the_export(keys, tmp_path):
    images = photos(4, 32)
    prepared = quant.prepare(Tokens().eval(), spec(method="ptq", **keys))
    quant.calibrate(prepared, [images])
    quant.export(prepared, tmp_path, 32, {})
    model = torch.export.load(tmp_path / "model.pt2").module()
    with torch.inference_mode():
        expected = quant.convert(prepared, "reference")(images)
        assert torch.allclose(model(images), expected, atol=1e-5 * float(expected.abs().max()))


def test_an_export_does_not_depend_on_how_fast_kernels_are_here(tmp_path, monkeypatch):
    """Where others run on the machine, a measurement says anything: here, that the last kernel is the fastest."""
    images = photos(4, 32)
    prepared = quant.prepare(Tokens().eval(), spec(method="ptq"))
    quant.calibrate(prepared, [images])
    numbers = []
    for name in ("measured", "upset"):
        verify._by_speed.cache_clear()
        quant.export(prepared, tmp_path / name, 32, {})
        program = torch.export.load(tmp_path / name / "model.pt2")
        numbers.append([[str(value) for value in node.args] for node in program.graph.nodes])
        monkeypatch.setattr(verify, "_seconds", lambda engine, layer, kernels: dict(zip(kernels, (9, 1), strict=True)))
    verify._by_speed.cache_clear()
    assert numbers[0] == numbers[1]
    assert any("True" in arguments for arguments in numbers[0]), "there was something to choose"


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "I;16", "CMYK"])
def test_the_example_sees_an_image_as_training_does(mode):
    from PIL import Image, ImageOps

    defined = [node for node in ast.parse(EXAMPLE).body if isinstance(node, ast.FunctionDef)]
    example = {"Image": Image, "ImageOps": ImageOps, "numpy": numpy}
    exec(compile(ast.Module(defined, []), "example.py", "exec"), example)
    image = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (45, 37, 3), dtype=numpy.uint8)).convert(mode)
    image.getexif()[0x0112] = 3
    expected = resize_and_crop(upright(image), 24, 27, "center", "bicubic")
    assert numpy.array_equal(
        numpy.asarray(example["resize_and_crop"](example["upright"](image), 24, 27, "center", "bicubic")),
        numpy.asarray(expected),
    )


def test_the_example_names_the_class_of_an_image_file(tmp_path):
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
    done = run_alone(tmp_path, "example.py", "image.png")
    assert done.returncode == 0, done.stderr
    seen = (pixels.permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
    with torch.inference_mode():
        expected = info["classes"][int(quant.convert(prepared, "reference")(seen).argmax())]
    assert done.stdout.split() == [expected]
    assert json.loads((tmp_path / "model.json").read_text()) == info
