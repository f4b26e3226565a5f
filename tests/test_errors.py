"""A user's mistake, in any of the three scripts: one line on stderr, exit code 2, before data is touched."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

import data
import models
import quant
from experiment import evaluation, latency, training
from experiment.settings import TrainSettings, resolved
from utils import errors
from utils.runs import checkpoint

SCRIPTS = {"train": training.main, "evaluate": evaluation.main, "latency": latency.main}


def fails(capsys, monkeypatch, script: str, *arguments: str) -> str:
    """The one line with which a script refuses these arguments."""
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        errors.run(SCRIPTS[script])
    out, line = capsys.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    assert len(line.strip().splitlines()) == 1, line
    return line


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """A folder with resnet20.pt, resnet32.pt, of one class more: eleven.pt, and rubbish."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, classes in (("resnet20", 10), ("resnet32", 10), ("eleven", 11)):
        settings = TrainSettings.model_validate(
            {"model": {"name": name.replace("eleven", "resnet20")}, "quant": {"method": "float"}}
        )
        model = models.build(settings.model.name, classes, 32, {})
        seen = data.Dataset(None, None, [str(i) for i in range(classes)], (0.5,) * 3, (0.25,) * 3, False)
        torch.save(checkpoint.pack(model, settings.model_dump(), seen, False, 1), folder / f"{name}.pt")
    settings = resolved(TrainSettings())
    prepared = quant.prepare(models.build("resnet20", 10, 32, {}), quant.resolve(settings.quant))
    ten = data.Dataset(None, None, [str(i) for i in range(10)], (0.5,) * 3, (0.25,) * 3, False)
    torch.save(checkpoint.pack(prepared, settings.model_dump(), ten, True, 1), folder / "qat.pt")
    settings = TrainSettings.model_validate(
        {"model": {"name": "strangers:Flat"}, "data": {"image_size": 16}, "quant": {"method": "float"}}
    )
    flat = {"fc.weight": torch.zeros(10, 768), "fc.bias": torch.zeros(10)}
    packed = checkpoint.pack(torch.nn.Module(), settings.model_dump(), ten, False, 1) | {"model": flat}
    torch.save(packed, folder / "flat.pt")
    good = (folder / "resnet20.pt").read_bytes()
    (folder / "short.pt").write_bytes(good[: len(good) // 2])
    (folder / "list.pt").write_bytes(b"[1, 2, 3]")
    return folder


@pytest.fixture(autouse=True)
def no_data_is_touched(monkeypatch, request):
    if "reads" in request.fixturenames:
        return

    def touched(*_, **__):
        raise AssertionError("data was touched")

    monkeypatch.setattr(data, "load", touched)


@pytest.fixture
def reads():
    """For mistakes that only the data shows."""


MISTAKES = {
    "misspelt key": (
        "train",
        ["quant.weight_bit=4"],
        "command line: quant.weight_bit: unknown key, did you mean weight_b",
    ),
    "misspelt key of latency": ("latency", ["image_sise=32"], "image_sise: unknown key, did you mean image_size?"),
    "misspelt section": ("train", ["qunat.weight_bits=4"], "qunat: unknown key, did you mean quant?"),
    "wrong type": ("train", ['run.epochs="many"'], 'run.epochs: input should be a valid integer, not "many"'),
    "wrong type of a list": ("evaluate", ["engines=5"], "engines: input should be a valid array, not 5"),
    "bits 9": ("train", ["quant.act_bits=9"], "quant.act_bits: 9 bits; choose 1..8, or 32 for float"),
    "a pattern for no layer": (
        "train",
        ['quant.layers={"layer9.*":"float"}'],
        "quant.layers: 'layer9.*' matches no layer; the first is conv1, the last fc",
    ),
    "bits of a layer": (
        "train",
        ['quant.layers={"fc":{"weight_bits":9}}'],
        "command line: quant.layers.fc.weight_bits: 9 bits; choose 1..8, or 32 for float",
    ),
    "misspelt key of a layer": (
        "train",
        ['quant.layers={"fc":{"weight_bit":4}}'],
        "quant.layers.fc.weight_bit: unknown key, did you mean weight_bits?",
    ),
    "8 bits of DoReFa": (
        "train",
        ["quant.method=dorefa"],
        "quant.weight_bits: dorefa cannot use 8 bits: its levels are the odd integers up to +-255",
    ),
    "an option of another method": (
        "train",
        ["quant.grad_bits=4"],
        "quant.grad_bits is read by dorefa; quant.method is statassist",
    ),
    "noise for a float run": (
        "train",
        ["quant.method=float", "optim.name=qadam"],
        "optim.name: qadam adds its noise from where quantized training begins, and float has none; take adam",
    ),
    "a net of one size": (
        "train",
        ["model.name=svhn_cnn"],
        "model.name: svhn_cnn accepts images of 40 pixels, not of 16",
    ),
    "a batch beyond all": (
        "train",
        ["data.batch_size=99999999999"],
        "data.batch_size: input should be less than or equal",
    ),
    "a seed too large": ("train", ["run.seed=99999999999999999999"], "run.seed: input should be less than 92233720"),
    "a device without memory": ("train", ["run.device=meta"], "run.device: 'meta' is not available here"),
    "epochs for shares": ("train", ["optim.milestones=[5,10]"], "optim.milestones: input should be less than 1, not 5"),
    "an option that there is not": ("train", ["--epochs=5"], "command line: unrecognized arguments: --epochs=5"),
    "nothing in a sweep": ("train", ['sweep={"a":{}}'], "setting/train.json: sweep.a: nothing to run over"),
    "weights to time": (
        "latency",
        ['models=[{"name":"resnet20","weights":"nowhere.pt"}]'],
        "models: a model by its name has random weights",
    ),
    "a damaged summary": ("latency", ['models=["{folder}/damaged"]'], "summary.json: not what train.py writes there"),
    "half a summary": ("latency", ['models=["{folder}/half"]'], "summary.json: Expecting"),
    "a folder for a file": (
        "evaluate",
        ["checkpoint={folder}/qat.pt", "export={folder}/folder.npz"],
        "export: {folder}/folder.npz is a folder",
    ),
    "a folder of the system": (
        "latency",
        ["dir=/proc/self"],
        "dir: /proc/self is not a folder that can be written to (",
    ),
    "an empty sweep": ("train", ['sweep={"run.seed":[]}'], "sweep.run.seed: nothing to run over"),
    "a cell with a mistake": (
        "train",
        ['sweep={"quant.method":["lsq","lqs"]}'],
        "quant.method: unknown 'lqs'",
    ),
    "unknown model": ("train", ["model.name=resnet21"], "model.name: unknown 'resnet21'; choose from resnet20"),
    "unknown model of latency": ("latency", ['models=["mobilenetv2"]'], "(nearest: mobilenet_v2)"),
    "unknown option of a model": ("latency", ['models=[{"name":"resnet18","fom":"cifar"}]'], "did you mean form?"),
    "unknown torchvision model": ("train", ["model.name=torchvision:resnet19"], "(nearest: resnet1"),
    "no such module": ("train", ["model.name=no_such_module:net"], "model.name: cannot import no_such_module"),
    "no such factory": (
        "train",
        ["model.name=models.resnet:resnet2"],
        "has no function 'resnet2', did you mean resnet",
    ),
    "missing checkpoint": ("evaluate", ["checkpoint={folder}/resnet2.pt"], "no such checkpoint, did you mean "),
    "a run with a slip": ("evaluate", ["{folder}/imeges"], "command line: checkpoint: "),
    "a picture for a checkpoint": ("evaluate", ["{folder}/me.JPG"], "me.JPG is a picture; images="),
    "missing weights": ("train", ["model.weights={folder}/none.pt"], "none.pt: no such checkpoint"),
    "missing run": ("latency", ['models=["{folder}"]'], "last.pt: no such checkpoint"),
    "checkpoint of another model": (
        "train",
        ["model.weights={folder}/resnet32.pt"],
        "a checkpoint of resnet32, not of",
    ),
    "corrupt checkpoint": ("evaluate", ["checkpoint={folder}/short.pt"], "short.pt: not a readable checkpoint"),
    "rubbish": ("evaluate", ["checkpoint={folder}/list.pt"], "list.pt: not a readable checkpoint"),
    "unknown engine": ("evaluate", ['engines=["fbgem"]'], "engines: unknown 'fbgem'; choose from reference, fbgemm"),
    "unknown engine of latency": ("latency", ['engines=["x68"]'], "engines: unknown 'x68'"),
    "no setting": ("latency", ["-c", "setting/latncy.json"], "did you mean setting/latency.json?"),
    "not JSON": ("train", ["-c", "{folder}/broken.json"], "broken.json: not JSON: "),
    "not an object": ("evaluate", ["-c", "{folder}/list.json"], "list.json: not a JSON object"),
    "untraceable model": ("train", ["model.name=strangers:Branching"], "model Branching: torch.fx cannot trace it: "),
    "a broken module": ("train", ["model.name=half:net"], "model.name: cannot import half: "),
    "no module": ("train", ["model.name=:net"], "model.name: cannot import nothing: "),
    "a factory that fails": (
        "train",
        ["model.name=strangers:fails"],
        "cannot be called with no arguments: out of luck",
    ),
    "a segmentation net": ("train", ["model.name=torchvision:fcn_resnet50"], "model.name: torchvision: unknown"),
    "untraceable model of latency": ("latency", ['models=["strangers:Branching"]'], "torch.fx cannot trace it: "),
    "a file for a folder": (
        "train",
        ["run.dir={folder}/list.json"],
        "run.dir: {folder}/list.json is not a folder",
    ),
    "a file for a folder of latency": (
        "latency",
        ["dir={folder}/list.json"],
        "dir: {folder}/list.json is not a folder",
    ),
    "a file to export to": (
        "evaluate",
        ["checkpoint={folder}/qat.pt", "export={folder}/list.json"],
        "export: {folder}/list",
    ),
    "images of another size": (
        "evaluate",
        ["checkpoint={folder}/flat.pt", "data.image_size=24"],
        "images of 24 x 24: ",
    ),
    "not a model": ("train", ["model.name=strangers:not_a_model"], "returned a int, not an nn.Module"),
    "a model of other outputs": (
        "train",
        ["model.name=strangers:Maps"],
        "returns Tensor (3, 4, 16, 16) instead of logits",
    ),
    "a float model to export": ("evaluate", ["checkpoint={folder}/resnet20.pt", "export=x"], "nothing is quantized"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_code_2(mistake, checkpoints, tmp_path, monkeypatch, capsys):
    script, arguments, message = MISTAKES[mistake]
    (checkpoints / "broken.json").write_text('{"note": "a comma too many",}')
    (checkpoints / "list.json").write_text("[]")
    (checkpoints / "folder.npz").mkdir(exist_ok=True)
    for name, text in (("damaged", '{"checkpoint": 3}'), ("half", "{")):
        (checkpoints / name).mkdir(exist_ok=True)
        (checkpoints / name / "summary.json").write_text(text)
    (tmp_path / "strangers.py").write_text(STRANGERS)
    (tmp_path / "half.py").write_text("def net(:")
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("strangers", None)
    line = fails(capsys, monkeypatch, script, *(text.replace("{folder}", str(checkpoints)) for text in arguments))
    assert message.replace("{folder}", str(checkpoints)) in line
    assert not os.path.exists("x")


STRANGERS = """
import torch

class Branching(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 10)
    def forward(self, x):
        x = x.mean((2, 3))
        return self.fc(x) if x.sum() > 0 else self.fc(-x)

class Maps(torch.nn.Module):
    def forward(self, x):
        return x[:, [0, 1, 2, 0]]

class Flat(torch.nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.fc = torch.nn.Linear(3 * 16 * 16, num_classes)
    def forward(self, x):
        return self.fc(x.flatten(1))

def not_a_model():
    return 3

def fails():
    raise RuntimeError("out of luck")
"""


def test_an_engine_that_this_build_lacks(monkeypatch, capsys):
    quant.engine.cache_clear()
    lacks = "is not in this build of torch"
    monkeypatch.setattr(
        "quant.engines.native.NativeEngine.missing", lambda self: lacks if self.name == "qnnpack" else ""
    )
    line = fails(capsys, monkeypatch, "train", 'run.engines=["qnnpack"]')
    assert "run.engines: qnnpack is not in this build of torch (here: reference, fbgemm, x86, onednn" in line
    quant.engine.cache_clear()


def test_an_empty_image_folder(reads, tmp_path, monkeypatch, capsys):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "test" / "cat").mkdir(parents=True)
    arguments = ["data.name=imagefolder", f"data.root={tmp_path}", f"run.dir={tmp_path}/runs", "data.image_size=16"]
    assert f"data.root: no images under {tmp_path}/train" in fails(capsys, monkeypatch, "train", *arguments)


def test_another_number_of_classes(reads, checkpoints, tmp_path, monkeypatch, capsys):
    path = checkpoints / "eleven.pt"
    line = fails(capsys, monkeypatch, "evaluate", f"checkpoint={path}")
    assert "10 classes (0, 1, 2, ...) where the checkpoint was trained on 11" in line
    line = fails(
        capsys, monkeypatch, "train", f"model.weights={path}", f"run.dir={tmp_path}", "quant.method=ptq", "run.epochs=0"
    )
    assert f"{path}: not weights of this model: another number of classes: fc.weight is (11, 64) there" in line


def test_every_message_of_a_setting_names_its_file(tmp_path, monkeypatch, capsys):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"quant": {"method": "statasist"}}))
    line = fails(capsys, monkeypatch, "train", "-c", str(path))
    assert line.startswith(f"{path}: quant.method: unknown 'statasist'")
    assert line.rstrip().endswith("(nearest: statassist)")
