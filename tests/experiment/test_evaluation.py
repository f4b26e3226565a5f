"""What evaluate.py refuses of a checkpoint, where it exports to, and what it tells about the images."""

import json
import sys

import pytest

import data
import models
import quant
from experiment import evaluation, latency, training
from experiment.settings import EvaluateSettings, TrainSettings, resolved
from utils.config import validate_section
from utils.errors import UserError
from utils.runs import checkpoint, tensor_file


def evaluate(**keys) -> EvaluateSettings:
    return EvaluateSettings.model_validate({"checkpoint": "last.pt"} | keys)


def trained(**quant) -> TrainSettings:
    return resolved(TrainSettings.model_validate({"data": {"image_size": 32}, "quant": quant}))


@pytest.mark.parametrize("asked", [{"export": "m.npz"}, {"sensitivity": True}])
def test_a_float_model_has_no_integers(asked):
    evaluation.check_possible(evaluate(**asked), trained(), prepared=True)
    evaluation.check_possible(evaluate(), trained(), prepared=False)
    with pytest.raises(UserError, match=rf"^{next(iter(asked))}: last.pt is a float model"):
        evaluation.check_possible(evaluate(**asked), trained(), prepared=False)


def test_weights_of_another_scale_have_no_sensitivity():
    with pytest.raises(UserError, match=r"^sensitivity: dorefa trains weights on"):
        evaluation.check_possible(evaluate(sensitivity=True), trained(method="dorefa", weight_bits=4), prepared=True)


def test_a_checkpoint_that_is_not_there_is_refused_before_anything_else(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.pt"):
        evaluation.plan(evaluate(checkpoint=str(tmp_path / "nowhere.pt")), "evaluate.json")


def test_the_folder_to_export_to_is_made(tmp_path):
    assert evaluation.prepare_target(tmp_path / "a" / "m.npz") == tmp_path / "a" / "m.npz"
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"], "of a file, the folder that it is in"
    assert evaluation.prepare_target(tmp_path / "b" / "folder").is_dir()
    (tmp_path / "c.onnx").mkdir()
    with pytest.raises(UserError, match=r"^export: .*c.onnx is a folder, but .onnx is the suffix of a file"):
        evaluation.prepare_target(tmp_path / "c.onnx")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("x.tflit", ".tflite, .pte"), ("x.onx", ".onnx, .npz"), ("a/x.npy", ".npz, .pte"), ("x.ONNX", ".onnx, .npz")],
)
def test_an_export_of_an_unknown_ending_is_refused_and_makes_no_folder(name, nearest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "last.pt").write_bytes(b"")
    with pytest.raises(UserError, match=rf"^export: {name}: no \.\w+ files are written here, but {nearest}, "):
        evaluation.plan(evaluate(export=name), "evaluate.json")
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("name", ["my_model", "models/v1.2", "x.tflite/", "m.npz", ".."])
def test_an_export_is_a_folder_or_of_a_known_ending(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "last.pt").write_bytes(b"")
    evaluation.plan(evaluate(export=name), "evaluate.json")


@pytest.mark.parametrize(
    ("root", "given", "ours"),
    [("datasets", {}, True), ("/theirs", {}, False), ("/theirs", {"root": "/theirs"}, True)],
)
def test_the_root_that_a_checkpoint_names_is_only_read(root, given, ours):
    section = data.with_overrides(TrainSettings().data, {"name": "cifar10", "root": root})
    assert evaluation.is_ours(section, given) == ours
    assert evaluation.is_ours(TrainSettings().data, {}), "digits have no root"


def test_nothing_is_downloaded_to_where_a_checkpoint_says(tmp_path, monkeypatch):
    settings = resolved(TrainSettings.model_validate({"data": {"name": "cifar10", "root": str(tmp_path / "theirs")}}))
    model = quant.prepare(models.build("resnet20", 10, 32, {}), quant.resolve(settings.quant))
    seen = data.Dataset(None, None, [str(i) for i in range(10)], (0.5,) * 3, (0.25,) * 3, False)
    tensor_file.save(tmp_path / "last.pt", checkpoint.pack(model, settings.model_dump(), seen, True, 1))
    with pytest.raises(UserError, match=r"^data.root: CIFAR-10 is not in .*theirs, which only the checkpoint names"):
        evaluation.main([f"checkpoint={tmp_path / 'last.pt'}", 'engines=["reference"]'])
    assert not (tmp_path / "theirs").exists()


def test_an_export_says_how_its_images_are_made():
    state = {"mean": [0.5] * 3, "std": [0.2] * 3, "classes": ["a", "b"]}
    keys = {"name": "imagefolder", "image_size": 96, "crop": "squash", "interpolation": "bicubic"}
    photographs = trained(weight_bits=4).model_copy(update={"data": validate_section("data", data.SECTIONS, keys)})
    memory, files = (evaluation.export_info(state, run) for run in (trained(weight_bits=4), photographs))
    assert (memory["image_size"], memory["resize"], memory["weight_bits"]) == (32, 32, 4)
    assert files == memory | {"image_size": 96, "resize": 96, "crop": "squash", "interpolation": "bicubic"}
    assert {key: memory[key] for key in state} == state


MODULE = """
import torch
from torch import nn
import data

def net(num_classes):
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *head)

def noise(image_size, limit, train):
    pixels = torch.randint(0, 256, (64, image_size, image_size, 3), dtype=torch.uint8)
    images = data.Images(pixels, torch.arange(64) % 2)
    return data.Dataset(images if train else None, images, ["a", "b"], (0.5,) * 3, (0.3,) * 3, False)
"""


def test_what_train_accepts_of_ones_own_every_script_accepts(tmp_path, monkeypatch):
    """The model and the dataset of a module in the working directory: measured, exported, timed, and as a teacher."""
    (tmp_path / "mine_of_evaluation.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    name = "mine_of_evaluation"
    (tmp_path / "own.json").write_text("{}")
    setting = ["-c", "own.json"]
    small = ["data.image_size=16", "data.batch_size=32", "run.epochs=1", 'run.engines=["reference"]']
    train = [*setting, f"data.name={name}:noise", "quant.method=lsq", *small]
    training.main([*train, f"model.name={name}:net", "run.name=own"])
    measure = [*setting, 'engines=["reference"]']
    evaluation.main(["checkpoint=runs/own/last.pt", "export=exported", *measure])
    latency.main(['models=["runs/own"]', "repeats=1", "warmup=1", *measure])
    assert json.loads((tmp_path / "exported" / "model.json").read_text())["model"] == f"{name}:net"
    training.main([*train, "model.name=resnet20", "quant.teacher=runs/own/last.pt", "run.name=taught"])
    (tmp_path / "last.pt").write_bytes((tmp_path / "runs" / "own" / "last.pt").read_bytes())
    with pytest.raises(UserError, match=rf"would call {name}:net as its model's factory, of a file that came with it"):
        evaluation.main(["checkpoint=last.pt", *measure])
    evaluation.main(["checkpoint=last.pt", "trust=true", *measure])
    sys.modules.pop(name)
