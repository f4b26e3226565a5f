"""Names that hold anything become text that is safe to show, and that still tells them apart."""

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.names import plain_name, printable


def original(text: str) -> bytes:
    """The bytes of the name that plain_name wrote so."""
    if not re.search(r"\\\\|\\x[0-9a-f]{2}|\\u[0-9a-f]{4}", text):
        return text.encode()
    pieces = re.split(r"(\\\\|\\x[0-9a-f]{2}|\\u[0-9a-f]{4})", text)
    return b"".join(_original(piece) if i % 2 else piece.encode() for i, piece in enumerate(pieces))


def _original(escape: str) -> bytes:
    if escape == "\\\\":
        return b"\\"
    return bytes([int(escape[2:], 16)]) if escape[1] == "x" else chr(int(escape[2:], 16)).encode()


@given(
    st.binary() | st.lists(st.sampled_from([b"\\", b"x1b", b"u202e", b"\xc3", b"\xa9", b"\x1b", b"a"])).map(b"".join)
)
def test_a_name_of_any_bytes_is_saved_as_printable_text_that_gives_the_bytes_back(name):
    text = plain_name(name.decode("utf-8", "surrogateescape"))
    assert original(text) == name
    assert printable(text) == text
    text.encode()  # no lone surrogates


@pytest.mark.parametrize("name", ["cat", "Ärger und Ö", "=HYPERLINK(1)", "a\\b", "👨‍👩‍👧", "猫", "50 %", "a\u00a0b"])
def test_ordinary_names_stay_as_they_are(name):
    assert plain_name(name) == printable(name) == name


def test_what_a_name_does_to_a_terminal_is_escaped():
    assert printable("\x1b[2J\n\x9b31m\u202e\r\udce9\ud800") == r"\x1b[2J\x0a\u009b31m\u202e\x0d\xe9\ud800"
    assert printable("one\ntwo\x07", keep="\n") == "one\ntwo\\x07"


def test_the_form_does_not_depend_on_the_locale():
    as_ascii = os.fsencode("café").decode("ascii", "surrogateescape")
    assert plain_name(as_ascii) == "café"
