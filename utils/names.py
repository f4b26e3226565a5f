"""Names of files and classes, which may hold anything, as text that is safe to show and to save."""

import contextlib
import re

HOSTILE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, other ends of lines, characters that turn the direction of writing, and what stands for bytes
that are not UTF-8."""
ESCAPED = re.compile(r"\\\\|\\x[0-9a-f]{2}|\\u[0-9a-f]{4}")
"""What an escape looks like."""


def printable(text: str, keep: str = "") -> str:
    """Text that does nothing to a terminal or to the line it is in: '\\x1b' for an escape character. keep: characters
    that stay."""
    return HOSTILE.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def plain_name(name: str) -> str:
    """The name as printable text, by which it can be told from every other name. Nearly all names stay as they are.

    Bytes that are not UTF-8 become '\\xe9', other hostile characters '\\x1b' or '\\u202e'. Where a name has some, or
    something that looks so, its backslashes are doubled. The result does not depend on the locale.
    """
    with contextlib.suppress(UnicodeEncodeError):  # halves of surrogate pairs, which no file name has
        name = name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    if not HOSTILE.search(name) and not ESCAPED.search(name):
        return name
    return printable(name.replace("\\", "\\\\"))


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # Python's stand-in for a byte
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"
