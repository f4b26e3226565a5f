"""Memory that is kept is not asked of the kernel again."""

import subprocess
import sys

import numpy
import pytest
import torch

from experiment import session, training
from utils import memory
from utils.errors import UserError

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


SHORTAGES = {
    "torch": lambda: torch.empty(2**50),
    "numpy": lambda: numpy.empty(2**50),
    "Python": lambda: bytearray(2**50),
}


@pytest.mark.parametrize("library", list(SHORTAGES))
def test_a_shortage_is_one_line_that_says_what_takes_less(library):
    said = r"^out of memory.*, of which [\d.]+ GB are free: fewer images$"
    with pytest.raises(UserError, match=said), memory.explain_out_of_memory("fewer images"):
        SHORTAGES[library]()


def test_a_gpu_says_how_much_was_asked_for():
    with (
        pytest.raises(UserError, match=r"^out of memory for 20.00 GiB at once, "),
        memory.explain_out_of_memory("less"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 15 GiB in all.")


def test_a_gpu_says_how_much_of_its_own_memory_is_free():
    message = (
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.80 GiB of which 11.25 GiB "
        "is free. Of the allocated memory 100.00 GiB is allocated by PyTorch."
    )
    said = r"^out of GPU memory for 20.00 GiB at once, of which 11.25 GiB are free: less$"
    with pytest.raises(UserError, match=said), memory.explain_out_of_memory("less"):
        raise torch.OutOfMemoryError(message)


def test_another_error_stays_what_it_is():
    with pytest.raises(RuntimeError, match=r"^sizes do not match$"), memory.explain_out_of_memory("less"):
        raise RuntimeError("sizes do not match")


def test_a_run_that_takes_too_much_keeps_its_folder_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(session.Session, "fit", lambda self: torch.empty(2**50))
    with pytest.raises(UserError, match=r"out of memory for 4503599.6 GB at once.*: a smaller data.batch_size"):
        training.main(["data.limit=64", f"run.dir={tmp_path}", "run.name=run"])
    assert (tmp_path / "run" / "config.json").is_file()
