"""The exported file computes what the simulation computes, in a process that knows nothing of this repository."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import quant
from quant.engines import verify
from tests.conftest import photos, spec

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
    assert (tmp_path / "model.pt2").stat().st_size < 1.1 * int8 + 350_000, "int8 weights, and a graph"
    assert str(Path(__file__).parents[3]).encode() not in (tmp_path / "model.pt2").read_bytes(), "of this machine"


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
