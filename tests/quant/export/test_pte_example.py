"""The example of a .pte file finds the program by its own name (what it answers: test_executorch.py)."""

from pathlib import Path

import pytest

from quant.export.pte_example import asker
from tests.conftest import needs_executorch


@needs_executorch
def test_the_program_is_the_one_of_that_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"my_net\.json"):
        asker(Path(tmp_path / "my_net_example.py"))
