"""Native output is hidden only while it is asked to be."""

import os

import pytest

from utils.stderr import silenced


def fail_silently() -> None:
    with silenced():
        os.write(2, b"hidden, too")
        raise ValueError


def test_what_native_code_writes_is_hidden_and_then_shown_again(capfd):
    with silenced():
        os.write(2, b"hidden")
    with pytest.raises(ValueError):
        fail_silently()
    os.write(2, b"shown")
    assert capfd.readouterr() == ("", "shown")
