"""The native engines on a CPU without VNNI."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import KERNELS
from utils.environment import environment

HERE = Path(__file__).parent
FILES = [HERE, HERE.parent / "test_layerwise_check.py", HERE.parent / "test_verify.py"]


@pytest.mark.skipif("ONEDNN_MAX_CPU_ISA" in os.environ, reason="this is that run")
@pytest.mark.skipif("onednn" not in KERNELS, reason="this build of torch lacks onednn")
@pytest.mark.skipif(not any("vnni" in flag for flag in environment()["cpu_flags"]), reason="so does this CPU")
def test_all_of_this_holds_without_vnni(nets_folder):
    """oneDNN held to AVX2, whose int8 kernels saturate: the same tests, in a process of their own."""
    held = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "TRAINED_NETS": str(nets_folder)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *map(str, FILES)]
    done = subprocess.run(command, env=held, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
