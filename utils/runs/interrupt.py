"""SIGTERM and Ctrl-C: the step is finished and saved first, and the exit code tells the signal."""

import contextlib
import signal
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop. The message is what the user reads; `number` is the signal."""

    def __init__(self, number: int, message: str = ""):
        super().__init__(message)
        self.number, self.message = number, message


class Request:
    """What was asked while somebody was listening: the signal's number, or 0."""

    number = 0
    listening = False


_request = Request()


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Turn both signals into Interrupted, at once, or later for who listens; a second one never waits."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [signal.signal(number, _handle) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def _handle(number: int, frame) -> None:
    if not _request.listening or _request.number:
        raise Interrupted(number)
    _request.number = number


@contextlib.contextmanager
def listening() -> Iterator[Request]:
    """Yields a request to look at between steps, and to answer. What was not answered is raised at the end.

    Within another's, it is the other's.
    """
    if _request.listening:
        yield _request
        return
    _request.number, _request.listening = 0, True
    try:
        yield _request
    finally:
        _request.listening = False
    if _request.number:
        raise Interrupted(_request.number)


@contextlib.contextmanager
def explained(message: str) -> Iterator[None]:
    """Give this message to an interruption that has none of its own."""
    try:
        yield
    except Interrupted as stopped:
        raise Interrupted(stopped.number, stopped.message or message) from None
