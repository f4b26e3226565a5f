"""A training step asks its device for nothing: counted on the CPU, and on an accelerator that has no values to give."""

import subprocess
import sys

import pytest
import torch

import quant
from benchmarks.step_counts import OPTIONS, Counts, Lists, Operators, count
from tests.fake_accelerator import COMBINATIONS


def test_every_method_that_trains_is_counted():
    assert {keys["method"] for keys in OPTIONS.values()} == set(quant.METHODS) - {"ptq"}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_step_reads_and_makes_nothing(name):
    found = count(OPTIONS[name], "fast_cnn", "qsgd")
    assert (found.reads, found.made) == (0, 0), found.where
    assert found.calls > 300


def test_numbers_are_read_once_at_the_end():
    assert count(OPTIONS["lsq"], "fast_cnn", "adamw", steps=6, image_size=32).deferred == 1


def test_what_is_counted():
    """Also what is not: Python numbers in operators, tensors filled on the device, and reads that are free."""
    x, free, counts = torch.ones(3), torch.tensor(1.0), Counts()
    with Operators(counts, lambda y: y is free), Lists(counts):
        _ = x * 2 + torch.zeros_like(x) + torch.full((), 3.0)
        assert (counts.reads, counts.copies, counts.made, counts.deferred) == (0, 0, 0, 0)
        _ = float(free), x.sum().item(), bool(x.any()), torch.tensor(2.0), x.new_tensor(3), x.to("meta"), x.tolist()
    assert (counts.reads, counts.copies, counts.made, counts.deferred) == (2, 1, 2, 1)


def test_every_method_and_optimizer_trains_where_no_number_can_be_read():
    command = [sys.executable, "-m", "tests.fake_accelerator"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = dict(line.rsplit(": ", 1) for line in done.stdout.splitlines())
    assert list(found) == [", ".join(combination) for combination in COMBINATIONS]
    assert set(found.values()) == {"0 0 0"}
