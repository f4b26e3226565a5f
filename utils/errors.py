"""Errors: a user's mistake gives a one-line message and exit code 2; a bug keeps its traceback."""

import difflib
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TextIO, TypeVar

from utils.names import printable

T = TypeVar("T")


class UserError(Exception):
    """An error that the user can correct. Its one-line message says where, what is wrong, and what would be right.

    As text it is one line, whatever the names in it hold.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


def first_line(error: Exception, length: int | None = None) -> str:
    """The first line of an exception's message, up to a length; the name of its type if it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:length]


def joined_lines(error: Exception, length: int | None = None) -> str:
    """An exception's message with its lines joined, up to a length; the name of its type if it has no message."""
    return (" ".join(str(error).split()) or type(error).__name__)[:length]


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that is most similar to `word`, or None if none is similar."""
    known = list(choices)
    same = [choice for choice in known if choice.lower() == word.lower()]
    found = same or difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return found[0] if found else None


def choose(table: Mapping[str, T], name: str, where: str, others: str = "") -> T:
    """table[name]. Raises UserError if it is missing; the message names the choices and the most similar one.

    where: the key of the setting, for the message. others: further choices that are not in the table, as text.
    """
    if isinstance(name, str) and name in table:
        return table[name]
    hint = nearest(str(name), table)
    raise UserError(
        f"{where}: unknown {name!r}; choose from {', '.join([*table, *filter(None, [others])])}"
        + (f" (nearest: {hint})" if hint else "")
    )


def run(main: Callable[[list[str]], None]) -> None:
    """Call main(sys.argv[1:]). Turn a UserError into a one-line message on stderr and exit code 2.

    So are errors of the operating system, which have a number: a full disk, a name too long, no permission.
    After an interruption by a signal, exit with 128 + its number, as shells expect.
    """
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        _exit(str(error), 2)
    except KeyboardInterrupt as stopped:
        _exit(str(stopped) or "interrupted", 128 + getattr(stopped, "number", signal.SIGINT))
    except OSError as error:
        if isinstance(error, BrokenPipeError) and not _has_reader(sys.stdout):  # `--list models | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)
        if error.errno is None:
            raise
        _exit(f"{error.filename or 'output'}: {error.strerror}", 2)


def _has_reader(stream: TextIO) -> bool:
    """Whether a process still reads the other end of the pipe.

    Flushing would not tell: with PYTHONUNBUFFERED there is nothing left to flush.
    """
    other_end = select.poll()
    other_end.register(stream.fileno(), select.POLLOUT)
    return not any(event & (select.POLLERR | select.POLLHUP) for _, event in other_end.poll(0))


def _exit(line: str, code: int) -> None:
    rank = int(os.environ.get("RANK", 0))
    line = printable(line)
    print(f"process {rank}: {line}" if rank else line, file=sys.stderr)
    sys.exit(code)
