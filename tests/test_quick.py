"""One path through everything, in less than a minute: train, compare, evaluate, export, load again, time, sweep.

`make quick` runs this file alone.
"""

import csv
import json

import pytest
import torch

import quant
from experiment import evaluation, latency, training
from tests.conftest import KERNELS

DATA = ["data.name=digits", "data.image_size=16", "data.batch_size=32"]
NET = ["model.name=tests.nets:Residual"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An LSQ 4/4 run of one epoch, measured on every engine that is here."""
    folder = tmp_path_factory.mktemp("runs")
    method = ["quant.method=lsq", "quant.weight_bits=4", "quant.act_bits=4"]
    end = [
        "run.epochs=2",
        "optim.name=adam",
        "optim.lr=0.01",
        f"run.engines={json.dumps(KERNELS)}",
        f"run.dir={folder}",
        "run.name=quick",
    ]
    training.main([*DATA, *NET, *method, *end])
    return folder / "quick"


def test_every_engine_computes_what_was_simulated(run):
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["accuracy"]) == {"simulated", *KERNELS}
    assert summary["agreement"] == dict.fromkeys(KERNELS, 100.0)
    assert summary["bit_equal"] == dict.fromkeys(KERNELS, 100.0)
    assert summary["accuracy"]["simulated"]["top1"] > 40, "chance is 10"
    assert summary["size_mb_at_bits"] < summary["size_mb"]["reference"] < summary["size_mb"]["float"]


def test_a_checkpoint_is_measured_and_exported(run, tmp_path, capsys):
    images = torch.randn(4, 3, 16, 16)
    checkpoint = f"checkpoint={run / 'last.pt'}"
    evaluation.main(
        [
            checkpoint,
            "trust=true",
            f"output={tmp_path}",
            f"export={tmp_path / 'm.npz'}",
            f"engines={json.dumps(KERNELS)}",
        ]
    )
    evaluation.main(
        [checkpoint, "trust=true", f"output={tmp_path}", f"export={tmp_path / 'folder'}", 'engines=["reference"]']
    )
    measured = json.loads((tmp_path / "evaluation.json").read_text())
    trained = json.loads((run / "summary.json").read_text())
    assert measured["accuracy"]["reference"] == trained["accuracy"]["reference"]
    exported = torch.export.load(tmp_path / "folder" / "model.pt2").module()
    packed = quant.load_packed(str(tmp_path / "m.npz"))
    with torch.inference_mode():
        assert torch.equal(exported(images), packed(images))


def test_a_run_is_timed(run, tmp_path, capsys):
    latency.main(
        [
            "trust=true",
            f"models=[{json.dumps(str(run))}]",
            'engines=["reference"]',
            "repeats=2",
            "warmup=1",
            f"dir={tmp_path}",
        ]
    )
    (row,) = json.loads((tmp_path / "latency.json").read_text())
    assert row["speedup"] == pytest.approx(row["float_ms"] / row["int8_ms"])
    assert row["image_size"] == 16


def test_post_training_quantization_sweeps_over_bits(run, tmp_path, capsys):
    start = [f"model.weights={run / 'last.pt'}", "run.epochs=0", "quant.method=ptq", "quant.observer=mse"]
    cells = ['sweep={"quant.weight_bits":[2,8]}', f"run.dir={tmp_path}", "run.name=grid", 'run.engines=["x86"]']
    training.main([*DATA, *NET, *start, *cells])
    with (tmp_path / "grid" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["weight_bits"] for row in rows] == ["2", "8"]
    assert [float(row["x86_agreement"]) for row in rows] == [100, 100]
    assert "weight_bits" in (tmp_path / "grid" / "table.md").read_text()
