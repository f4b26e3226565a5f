"""The device of a run: the accelerator if there is one, and one for each process."""

import pytest
import torch

from utils import device
from utils.errors import UserError


def accelerators(monkeypatch, count: int) -> list[int]:
    """Pretend that this machine has so many; returns the numbers of those that were chosen."""
    chosen = []
    found = torch.device("cuda") if count else None
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    return chosen


def test_auto_is_the_cpu_without_an_accelerator(monkeypatch):
    accelerators(monkeypatch, 0)
    assert device.find("auto") == device.find("cpu") == torch.device("cpu")


def test_auto_is_the_accelerator(monkeypatch):
    accelerators(monkeypatch, 1)
    assert device.find("auto") == torch.device("cuda")


def test_each_process_has_a_separate_accelerator(monkeypatch):
    chosen = accelerators(monkeypatch, 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device.find("auto") == torch.device("cuda", 1)
    assert chosen == [1]


@pytest.mark.parametrize(("processes", "count"), [(2, 1), (3, 2), (8, 4)])
@pytest.mark.parametrize("rank", [0, 1])
def test_more_processes_than_accelerators_are_refused_in_each_of_them(rank, processes, count, monkeypatch):
    """The first would wait for the others, for hours."""
    chosen = accelerators(monkeypatch, count)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    with pytest.raises(UserError, match=rf"^run.device: {processes} processes on .*, and {count} of cuda for"):
        device.find("auto")
    assert chosen == []
    assert device.find("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cpuu", "", "meta"])
def test_what_is_not_there_is_refused_in_one_line(name):
    with pytest.raises(UserError, match=rf"^run.device: '{name}' is not available here \([^\n]*\)$"):
        device.find(name)


def test_numbers_are_read_at_every_step_only_where_nothing_waits_for_it():
    assert device.steps_between_reads(torch.device("cpu")) == 1
    assert device.steps_between_reads(torch.device("cuda", 1)) == device.STEPS_BETWEEN_READS > 1
