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
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="process 2 has no accelerator: this machine has 2"):
        device.find("auto")


@pytest.mark.parametrize("name", ["cpuu", "", "meta"])
def test_what_is_not_there_is_refused_in_one_line(name):
    with pytest.raises(UserError, match=rf"^run.device: '{name}' is not available here \([^\n]*\)$"):
        device.find(name)
