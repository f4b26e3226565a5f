"""What a finished run leaves, and which float accuracy a sweep is compared with."""

import errno
import json
from types import SimpleNamespace

import pytest
import torch

import data
import models
import quant
from experiment import results
from experiment.settings import TrainSettings, resolved
from utils import files
from utils.runs.log import RunLog

PIXELS = torch.zeros(3, 16, 16, 3, dtype=torch.uint8)
IMAGES = data.Images(PIXELS, torch.tensor([0, 1, 1]))
DATASET = data.Dataset(IMAGES, IMAGES, ["a", "b"], (0.5,) * 3, (0.25,) * 3, flip=False)


def settings(**sections) -> TrainSettings:
    return resolved(TrainSettings.model_validate({"data": {"image_size": 16, "limit": 50}} | sections))


@pytest.mark.parametrize(
    ("sections", "best", "expected"),
    [
        ({"quant": {"method": "ptq"}}, None, {"last.pt"}),
        ({"quant": {"method": "ptq"}}, (90.0, -0.5), {"last.pt", "best.pt"}),
        ({"quant": {"method": "statassist"}}, None, set()),
        ({"quant": {"method": "statassist"}}, (90.0, -0.5), {"best.pt"}),
        ({"quant": {"method": "statassist"}, "optim": {"average": 0.9}}, None, {"last.pt"}),
        ({"quant": {"method": "statassist", "bn_reestimation_images": 9}}, None, {"last.pt"}),
    ],
)
def test_the_final_model_is_saved_where_checkpoints_hold_another(sections, best, expected, tmp_path):
    log = RunLog(tmp_path, 2)
    log.best = best
    results.save_final(torch.nn.Linear(2, 2), settings(run={"epochs": 2}, **sections), DATASET, log, None)
    assert {path.name for path in tmp_path.iterdir()} == expected


def test_a_float_model_has_32_bits_and_the_best_checkpoint_counts(tmp_path):
    log = RunLog(tmp_path, 2)
    found = results.summarize(settings(run={"epochs": 2}), True, log, {"params": 1, "macs": 2})
    assert (found["weight_bits"], found["act_bits"], found["checkpoint"], found["macs"]) == (8, 8, "last.pt", 2)
    log.best = 90.0
    assert results.summarize(settings(run={"epochs": 2}), False, log, {})["weight_bits"] == 32
    assert results.summarize(settings(run={"epochs": 2}), True, log, {})["checkpoint"] == "best.pt"


def test_runs_are_compared_with_the_float_weights_that_all_start_from(tmp_path):
    for name, classes in (("ten", 10), ("seven", 7)):
        torch.save(models.build("resnet20", classes, 16, {}).state_dict(), tmp_path / f"{name}.pt")
    lsq = {"quant": {"method": "lsq", "weight_bits": 4, "act_bits": 4}, "run": {"epochs": 1}}
    ten, seven = ({"model": {"name": "resnet20", "weights": str(tmp_path / f"{n}.pt")}} for n in ("ten", "seven"))
    same = settings(**lsq, **ten)
    assert set(results.float_score([same, same])) == {"top1", "top5", "loss"}
    assert results.float_score([settings(**lsq)]) is None, "from random weights"
    assert results.float_score([same, settings(**lsq, **seven)]) is None, "from different weights"
    assert results.float_score([settings(**lsq, **seven)]) is None, "of other classes"
    trained_on = settings(quant={"method": "float"}, run={"epochs": 1}, **ten)
    assert results.float_score([same, trained_on]) is None, "one trains the float net further"


@pytest.fixture
def measured(monkeypatch):
    """Stands in for the measurement of a model that predicts class 1 for all images."""
    predictions = quant.Predictions(IMAGES.labels, {"float": torch.tensor([1, 1, 1])}, {"float": torch.ones(3)})
    result = {"accuracy": {"float": {"top1": 66.7, "top5": 100.0, "loss": 0.5}}, "size_mb": {"float": 1.0}}
    found = quant.Measurement(result, "all in integers", "layers", predictions, "", [])
    monkeypatch.setattr(results.quant, "measure", lambda *_: found)
    monkeypatch.setattr(results, "accuracy_table", lambda _: "the table")


def measure(folder):
    batches = SimpleNamespace(seen=[torch.arange(3)])
    results.measure(torch.nn.Linear(2, 2), settings(), DATASET, batches, RunLog(folder, 2), {})


def test_a_full_disk_costs_no_finished_work(tmp_path, monkeypatch, capsys, measured):
    """The table is on the screen, and what can still be written is."""

    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        measure(tmp_path)
    said = capsys.readouterr().out
    assert "the table" in said
    for name in ("layers.txt", "report.html"):
        assert f"{tmp_path}/{name} could not be written (No space left on device); going on without it" in said


def test_a_summary_says_what_is_confused(tmp_path, measured):
    measure(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["confusion"] == {"float": {"cells": [["a", "b", 1]], "cells_left_out": 0}}
    assert summary["mistakes"]["images"] == [{"index": 0, "label": "a", "predicted": "b", "probability": 1.0}]
    assert summary["accuracy"]["float"]["top1"] == 66.7


def test_a_page_that_cannot_be_made_costs_no_result(tmp_path, monkeypatch, capsys, measured):
    def broken(subject, path):
        raise KeyError("a mistake in the page")

    monkeypatch.setattr(results.run_report, "write", broken)
    measure(tmp_path)
    assert (tmp_path / "summary.json").is_file()
    assert f"{tmp_path}/report.html could not be made ('a mistake in the page')" in capsys.readouterr().out


def test_what_is_no_better_than_guessing_is_said():
    labels = torch.tensor([0, 0, 1, 2])
    accuracy = {"float": {"top1": 50.0}, "simulated": {"top1": 25.0}}
    assert results.no_better_than_guessing(accuracy, labels).startswith(
        "no better than always naming the most frequent class (50.0 %)"
    )
    assert results.no_better_than_guessing(accuracy | {"x86": {"top1": 75.0}}, labels) is None
