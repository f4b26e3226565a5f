"""Memory that is kept is not asked of the kernel again."""

import subprocess
import sys

import pytest

from utils import memory

PROGRAM = """
import resource, sys, torch
from utils import memory
if sys.argv[1] == "kept":
    memory.keep_freed()
def maps():
    for _ in range(20):
        [torch.ones(2**22) for _ in range(8)]
maps()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
maps()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_pages_are_mapped_once():
    faults = {}
    for way in ("kept", "given back"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, way], capture_output=True, text=True, check=True)
        faults[way] = int(done.stdout)
    if faults["given back"] < 1000:
        pytest.skip("this C library keeps it by itself")
    assert faults["kept"] < 0.1 * faults["given back"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_some_of_the_memory_is_free():
    assert 2**20 < memory.available() < 2**50
