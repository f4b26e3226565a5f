"""The log of a run: a row an epoch, the best of the candidates, the time that a continued run took in all."""

import csv
import sys

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
    assert log.best == 60.0
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [(row["epoch"], row["val_top1"]) for row in rows] == [("1", "90.0"), ("2", "60.0"), ("3", "60.0")]


def test_a_restored_log_counts_the_time_before(tmp_path):
    log = RunLog(tmp_path, 3)
    log.record("float", score(50), None, 0.1, True)
    log.restore(log.state() | {"run_seconds": 1000.0})
    assert 1000 <= log.run_seconds() < 1010
    assert len(log.rows) == 1
    assert log.best is None


def test_a_level_is_reported_when_it_is_first_reached():
    rows = [{"seconds": 60, "val_top1": value} for value in (40.0, 61.0, 55.0, 71.0)]
    assert time_to_accuracy(rows) == "50 % after 2.0 min, 60 % after 2.0 min, 70 % after 4.0 min"
    assert time_to_accuracy([{"seconds": 60}]) == ""


def test_without_tensorboard_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"run.tensorboard: tensorboard is not installed; pip install tensorboard"):
        check_tensorboard()
