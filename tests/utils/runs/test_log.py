"""The log of a run: a row an epoch, the best of the candidates, the time that a continued run took in all."""

import csv
import sys
from dataclasses import replace

import pytest

from utils.errors import UserError
from utils.metrics import Score
from utils.runs.log import RunLog, check_tensorboard, time_to_accuracy


def score(top1: int) -> Score:
    return Score(images=100, correct1=top1, correct5=100, loss_sum=50.0)


def test_only_a_candidate_that_is_better_becomes_the_best(tmp_path):
    log = RunLog(tmp_path, 3)
    found = [log.record("float", score(50), score(val), 0.1, counts) for val, counts in ((90, False), (60, True))]
    assert found == [False, True]
    assert log.record("lsq", score(50), score(60), 0.1, True) is False, "as good is not better"
    assert log.best == (60.0, -log.rows[1]["val_loss"])
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [(row["epoch"], row["val_top1"]) for row in rows] == [("1", "90.0"), ("2", "60.0"), ("3", "60.0")]


def test_among_epochs_of_the_same_accuracy_the_smaller_loss_is_better(tmp_path):
    log = RunLog(tmp_path, 3)
    losses = (100.0, 50.0, 70.0)
    found = [log.record("float", score(50), replace(score(60), loss_sum=loss), 0.1, True) for loss in losses]
    assert found == [True, True, False]
    restored = RunLog(tmp_path, 3)
    restored.restore(log.state())
    assert restored.best == log.best
    restored.restore(log.state() | {"best": 60.0})  # an earlier version's
    assert restored.record("float", score(50), replace(score(60), loss_sum=1.0), 0.1, True) is False


def test_the_line_of_an_epoch_fits_into_80_columns(tmp_path, capsys):
    log = RunLog(tmp_path, 100)
    log.epoch_seconds = 99.9
    log.record("statassist", score(100), score(100), 0.1, True)
    [line] = capsys.readouterr().out.splitlines()
    assert len(line) <= 80
    assert line.startswith("epoch   1/100 statassist  loss ")
    assert "train top-1 100.00 %  val 100.00 %" in line


def test_a_restored_log_counts_the_time_before(tmp_path):
    log = RunLog(tmp_path, 3)
    log.record("float", score(50), None, 0.1, True)
    log.restore(log.state() | {"run_seconds": 1000.0})
    assert 1000 <= log.run_seconds() < 1010
    assert len(log.rows) == 1
    assert log.best is None


def test_the_best_epoch_is_known_after_a_restart_too(tmp_path):
    log = RunLog(tmp_path, 3)
    assert log.best_epoch() is None
    for val in (30, 50, 40):
        log.record("float", score(50), score(val), 0.1, True)
    again = RunLog(tmp_path, 3)
    again.restore(log.state())
    assert log.best_epoch() == again.best_epoch() == 2


def test_a_level_is_reported_when_it_is_first_reached():
    rows = [{"seconds": 60, "val_top1": value} for value in (40.0, 61.0, 55.0, 71.0)]
    assert time_to_accuracy(rows) == "60 % after 2.0 min, 70 % after 4.0 min"
    assert time_to_accuracy([{"seconds": 60}]) == ""


def test_without_tensorboard_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"run.tensorboard: tensorboard is not installed; pip install tensorboard"):
        check_tensorboard()
