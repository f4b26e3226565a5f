"""docs/extending.md as a contributor follows it: its code, its commands, and a copy of the project with its additions.

A block starts with a comment that names its file. A new file is written. To a file that exists, imports, rows of a
table and functions are added. `python -m tests.guide FOLDER` applies the guide to a fresh copy of the project.
"""

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "extending.md"
FOLDERS = ("data", "docs", "experiment", "models", "quant", "setting", "tests", "utils")
FILES = ("pyproject.toml", "train.py", "evaluate.py", "latency.py")
MOVED = {"stripes.py": "data/stripes.py", "tiny_net.py": "models/tiny_net.py"}
"""Modules of one's own that the guide then makes part of the project."""

IMPORT = re.compile(r"^(?:from|import) .*\n", re.MULTILINE)
TABLE = re.compile(r"^(\w+) = \{\n    \.\.\.\n(.*?)^\}\n", re.MULTILINE | re.DOTALL)
"""The rows that a block adds to a table."""


class Block(NamedTuple):
    path: str
    code: str


def blocks() -> list[Block]:
    found = re.findall(r"^```python\n# (\S+)\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(*each) for each in found]


def commands() -> list[list[str]]:
    """The arguments of each command, the script's name first."""
    found = re.findall(r"^```sh\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    return [shlex.split(line)[1:] for block in found for line in block.splitlines()]


def apply(tree: Path) -> None:
    """Copy the project to `tree` and make all of the guide's additions."""
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tree / folder)
    for name in FILES:
        shutil.copy2(ROOT / name, tree / name)
    for path, code in blocks():
        target = tree / path
        if target.exists():
            target.write_text(added(target.read_text(), code))
            continue
        target.write_text(code)
        if path in MOVED:
            (tree / MOVED[path]).write_text(code)


def added(source: str, block: str) -> str:
    """Source with what a block adds: imports before the others, rows at the end of their table, the rest at the end."""
    imports = "".join(IMPORT.findall(block))
    first = re.search(r"^(?:from|import) ", source, re.MULTILINE)
    source = source[: first.start()] + imports + source[first.start() :]
    for name, rows in TABLE.findall(block):
        start = re.search(rf"^{name}\b.*= \{{$", source, re.MULTILINE)
        assert start, f"there is no table {name}"
        end = source.index("\n}\n", start.end()) + 1
        source = source[:end] + rows + source[end:]
    rest = TABLE.sub("", IMPORT.sub("", block)).strip()
    return f"{source}\n\n{rest}\n" if rest else source


if __name__ == "__main__":
    apply(Path(sys.argv[1]))
