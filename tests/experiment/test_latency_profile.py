"""latency.py profile=true takes the engines of torch apart, and says which it cannot."""

import csv
import json

import pytest
import torch
from PIL import Image

from experiment import latency
from quant.analysis import profile as profiles
from quant.engines.base import IntegerModel
from quant.engines.programs import ProgramModel
from quant.engines.runtimes import RuntimeModel


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(profiles, "peak", lambda engine: 100.0)
    yield
    torch.set_num_threads(before)


def test_every_operator_is_in_a_table_and_the_worst_are_printed_with_the_reason(tmp_path, capsys):
    keys = ["repeats=2", "warmup=0", "image_size=32", "num_classes=10", "profile=true", f"dir={tmp_path}"]
    latency.main([*keys, 'models=["resnet20"]', 'engines=["reference"]', "batch_size=[1,2]", "threads=1"])
    with (tmp_path / "latency-profile.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["batch_size"] for row in rows} == {"1", "2"}
    first = [row for row in rows if row["batch_size"] == "1"]
    assert first[0] | {"name": "x", "engine": "reference", "model": "resnet20"} == first[0]
    assert sum(int(row["macs"]) for row in first) == 40_551_040
    assert {row["output"] for row in first} >= {"1x16x32x32", "1x64x8x8", "1x10"}
    printed = capsys.readouterr().out
    assert "resnet20 @32, reference, batch 2, 1 thread: " in printed
    assert "lost, of all operators: " in printed
    with Image.open(tmp_path / "latency-profile.png") as picture:
        assert picture.size[1] > 500, "one part for each batch size"


def test_an_engine_that_runs_one_program_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(IntegerModel, "runs_by_operator", False)
    keys = ["repeats=2", "warmup=0", "image_size=32", "num_classes=10", "profile=true", f"dir={tmp_path}"]
    latency.main([*keys, 'models=["resnet20"]', 'engines=["reference"]', "threads=1"])
    assert "profile: reference runs resnet20 as one program of its own" in capsys.readouterr().out
    assert not (tmp_path / "latency-profile.csv").exists()
    assert json.loads((tmp_path / "latency.json").read_text()), "it is timed all the same"


@pytest.mark.parametrize("kind", [RuntimeModel, ProgramModel])
def test_packages_run_one_program(kind):
    assert not kind.runs_by_operator
