"""What a finished run leaves, and which float accuracy a sweep is compared with."""

import errno
from types import SimpleNamespace

import pytest
import torch

import models
from experiment import results
from experiment.settings import TrainSettings, resolved
from utils import files
from utils.runs.log import RunLog

DATASET = SimpleNamespace(classes=["a", "b"], mean=(0.5,) * 3, std=(0.25,) * 3)


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


def test_a_full_disk_costs_no_finished_work(tmp_path, monkeypatch, capsys):
    """The table is on the screen, and what can still be written is."""
    measured = SimpleNamespace(result={}, layers="layers", in_float="all in integers")
    monkeypatch.setattr(results.quant, "measure", lambda *_: measured)
    monkeypatch.setattr(results, "accuracy_table", lambda _: "the table")

    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        results.measure(torch.nn.Linear(2, 2), settings(), [], RunLog(tmp_path, 2), {})
    said = capsys.readouterr().out
    assert "the table" in said
    assert f"{tmp_path}/layers.txt could not be written (No space left on device); going on without it" in said
