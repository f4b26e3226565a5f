"""benchmarks/soak: what it compares, and what it takes for a violation."""

import json
import os
import signal
import sys
import time

import pytest
import torch

from benchmarks.soak import processes, runs
from benchmarks.soak.__main__ import summary
from benchmarks.soak.processes import How, Program, Violation
from utils.runs import tensor_file


def left(folder, weight: float = 1.0, seconds: float = 3.0, accuracy: float = 90.0) -> dict[str, str]:
    """The outcome of a run with these values."""
    run = folder / "runs" / "run"
    run.mkdir(parents=True)
    tensor_file.save(run / "last.pt", {"model": {"w": torch.tensor([weight])}, "log": {"seconds": seconds}})
    (run / "summary.json").write_text(json.dumps({"seconds": seconds, "accuracy": {"reference": accuracy}}))
    return runs.outcome(folder)


def test_runs_are_the_same_whatever_time_they_took(tmp_path):
    assert runs.difference(left(tmp_path / "a"), left(tmp_path / "b", seconds=4.0)) == ""


@pytest.mark.parametrize(
    ("other", "named"),
    [({"weight": 1.0 + 2**-23}, "last.pt.model.w"), ({"accuracy": 91.0}, "summary.json.accuracy.reference")],
)
def test_the_last_bit_of_a_tensor_and_an_accuracy_make_a_difference(other, named, tmp_path):
    found = runs.difference(left(tmp_path / "a"), left(tmp_path / "b", **other))
    assert found.startswith("1 of ")
    assert named in found


def test_what_is_half_written_makes_a_difference(tmp_path):
    expected = left(tmp_path / "a")
    left(tmp_path / "b")
    (tmp_path / "b" / "runs" / "run" / ".summary.123.json").write_text("0")
    assert ".summary.123.json" in runs.difference(expected, runs.outcome(tmp_path / "b"))


def test_a_run_that_was_moved_aside_makes_no_difference(tmp_path):
    expected = left(tmp_path / "a")
    left(tmp_path / "b")
    left(tmp_path / "c", weight=2.0)
    (tmp_path / "c" / "runs" / "run").rename(tmp_path / "b" / "runs" / "run.1")
    assert runs.difference(expected, runs.outcome(tmp_path / "b")) == ""


def ended(code: int, said: str, signals: tuple[int, ...], tmp_path, monkeypatch) -> tuple[int, str]:
    """How a program ends that says this on stderr, waits for these signals and ends with this code."""

    def main(arguments: list[str]) -> None:
        print(said, end="", file=sys.stderr)
        sys.stderr.flush()
        time.sleep(60 * bool(signals))
        sys.exit(code)

    monkeypatch.setitem(processes.SCRIPTS, "train", main)
    program = Program("train", [], How(), tmp_path / "said")
    for number in signals:
        program.send(number)
    return program.end()


@pytest.mark.parametrize(
    ("code", "said", "signals", "expected"),
    [
        (0, "", (), (0, "")),
        (2, "run.seed: wrong\n", (), (2, "run.seed: wrong")),
        (0, "", (signal.SIGKILL,), (-9, "")),
        (0, "a warning\n", (), None),
        (2, "two\nlines\n", (), None),
        (2, "", (), None),
        (1, "Traceback\n", (), None),
        (130, "stopped\n", (), None),
    ],
)
def test_an_end_is_nothing_or_a_line_or_a_signal_that_was_sent(code, said, signals, expected, tmp_path, monkeypatch):
    if expected is None:
        with pytest.raises(Violation, match=f"exit code {code}, "):
            ended(code, said, signals, tmp_path, monkeypatch)
    else:
        assert ended(code, said, signals, tmp_path, monkeypatch) == expected


def test_a_process_that_is_left_behind_is_a_violation(tmp_path, monkeypatch):
    def main(arguments: list[str]) -> None:
        if os.fork() == 0:
            time.sleep(60)

    monkeypatch.setitem(processes.SCRIPTS, "train", main)
    monkeypatch.setattr(processes, "GRACE", 0.2)
    program = Program("train", [], How(), tmp_path / "said")
    with pytest.raises(Violation, match="left 1 processes behind"):
        program.end()


def test_the_summary_counts_endings_and_repeats_violations():
    row = {"kind": "lsq", "fault": "SIGKILL", "ending": "identical", "seconds": 1.0, "notes": [], "violation": ""}
    found = summary([row | {"trial": 1}, row | {"trial": 2, "ending": "violation", "violation": "hangs"}])
    assert "| SIGKILL | " in found
    assert found.endswith("trial 2: hangs")
