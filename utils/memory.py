"""The C library's memory: kept for what is allocated next, instead of given back.

glibc hands every large tensor back to the kernel when it is freed, and asks for it again a moment later; the kernel
then clears and maps each page anew. What that costs depends on what else the machine does: a quantized net in eval took
from as long to twice as long here.
"""

import contextlib
import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER = -1
LARGEST = 2**25
"""Bytes from which a tensor goes back all the same: holes of that size would not be filled again.
glibc takes no more (malloc.c: half of HEAP_MAX_SIZE)."""


def keep() -> None:
    """From now on, freed memory stays with the process. Does nothing where the C library is not glibc, or was told
    otherwise (MALLOC_* in the environment)."""
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(M_MMAP_THRESHOLD, LARGEST):
            mallopt(M_TRIM_THRESHOLD, NEVER)
