"""The scripts as a user runs them, on real digits: each in a process once, else their main functions in this one."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import data
import models
import quant
from experiment import check, comparison, evaluation, latency, training
from experiment.rebuild import rebuild
from quant.core import kernels
from quant.methods import gradboost
from utils.errors import UserError
from utils.runs import checkpoint, tensor_file

ROOT = Path(__file__).parent.parent
TINY = ["data.image_size=16", "data.limit=300", "run.epochs=2", 'run.engines=["reference","fbgemm"]']
SMALL = "model.name=tests.nets:Residual"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONWARNINGS": "error::UserWarning"}
    return subprocess.run(
        [sys.executable, script, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short statassist run with held-out images."""
    folder = tmp_path_factory.mktemp("runs")
    done = run("train.py", *TINY, f"run.dir={folder}", "run.name=trial", "data.val_fraction=0.2")
    assert done.returncode == 0, done.stderr
    return folder / "trial", done.stdout


SCRIPTS = {"train.py": training, "evaluate.py": evaluation, "latency.py": latency}
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS.remove(ROOT / "docs/extending.md")  # its commands need the files it adds; tests/test_extending.py runs them
COMMAND = re.compile(r"^ *(?:python|torchrun [^\n]*?) (\w+\.py.*)$", re.MULTILINE)
COMMANDS = dict.fromkeys(line for path in DOCUMENTS for line in COMMAND.findall(path.read_text()))


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.split()[0] in SCRIPTS])
def test_a_command_of_the_documents_is_one_that_its_script_takes(command, monkeypatch, capsys, tmp_path):
    """The checkpoints in it are other commands' own, and not here; my_file is the reader's."""
    (tmp_path / "my_file.py").write_text("from tests.nets import plain as my_net")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tensor_file, "check_exists", lambda path: None)
    monkeypatch.setattr(checkpoint, "check_weights", lambda model, path, name: None)
    monkeypatch.setattr(check, "with_weights_file", lambda model, d: model)
    monkeypatch.setattr(check, "as_weights", lambda d, model: d)
    monkeypatch.setattr(latency, "is_run", lambda entry: str(entry).startswith("runs/"))
    monkeypatch.setattr(latency, "checkpoint_of", str)
    monkeypatch.setattr(comparison, "check", lambda folders: None)
    script, *arguments = shlex.split(command, comments=True)
    SCRIPTS[script].main([*arguments, "--print-config"])
    assert capsys.readouterr().out


def test_a_run_leaves_its_files(trained):
    folder, out = trained
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.json",
        "environment.json",
        "inputs.json",
        "metrics.csv",
        "curves.png",
        "last.pt",
        "best.pt",
        "summary.json",
        "report.html",
        "layers.txt",
        "run.log",
    }
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["accuracy"]) == {"simulated", "reference", "fbgemm"}
    assert set(summary["agreement"]) == {"reference", "fbgemm"}
    assert summary["agreement"]["reference"] == 100.0
    assert {"model", "dataset", "method", "weight_bits", "act_bits", "engine", "params", "macs"} <= set(summary)
    assert summary["size_mb"]["fbgemm"] < summary["size_mb"]["float"] / 3.5
    assert len((folder / "metrics.csv").read_text().splitlines()) == 3
    assert "simulated" in out
    assert "Traceback" not in out


def logits_of(file: str) -> dict[str, torch.Tensor]:
    """On all test digits, by engine."""
    model, state, _ = rebuild(file, lambda name: None)
    digits = data.DATASETS["digits"].load(16, None)
    x, _ = next(iter(data.batches(digits.test, 360, state["mean"], state["std"], 16)))
    return {name: quant.convert(model.eval(), name)(x) for name, make in quant.ENGINES.items() if make().available()}


