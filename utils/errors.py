"""A user's mistake is one clear line and exit code 2; a bug keeps its traceback."""

import difflib
import errno
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TextIO, TypeVar

T = TypeVar("T")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """What the user can mend. The message is one line: where, what is wrong, the nearest right thing."""


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that `word` most looks like, or None when nothing is near."""
    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return found[0] if found else None


def choose(table: Mapping[str, T], name: str, where: str, others: str = "") -> T:
    """table[name], or a UserError that names the choices, `others` besides the table's, and the nearest."""
    if isinstance(name, str) and name in table:
        return table[name]
    hint = nearest(str(name), table)
    raise UserError(
        f"{where}: unknown {name!r}; choose from {', '.join([*table, *filter(None, [others])])}"
        + (f" (nearest: {hint})" if hint else "")
    )


def run(main: Callable[[list[str]], None]) -> None:
    """Call main(arguments); turn a UserError, or a full disk, into one line on stderr and exit code 2.

    Interrupted by a signal: the exit code that shells expect, 128 + its number.
    """
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        _leave(str(error), 2)
    except KeyboardInterrupt as stopped:
        _leave(str(stopped) or "interrupted", 128 + getattr(stopped, "number", signal.SIGINT))
    except OSError as error:
        if isinstance(error, BrokenPipeError) and not _is_read(sys.stdout):  # `--list models | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)
        if error.errno not in FULL:
            raise
        _leave(f"{error.filename or 'output'}: {error.strerror}", 2)


def _is_read(stream: TextIO) -> bool:
    """Whether somebody is at the other end of the pipe, flushed or not (PYTHONUNBUFFERED leaves nothing to flush)."""
    other_end = select.poll()
    other_end.register(stream.fileno(), select.POLLOUT)
    return not any(event & (select.POLLERR | select.POLLHUP) for _, event in other_end.poll(0))


def _leave(line: str, code: int) -> None:
    rank = int(os.environ.get("RANK", 0))
    print(f"process {rank}: {line}" if rank else line, file=sys.stderr)
    sys.exit(code)
