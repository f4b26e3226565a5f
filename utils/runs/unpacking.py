"""What a file of a stranger's would become, before it is unpacked: how much, and how deep.

A zip archive of a megabyte can hold a terabyte of zeros; a pickle of as much, tuples within tuples that end the process
when they are compared. Both are refused by what the file says of itself.
"""

import itertools
import os
import pickletools
import zipfile
from collections.abc import Iterator
from typing import IO, Any

from utils.memory import available

MOST_TIMES, ALWAYS_FINE = 100, 2**27
"""An archive may unpack to so many times its size; and in any case to so many bytes."""
DEEPEST = 1000
"""Tuples within tuples. Python's own limit of what nests."""
PICKLES = 5
"""How many follow each other in a file of torch before 1.6."""


def check_archive(path: str) -> int:
    """How many bytes a zip archive unpacks to; of another file, how many it has.

    Raises ValueError if an archive unpacks to more than such files do, or a file to more than there is memory for.
    """
    size = os.path.getsize(path)
    unpacked = sum(entry.file_size for entry in _entries(path)) or size
    if unpacked > max(MOST_TIMES * size, ALWAYS_FINE):
        raise ValueError(f"it would unpack to {_text(unpacked)}, and has {_text(size)}: not what it says it is")
    if unpacked > available():
        raise ValueError(f"it would take {_text(unpacked)} of memory, of which {_text(available())} are free")
    return unpacked


def _entries(path: str) -> list[zipfile.ZipInfo]:
    """What is in an archive; nothing if it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return []


def _text(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def check_depth(path: str) -> None:
    """Raise ValueError for a file of torch whose pickle has tuples nested so deeply that Python's own code would crash.

    Python compares them without counting. Lists and dicts are counted where they are read: no dict takes them as keys.
    """
    with _pickle(path) as file:
        for _ in range(PICKLES):
            if _depth(file) > DEEPEST:
                raise ValueError("values nested too deeply")


def _pickle(path: str) -> IO[bytes]:
    """The pickle within a file of torch: an entry of the archive or, in old files, the beginning."""
    inside = next((entry for entry in _entries(path) if entry.filename.endswith("data.pkl")), None)
    if inside is None:
        return open(path, "rb")
    with zipfile.ZipFile(path) as archive:
        return archive.open(inside)


def _depth(file: IO[bytes]) -> int:
    """How deeply tuples are nested in the pickle that begins here; 0 for what is none, which its reader refuses."""
    machine = _Depths()
    try:
        for operation, argument, _ in pickletools.genops(file):
            machine.do(operation, argument)
            if machine.deepest > DEEPEST:
                break
    except (ValueError, IndexError, KeyError):
        pass
    return machine.deepest


class _Depths:
    """Runs the operations of a pickle on nothing but the depth of each value."""

    def __init__(self) -> None:
        self.stack: list[int | None] = []
        """Depths of values; None is a mark."""
        self.memo: dict[Any, int] = {}
        self.deepest = 0

    def do(self, operation: pickletools.OpcodeInfo, argument: Any) -> None:
        name = operation.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1] or 0
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1] or 0
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "DUP":
            self.stack.append(self.stack[-1])
        elif name == "MARK":
            self.stack.append(None)
        else:
            self._change(operation)

    def _change(self, operation: pickletools.OpcodeInfo) -> None:
        """Take what the operation takes, leave what it leaves: values as deep as the deepest that it took."""
        taken = list(self._taken(operation.stack_before))
        within = max(taken, default=0) + ("TUPLE" in operation.name)
        self.deepest = max(self.deepest, within)
        self.stack += itertools.repeat(within, len(operation.stack_after))

    def _taken(self, kinds: list[pickletools.StackObject]) -> Iterator[int]:
        for kind in reversed(kinds):
            if kind is pickletools.stackslice:
                while (depth := self.stack.pop()) is not None:
                    yield depth
            elif kind is not pickletools.markobject:  # popped with its slice
                yield self.stack.pop() or 0
