"""How much memory is free; and keeping freed memory in the process instead of returning it to the operating system.

glibc returns the memory of every large tensor to the kernel when the tensor is freed, and requests it again a moment
later. Each time, the kernel clears and maps every page. The cost depends on the load of the machine: evaluating a
quantized model took up to twice as long.
"""

import contextlib
import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from utils.errors import UserError

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


@contextlib.contextmanager
def explain_out_of_memory(cure: str) -> Iterator[None]:
    """Turn running out of memory, of the CPU or of a GPU, into a UserError. cure: which keys take less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_shortage(error):
            raise
        asked = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
        wanted = f" for {_readable(asked[1])} at once" if asked else ""
        of_gpu = re.search(r"of which ([\d.]+ \w+) is free", str(error))
        where, free = ("GPU ", of_gpu[1]) if of_gpu else ("", available())
        raise UserError(f"out of {where}memory{wanted}, of which {_readable(free)} are free: {cure}") from error


def _is_shortage(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text


def _readable(count: str | float) -> str:
    """'4.5 GB' for a number of bytes; '20.00 GiB', which GPUs' messages have, as it is."""
    number = str(count).removesuffix(" bytes")
    return f"{float(number) / 1e9:.1f} GB" if re.fullmatch(r"[\d.]+|inf", number) else str(count)


def available() -> float:
    """Bytes that this process could still take; infinitely many where the system does not tell."""
    found = float("inf")
    with contextlib.suppress(OSError):
        for number in re.findall(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE):
            found = 1024.0 * int(number)
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        found = min(found, float(int(Path("/sys/fs/cgroup/memory.max").read_text())))
    return found
