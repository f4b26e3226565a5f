"""How much memory is free; and keeping freed memory in the process instead of returning it to the operating system.

glibc returns the memory of every large tensor to the kernel when the tensor is freed, and requests it again a moment
later. Each time, the kernel clears and maps every page. The cost depends on the load of the machine: evaluating a
quantized model took up to twice as long.
"""

import contextlib
import ctypes
import os
import re
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER = -1
MAX_KEPT = 2**25
"""Bytes. Larger tensors are still returned, because gaps of that size would not be filled again. glibc accepts no
larger threshold (malloc.c: half of HEAP_MAX_SIZE)."""


def keep_freed() -> None:
    """From now on, keep freed memory in the process.

    Does nothing if the C library is not glibc, or if environment variables MALLOC_* configure it.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(M_MMAP_THRESHOLD, MAX_KEPT):
            mallopt(M_TRIM_THRESHOLD, NEVER)


def available() -> float:
    """Bytes that this process could still take; infinitely many where the system does not tell."""
    found = float("inf")
    with contextlib.suppress(OSError):
        for number in re.findall(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE):
            found = 1024.0 * int(number)
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        found = min(found, float(int(Path("/sys/fs/cgroup/memory.max").read_text())))
    return found
