"""A run records the machine and the software that it used."""

import json
import subprocess
from types import SimpleNamespace

import torch

from utils import environment
from utils.environment import INT8_FLAGS


def test_what_is_recorded():
    found = environment.environment()
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert set(found["cpu_flags"]) <= set(INT8_FLAGS)
    assert found["cpu"]
    assert json.loads(json.dumps(found)) == found


def test_without_git_there_is_no_commit(monkeypatch):
    def fail(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", fail)
    assert environment.environment()["git_commit"] is None


def test_accelerators_and_their_driver_are_recorded(monkeypatch):
    cuda = SimpleNamespace(get_device_name=lambda number: f"GPU {number}")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "get_device_module", lambda device: cuda)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="570.1\n570.1\n"))
    found = environment.environment()
    assert (found["accelerator"], found["accelerators"], found["driver"]) == ("cuda", ["GPU 0", "GPU 1"], "570.1")
    assert {"cuda", "cudnn"} <= set(found)
