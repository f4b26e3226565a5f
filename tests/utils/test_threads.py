"""Threads that wait sleep soon, unless the environment says how they wait."""

import os
import subprocess
import sys

import pytest

from utils.threads import SPINS, wait_briefly


def test_the_environment_comes_first(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    wait_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == "7"


def test_a_stated_policy_is_left_alone(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    wait_briefly()
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize("script", ["train", "evaluate", "latency"])
def test_every_script_says_it_before_torch_is_imported(script):
    code = f"""
import builtins, os, sys
real = builtins.__import__
def watched(name, *rest, **named):
    if name == "torch" and "torch" not in sys.modules:
        print(os.environ.get("GOMP_SPINCOUNT"))
        sys.exit()
    return real(name, *rest, **named)
builtins.__import__ = watched
import {script}
"""
    environment = dict(os.environ)
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        environment.pop(name, None)
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(SPINS)
