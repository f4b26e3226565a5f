"""The example of a .tflite file finds that by its own name (what it answers: test_litert.py)."""

from pathlib import Path

import pytest

from quant.export.tflite_example import asker
from tests.conftest import needs_litert


@needs_litert
def test_the_file_is_the_one_of_that_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"my_net\.json"):
        asker(Path(tmp_path / "my_net_example.py"))
