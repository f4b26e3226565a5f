"""train.py plans a run named after its setting, or every run of a sweep; it trains no finished run again."""

import itertools
import json

import numpy
import pytest
import torch
from PIL import Image

from experiment import evaluation, training
from experiment.settings import TrainSettings
from utils.distributed import Processes
from utils.errors import UserError

ALONE = Processes(0, 1, torch.device("cpu"))


def settings(tmp_path, **sections) -> TrainSettings:
    run = {"dir": str(tmp_path), "epochs": 2} | sections.pop("run", {})
    base = {"data": {"image_size": 16, "limit": 64}, "model": {"name": "resnet20"}, "run": run}
    return TrainSettings.model_validate(base | sections)


def test_a_run_is_named_after_its_setting(tmp_path):
    assert training.plan(settings(tmp_path), "setting/mine.json").settings.run.name == "mine"
    named = training.plan(settings(tmp_path, run={"name": "other"}), "setting/mine.json")
    assert named.settings.run.name == "other"


def test_every_cell_of_a_sweep_is_checked(tmp_path):
    cells = {"quant.weight_bits": [4, 8]}
    assert training.plan(settings(tmp_path, sweep=cells), "mine.json").settings.run.name == "mine"
    with pytest.raises(UserError, match="weight_bits"):
        training.plan(settings(tmp_path, sweep={"quant.weight_bits": [4, 9]}), "mine.json")


def test_a_finished_run_is_shown_and_not_trained_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "Session", lambda *_: pytest.fail("it was trained"))
    checked = training.plan(settings(tmp_path), "mine.json").settings
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(checked.model_dump(mode="json")))
    accuracy = {"float": {"top1": 91.25, "top5": 99.0, "loss": 0.5}}
    (folder / "summary.json").write_text(json.dumps({"accuracy": accuracy, "size_mb": {"float": 1.0}}))
    training.train(checked, ALONE)
    printed = capsys.readouterr().out
    assert f"{folder} is finished" in printed
    assert "91.25" in printed
    assert f"evaluate.py {folder} writes evaluation.html there" in printed


@pytest.mark.parametrize(("model", "channels"), [("resnet20", 1), ("timm:mobilenetv3_small_050", 4)])
def test_grey_and_four_channels_end_in_every_integer_model_and_export(model, channels, tmp_path):
    photographs = tmp_path / "images"
    random = numpy.random.default_rng(0)
    for part, kind, number in itertools.product(("train", "test"), ("cat", "dog"), range(4)):
        folder = photographs / part / kind
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (40, 40, 4), dtype=numpy.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    keys = ["data.name=imagefolder", f"data.root={photographs}", f"data.channels={channels}", "data.batch_size=4"]
    engines = 'run.engines=["reference","fbgemm","qnnpack","x86","onednn","onnxruntime"]'
    common = [f"run.dir={tmp_path}", "run.name=a", "run.epochs=1", "quant.method=ptq", "data.image_size=32"]
    training.main([*keys, *common, f"model.name={model}", engines])
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert set(summary["agreement"].values()) == {100.0}
    for target in ("a.onnx", "a.npz", "folder"):
        evaluation.main([f"checkpoint={tmp_path / 'a' / 'last.pt'}", 'engines=["x86"]', f"export={tmp_path / target}"])
    info = json.loads((tmp_path / "folder" / "model.json").read_text())
    assert (info["channels"], len(info["mean"])) == (channels, channels)
