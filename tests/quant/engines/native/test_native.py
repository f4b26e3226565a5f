"""The native engines on a CPU without VNNI."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from quant.engines.native import NativeEngine, has_quantized_tensors
from quant.engines.onednn import OnednnEngine
from quant.registry import ENGINES
from tests.conftest import KERNELS
from utils.environment import environment

HERE = Path(__file__).parent
FILES = [HERE, *(HERE.parent / name for name in ("onednn", "test_layerwise_check.py", "test_verify.py"))]


@pytest.mark.skipif("ONEDNN_MAX_CPU_ISA" in os.environ, reason="this is that run")
@pytest.mark.skipif("onednn" not in KERNELS, reason="this build of torch lacks onednn")
@pytest.mark.skipif(not any("vnni" in flag for flag in environment()["cpu_flags"]), reason="so does this CPU")
def test_all_of_this_holds_without_vnni(nets_folder):
    """oneDNN held to AVX2, whose int8 kernels saturate: the same tests, in a process of their own."""
    held = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "TRAINED_NETS": str(nets_folder)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *map(str, FILES)]
    done = subprocess.run(command, env=held, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_removal_of_quantized_tensors_is_not_announced():
    """torch warns once per process; other warnings are left alone."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            assert has_quantized_tensors.__wrapped__()
            warnings.warn("another", stacklevel=1)
    finally:
        torch.set_warn_always(before)
    assert [str(warning.message) for warning in seen] == ["another"]


@pytest.fixture
def without_quantized_tensors(monkeypatch):
    monkeypatch.delattr("torch.quantize_per_tensor")
    has_quantized_tensors.cache_clear()
    yield
    has_quantized_tensors.cache_clear()


def test_x86_runs_on_plain_uint8_without_quantized_tensors(without_quantized_tensors):
    assert type(ENGINES["x86"]()) is OnednnEngine


@pytest.mark.parametrize("name", ["fbgemm", "qnnpack"])
def test_a_torch_without_quantized_tensors_is_told(name, without_quantized_tensors):
    assert NativeEngine(name).missing() == "needs quantized tensors, which this version of torch no longer has"
