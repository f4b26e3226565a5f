"""latency.py: the rows that others rely on, in every format, and a picture."""

import csv
import json

import pytest
import torch
from PIL import Image

import data
import models
import quant
from experiment import latency
from experiment.settings import TrainSettings, resolved
from quant.engines.base import IntegerModel
from utils.runs import checkpoint

KEYS = {"model", "engine", "image_size", "batch_size", "threads", "params", "macs", "flops", "float_mb", "int8_mb"}
KEYS |= {"bit_equal_percent", "integer_macs_percent", "float_images_per_s", "int8_images_per_s"}
KEYS |= {f"{form}_ms{part}" for form in ("float", "int8", "as_built") for part in ("", "_p10", "_p90")}
KEYS |= {"speedup", "speedup_as_built", "conv_flops_32", "float_form", "float_top1", "int8_top1"}
QUICK = ["repeats=4", "warmup=1", "image_size=32", "num_classes=10"]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def a_run() -> TrainSettings:
    return resolved(TrainSettings.model_validate({"data": {"image_size": 16}, "run": {"name": "mine"}}))


def test_a_row_a_model_and_engine_in_every_format(tmp_path, capsys):
    engines = [name for name in ("fbgemm", "qnnpack") if quant.ENGINES[name]().available()]
    asked = ["resnet20", {"name": "mobilenet_v2", "form": "imagenet", "activation": "relu"}]
    latency.main(
        [*QUICK, f"models={json.dumps(asked)}", f"engines={json.dumps(engines)}", f"dir={tmp_path}", "threads=1"]
    )
    rows = json.loads((tmp_path / "latency.json").read_text())
    labels = ["resnet20", "mobilenet_v2 form=imagenet activation=relu"]
    assert [(row["model"], row["engine"]) for row in rows] == [(m, e) for m in labels for e in engines]
    for row in rows:
        assert set(row) == KEYS
        assert row["speedup"] == pytest.approx(row["float_ms"] / row["int8_ms"])
        assert row["speedup_as_built"] == pytest.approx(row["as_built_ms"] / row["int8_ms"])
        assert row["flops"] == 2 * row["macs"]
        assert row["conv_flops_32"] < row["flops"], "the linear layer is not in it"
        assert (row["image_size"], row["batch_size"], row["threads"]) == (32, 1, 1)
        for form in ("float", "int8", "as_built"):
            assert 0 < row[f"{form}_ms_p10"] <= row[f"{form}_ms"] <= row[f"{form}_ms_p90"]
        assert row["int8_mb"] < row["float_mb"] / 3
        assert row["integer_macs_percent"] == 100
    assert (rows[0]["params"], rows[0]["macs"]) == (269_722, 40_551_040)
    with (tmp_path / "latency.csv").open() as file:
        assert [row["engine"] for row in csv.DictReader(file)] == [row["engine"] for row in rows]
    markdown, printed = (tmp_path / "latency.md").read_text(), capsys.readouterr().out
    for text in (markdown, printed):
        assert f"torch {torch.__version__}" in text
        assert "threads: 1" in text
        assert f"{rows[0]['speedup']:.2f}" in text
    tables = [block.splitlines() for block in markdown.split("\n\n") if block.startswith("|")]
    assert [len({len(line) for line in lines}) for lines in tables] == [1, 1], "columns align"
    with Image.open(tmp_path / "latency.png") as picture:
        assert picture.size[0] > 500


def test_a_finished_run_brings_its_weights_size_and_method(tmp_path):
    settings = a_run()
    model = quant.prepare(models.build("resnet20", 10, 16, {}), quant.resolve(settings.quant))
    model(torch.randn(4, 3, 16, 16))
    seen = data.Dataset(None, None, [str(i) for i in range(10)], (0.5,) * 3, (0.25,) * 3, False)
    (tmp_path / "mine").mkdir()
    torch.save(checkpoint.pack(model, settings.model_dump(), seen, True, 1), tmp_path / "mine" / "last.pt")
    for entry in ("mine", "mine/last.pt"):
        latency.main([*QUICK, f'models=["{tmp_path}/{entry}"]', 'engines=["reference"]', f"dir={tmp_path}/out"])
        row = json.loads((tmp_path / "out" / "latency.json").read_text())[0]
        assert (row["model"], row["image_size"], row["int8_top1"]) == ("mine", 16, None)
    assert not (tmp_path / "out" / "accuracy.png").exists(), "nothing is known of its accuracy"
    (tmp_path / "mine" / "last.pt").rename(tmp_path / "mine" / "best.pt")
    measured = {"accuracy": {"float": {"top1": 90.0}, "reference": {"top1": 89.5}}, "checkpoint": "best.pt"}
    (tmp_path / "mine" / "summary.json").write_text(json.dumps(measured))
    latency.main([*QUICK, f'models=["{tmp_path}/mine"]', 'engines=["reference"]', f"dir={tmp_path}/out"])
    row = json.loads((tmp_path / "out" / "latency.json").read_text())[0]
    assert (row["float_top1"], row["int8_top1"]) == (90.0, 89.5)
    with Image.open(tmp_path / "out" / "accuracy.png") as picture:
        assert picture.size[0] > 500


def test_the_net_that_is_timed_is_the_net_that_was_trained(tmp_path):
    """The float form of a quantization-aware run has its weights, and its integers are the run's."""
    settings = a_run()
    model = quant.prepare(models.build("resnet20", 10, 16, {}), quant.resolve(settings.quant))
    images = torch.randn(4, 3, 16, 16)
    model(images)
    seen = data.Dataset(None, None, [str(i) for i in range(10)], (0.5,) * 3, (0.25,) * 3, False)
    torch.save(checkpoint.pack(model, settings.model_dump(), seen, True, 1), tmp_path / "last.pt")
    subject = latency.build(str(tmp_path), 224, 1000, trust=False)
    quant.set_enabled(model.eval(), False)
    with torch.no_grad():
        assert torch.allclose(subject.float_model(images), model(images), atol=1e-5)
        quant.set_enabled(model, True)
        assert torch.equal(subject.prepared(images), model(images))


def test_an_engine_that_fails_is_named_and_the_others_are_timed(tmp_path, capsys, monkeypatch):
    def compile_for(model, images):
        raise quant.EngineFailed("engines: other cannot run this model: no such shape")

    other = type("Other", (type(quant.engine("reference")),), {"name": "other"})
    monkeypatch.setitem(quant.ENGINES, "other", other)
    real = IntegerModel.compile_for
    monkeypatch.setattr(
        IntegerModel,
        "compile_for",
        lambda model, images: (compile_for if model.engine.name == "other" else real)(model, images),
    )
    latency.main([*QUICK, 'models=["resnet20"]', 'engines=["other","reference"]', f"dir={tmp_path}", "threads=1"])
    rows = json.loads((tmp_path / "latency.json").read_text())
    assert [row["engine"] for row in rows] == ["reference"]
    assert "engines: other cannot run this model: no such shape" in capsys.readouterr().out