def test_a_checkpoint_in_a_new_process_gives_bit_identical_logits(tmp_path):
    """Another process and this one rebuild the integer models from the file; all logits are the same bits."""
    program = (
        "import sys, torch\nfrom tests.test_scripts import logits_of\ntorch.save(logits_of(sys.argv[1]), sys.argv[2])\n"
    )
    training.main([*TINY, SMALL, f"run.dir={tmp_path}", "run.name=run"])
    file, out = str(tmp_path / "run" / "last.pt"), str(tmp_path / "logits.pt")
    done = subprocess.run(
        [sys.executable, "-c", program, file, out], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    there, here = torch.load(out, weights_only=True), logits_of(file)
    assert len(here) >= 2
    assert there.keys() == here.keys()
    for name, value in here.items():
        assert torch.equal(value, there[name]), name


def test_evaluate_gives_the_numbers_of_the_run(trained, tmp_path):
    folder, _ = trained
    done = run(
        "evaluate.py", f"checkpoint={folder / 'best.pt'}", f"output={tmp_path}", 'engines=["reference","fbgemm"]'
    )
    assert done.returncode == 0, done.stderr
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("accuracy", "agreement", "size_mb", "by_class", "confusion", "mistakes"):
        assert evaluation[key] == summary[key]
    page = (tmp_path / "evaluation.html").read_text()
    assert f"{summary['accuracy']['fbgemm']['top1']:.2f}" in page
    assert page.count("<svg") == 2, "the curves of its training"
    layers = (tmp_path / "evaluation_layers.txt").read_text()
    assert "layer1.0.conv1" in layers
    line = next(line for line in layers.splitlines() if line.startswith("fbgemm:"))
    assert line.endswith("1 on onednn sums; every layer runs in integers")
    assert sum(map(int, re.findall(r"(\d+) on ", line))) == 30, "19 convolutions, 9 additions, the pool, the logits"


def test_a_mobilenet_v3_is_the_same_net_in_a_new_process(tmp_path):
    """pytorch/vision #5890: a quantized MobileNetV3 that was saved and loaded predicted something else."""
    small = ["data.image_size=32", "data.batch_size=64", "run.epochs=3", "quant.float_epochs=0", "optim.lr=0.02"]
    model = 'model={"name":"mobilenet_v3_small","form":"cifar","variant":"reference"}'
    engines = 'run.engines=["reference","x86"]'
    training.main([*small, model, f"run.dir={tmp_path}", "run.name=v3", engines])
    summary = json.loads((tmp_path / "v3" / "summary.json").read_text())
    assert summary["accuracy"]["simulated"]["top1"] > 30, "it learned something to lose"
    done = run("evaluate.py", f"checkpoint={tmp_path}/v3/last.pt", 'engines=["reference","x86"]')
    assert done.returncode == 0, done.stderr
    evaluation = json.loads((tmp_path / "v3" / "evaluation.json").read_text())
    assert evaluation["accuracy"] == summary["accuracy"]
    assert set(evaluation["bit_equal"].values()) == {100.0}


def test_evaluate_writes_an_onnx_file(trained, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    file = tmp_path / "new" / "model.onnx"
    arguments = [f"checkpoint={trained[0] / 'last.pt'}", f"output={tmp_path}", "data.limit=50", 'engines=["x86"]']
    evaluation.main([*arguments, f"export={file}"])
    assert "images [N, 3, 16, 16] -> logits" in capsys.readouterr().out
    info = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert json.loads(info["classes"]) == [str(i) for i in range(10)]
    assert len(json.loads(info["mean"])) == len(json.loads(info["std"])) == 3


def test_evaluate_says_where_it_hurts(trained, tmp_path, capsys):
    arguments = [f"checkpoint={trained[0] / 'last.pt'}", f"output={tmp_path}", "data.limit=50", 'engines=["x86"]']
    evaluation.main([*arguments, "sensitivity=true"])
    rows = list(csv.DictReader((tmp_path / "sensitivity.csv").read_text().splitlines()))
    assert len(rows) == 20
    divergences = [float(row["kl_divergence"]) for row in rows]
    assert divergences == sorted(divergences, reverse=True)
    assert re.search(rf"^{rows[0]['layer']} +8 +8 ", capsys.readouterr().out, re.MULTILINE)
    assert (tmp_path / "sensitivity.png").stat().st_size > 10_000


def test_where_it_hurts_cannot_be_said_of_a_net_that_is_none_without_its_quantizers(tmp_path):
    few = [*TINY, SMALL, "run.epochs=1", f"run.dir={tmp_path}"]
    training.main([*few, "quant.method=dorefa", "quant.weight_bits=4"])
    with pytest.raises(UserError, match=r"^sensitivity: dorefa trains weights on a scale of their own"):
        evaluation.main([f"checkpoint={tmp_path / 'train' / 'last.pt'}", "trust=true", "sensitivity=true"])


def test_evaluate_writes_a_file_as_small_as_its_bits(trained, tmp_path, capsys):
    file = tmp_path / "new" / "model.npz"
    arguments = [f"checkpoint={trained[0] / 'last.pt'}", f"output={tmp_path}", "data.limit=50", 'engines=["x86"]']
    evaluation.main([*arguments, f"export={file}"])
    out = capsys.readouterr().out
    assert f"{file} (0." in out
    size_mb = json.loads((tmp_path / "evaluation.json").read_text())["size_mb_at_bits"]
    assert f"packed at its own bit-widths: {size_mb:.3f} MB" in out
    assert 0.7 < file.stat().st_size / 1e6 / size_mb < 1.1, "what zip saves, and a graph"
    read = quant.load_packed(str(file))
    assert read.info["classes"] == [str(i) for i in range(10)]
    assert read(torch.zeros(2, 3, 16, 16)).shape == (2, 10)


def test_evaluate_on_other_images(trained, tmp_path, capsys):
    arguments = [f"checkpoint={trained[0] / 'last.pt'}", f"output={tmp_path}"]
    evaluation.main([*arguments, "data.limit=50", 'engines=["x86"]'])
    assert "50 test images" in capsys.readouterr().out
    with pytest.raises(UserError, match="the checkpoint was trained on"):
        evaluation.main([*arguments, "data.name=fake"])
    with pytest.raises(UserError, match=r"^setting/evaluate.json: data.root is read by .*; data.name is digits$"):
        evaluation.main([*arguments, "data.root=elsewhere"])
    for key, value in (("batch_size", 9), ("augment", "none"), ("mixup", 0.2), ("val_fraction", 0.5)):
        with pytest.raises(UserError, match=rf"^command line: data.{key}: read in training alone"):
            evaluation.main([*arguments, f"data.{key}={value}"])


EXTRA = {
    "ptq": ["quant.recipe=best", "quant.act_bits=6", "quant.rounding_steps=2", "quant.calibration_images=64"],
    "dorefa": ["quant.weight_bits=4", "quant.grad_bits=6"],
    "pact": ["quant.weight_bits=3", "quant.act_bits=3"],
    "lsq": ['quant.layers={"first.*":{"weight_bits":4},"head.2":"float"}'],
}


@pytest.mark.parametrize("method", [name for name in quant.METHODS if name != "statassist"])
def test_every_other_method_trains_and_its_checkpoint_gives_the_same_again(method, tmp_path):
    training.main([*TINY, SMALL, f"run.dir={tmp_path}", f"quant.method={method}", *EXTRA.get(method, [])])
    accuracy = json.loads((tmp_path / "train" / "summary.json").read_text())["accuracy"]
    in_float = {"float"} if method in ("float", "ptq") else set()
    assert set(accuracy) == in_float | ({"simulated", "reference", "fbgemm"} if method != "float" else set())
    found = f"checkpoint={tmp_path / 'train' / 'last.pt'}"
    evaluation.main([found, "trust=true", 'engines=["reference","fbgemm"]'])
    assert json.loads((tmp_path / "train" / "evaluation.json").read_text())["accuracy"] == accuracy


def test_ptq_of_a_checkpoint(trained, tmp_path, capsys):
    weights = trained[0] / "last.pt"
    training.main([*TINY, f"run.dir={tmp_path}", f"model.weights={weights}", "quant.method=ptq", "run.epochs=0"])
    assert "float" in capsys.readouterr().out
    accuracy = json.loads((tmp_path / "train" / "summary.json").read_text())["accuracy"]
    assert set(accuracy) == {"float", "simulated", "reference", "fbgemm"}
    found, source = (tensor_file.load(str(path))["model"] for path in (tmp_path / "train" / "last.pt", weights))
    assert torch.equal(found["layer1.0.conv1.weight"], source["layer1.0.conv1.weight"])


def test_a_net_of_other_classes_gives_all_but_its_last_layer(trained, tmp_path, capsys):
    """As a net that was trained on ImageNet does for one's own images."""
    state = tensor_file.load(str(trained[0] / "best.pt"))["model"]
    state = {name: value for name, value in state.items() if name in models.build("resnet20", 10, 16, {}).state_dict()}
    state |= {"fc.weight": torch.zeros(7, 64), "fc.bias": torch.zeros(7)}
    torch.save(state, tmp_path / "seven.pth")
    command = [*TINY, "quant.method=float", "optim.lr=1e-9", "run.epochs=1", f"run.dir={tmp_path}"]
    training.main([*command, f"model.weights={tmp_path / 'seven.pth'}"])
    assert (
        "seven.pth was trained on other classes: loaded all layers except fc, which starts from random weights"
        in capsys.readouterr().out
    )
    found = tensor_file.load(str(tmp_path / "train" / "last.pt"))["model"]
    assert torch.allclose(found["layer3.2.conv2.weight"], state["layer3.2.conv2.weight"], atol=1e-6)
    assert found["fc.weight"].shape == (10, 64)
    assert found["fc.weight"].abs().min() > 0


def test_a_short_run_is_not_compiled_because_a_long_one_before_it_was(tmp_path):
    """Within a sweep: started again it would end with other bits."""
    kernels._compiled[kernels.forward] = kernels.forward
    training.main([*TINY, SMALL, "run.epochs=1", f"run.dir={tmp_path}"])
    assert not kernels._compiled


def test_a_net_learns_from_a_teacher_and_from_a_net_of_more_bits(trained, tmp_path):
    """The best of the run before, at 8 bits, is where a 4-bit net starts, and what it is taught by."""
    best = trained[0] / "best.pt"
    bits = ["quant.method=lsq", "quant.weight_bits=4", "quant.act_bits=4", f"model.weights={best}"]
    scores = {}
    for share in (0.01, 1.0):
        name, taught = f"run.name=share{share}", [f"quant.teacher={best}", f"quant.teacher_share={share}"]
        training.main([*TINY, *bits, *taught, "optim.lr=0.01", f"run.dir={tmp_path}", name])
        scores[share] = json.loads((tmp_path / f"share{share}" / "summary.json").read_text())
    assert all(score["agreement"]["reference"] == 100 for score in scores.values())
    assert scores[0.01]["accuracy"] != scores[1.0]["accuracy"]
    with pytest.raises(UserError, match="was trained on images of 16 pixels"):
        training.main([*TINY, "data.image_size=24", f"quant.teacher={best}", f"run.dir={tmp_path}", "run.name=other"])


def test_same_seed_same_weights(tmp_path):
    """In a process of its own and in this one."""
    command = [*TINY, SMALL, f"run.dir={tmp_path}", "data.limit=128", "run.engines=[]"]
    done = run("train.py", *command, "run.name=a")
    assert done.returncode == 0, done.stderr
    training.main([*command, "run.name=b"])
    a, b = (torch.load(tmp_path / name / "last.pt", weights_only=True)["model"] for name in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quant.weight_bit=4"], "command line: quant.weight_bit: unknown key, did you mean weight_bits?"),
        (["-c", "setting/tran.json"], "did you mean setting/train.json?"),
        (["model.name=resnet2"], "command line: model.name: unknown 'resnet2'; choose from resnet20"),
        (["data.name=digit"], "command line: data.name: unknown 'digit'; choose from digits"),
        (["quant.weight_bits=9"], "quant.weight_bits: 9 bits; choose 1..8, or 32 for float"),
        (["quant.weight_bits=1"], "quant.weight_bits: statassist cannot use 1 bits; choose 2..8"),
        (["model.weights=nowhere.pt"], "nowhere.pt: no such checkpoint"),
        (['run.engines=["fbgem"]'], "run.engines: unknown 'fbgem'; choose from reference, fbgemm"),
        (
            ["quant.method=lqs"],
            "command line: quant.method: unknown 'lqs'; choose from float, ptq, dorefa, pact, lsq, statassist",
        ),
        (["quant.teacher=nowhere.pt"], "nowhere.pt: no such checkpoint"),
        (["quant.temperature=4"], "quant.temperature: there is no teacher; quant.teacher names one"),
        (["quant.teacher=nowhere.pt", "run.epochs=0"], "quant.teacher: run.epochs=0 trains nothing"),
        (["quant.method=ptq", "optim.average=0.9", "run.epochs=0"], "optim.average: run.epochs=0 trains nothing"),
        (
            ["quant.method=ptq", "quant.bn_reestimation_images=9"],
            "quant.bn_reestimation_images: nothing is trained quantized here",
        ),
        (["run.device=tpu"], "run.device: 'tpu' is not available here"),
    ],
)
def test_mistakes_are_one_line_before_any_data(arguments, message, tmp_path, capsys):
    with pytest.raises(UserError) as caught:
        training.main([*arguments, f"run.dir={tmp_path}"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_setting_of_any_name_makes_a_run_that_can_be_read_again(tmp_path):
    setting = tmp_path / "my [1] & only.json"
    setting.write_text((ROOT / "setting" / "train.json").read_text())
    few = [SMALL, "run.epochs=1", "data.limit=64", "data.image_size=16", 'run.engines=["reference"]']
    training.main(["data.batch_size=64", "-c", str(setting), f"run.dir={tmp_path}", *few])
    found = f"checkpoint={tmp_path / 'my _1_ _ only' / 'last.pt'}"
    evaluation.main([found, "trust=true", 'engines=["reference"]'])


def test_a_mistake_ends_the_process_with_one_line_and_code_2(tmp_path):
    for script in ("train.py", "evaluate.py"):
        done = run(script, "-c", "setting/nowhere.json")
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1
        assert done.stdout == ""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_who_has_read_enough_gets_no_traceback(unbuffered):
    """train.py --list models | head -1"""
    with subprocess.Popen(
        [sys.executable, "train.py", "--list", "models"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


def test_evaluate_names_what_is_wrong_with_a_checkpoint(tmp_path):
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pt")
    torch.save({"format": 1}, tmp_path / "old.pt")
    messages = {"none.pt": "no such checkpoint", "other.pt": "not a checkpoint of train.py", "old.pt": "train again$"}
    for name, message in messages.items():
        with pytest.raises(UserError, match=message):
            evaluation.main([f"checkpoint={tmp_path / name}"])


def test_lists_and_print_config(capsys):
    training.main(["--list", "models"])
    assert "\nresnet32 " in capsys.readouterr().out
    training.main(["--list", "engines"])
    ours = ["reference", "fbgemm", "qnnpack", "x86", "onednn"]
    theirs = ["onnxruntime", "openvino", "executorch", "litert"]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ours + theirs
    training.main(["--print-config"])
    resolved = json.loads(capsys.readouterr().out)
    assert resolved["quant"]["observer"] == "moving_average"
    assert resolved["run"]["name"] == "train"
    training.main(["--help"], "what --help begins with")
    assert "what --help begins with" in capsys.readouterr().out


def test_gradboost_waits_until_the_float_epochs_are_over(tmp_path, monkeypatch):
    warming, boost = [], gradboost.GradBoost.boost

    def watched(self, optimizer):
        warming.append(self.warming_up)
        boost(self, optimizer)

    monkeypatch.setattr(gradboost.GradBoost, "boost", watched)
    small = [SMALL, "data.limit=128", "data.batch_size=64", "data.image_size=16", "run.epochs=2"]
    training.main(
        [*small, f"run.dir={tmp_path}", "optim.name=qsgd", "quant.float_epochs=1", 'run.engines=["reference"]']
    )
    assert warming == [True, True, False, False]


def test_event_files_hold_what_metrics_csv_holds(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    training.main([*TINY, SMALL, f"run.dir={tmp_path}", "run.name=run", "run.epochs=2", "run.tensorboard=true"])
    events = event_accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    for name in ("train_loss", "train_top1", "lr"):
        found = [event.value for event in events.Scalars(name.replace("_", "/", 1))]
        assert found == pytest.approx([float(row[name]) for row in rows], rel=1e-6)
