"""A run records the machine and the software that it used."""

import json
import subprocess

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
