"""docs/extending.md: its code is applied to a copy of the project, where its commands and the contract tests run."""

import os
import subprocess
import sys

import pytest

from tests import guide

TESTS = ("tests/added.py", "tests/quant/core/test_quantizer.py", "tests/quant/engines/test_convert.py")
CHOSEN = "added or lsq_p and (test_contract or trains_and_converts)"
"""What must hold of the additions, and some of the tests that run over the tables, for the rows that were added."""


def test_what_the_guide_adds_works_and_keeps_the_contracts(tmp_path):
    guide.apply(tmp_path / "project")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *TESTS, "-k", CHOSEN]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path / "project", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_the_guide_has_code_and_commands():
    assert len(guide.blocks()) == 13
    assert [script for script, *_ in guide.commands()] == ["train.py"] * 6 + ["evaluate.py"]


SOURCE = """import a

T: dict = {
    "a": 1,
}
rest = 0
"""
BLOCK = """from b import c

T = {
    ...
    "c": 2,
}


def f():
    pass
"""
ADDED = """from b import c
import a

T: dict = {
    "a": 1,
    "c": 2,
}
rest = 0


def f():
    pass
"""


def test_imports_rows_and_functions_are_added_where_they_belong():
    assert guide.added(SOURCE, BLOCK) == ADDED
    with pytest.raises(AssertionError, match="there is no table U"):
        guide.added(SOURCE, BLOCK.replace("T =", "U ="))
