"""SIGTERM and Ctrl-C: the program finishes the current step and saves first; its exit code tells the signal."""

import contextlib
import signal
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to stop. `message` is printed for the user; `number` is the signal."""

    def __init__(self, number: int, message: str = ""):
        super().__init__(message)
        self.number, self.message = number, message


class StopRequest:
    """The signal that arrived while signals were deferred, or 0."""

    number = 0
    deferred = False


_request = StopRequest()


@contextlib.contextmanager
def handle_signals() -> Iterator[None]:
    """Turn both signals into Interrupted: at once, or deferred within `defer_signals`. A second signal acts at once."""
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
    if not _request.deferred or _request.number:
        raise Interrupted(number)
    _request.number = number


@contextlib.contextmanager
def defer_signals() -> Iterator[StopRequest]:
    """Defer signals. Yields the request to check between steps; at the end, a pending one raises Interrupted.

    Re-entrant: a nested call returns the outer request.
    """
    if _request.deferred:
        yield _request
        return
    _request.number, _request.deferred = 0, True
    try:
        yield _request
    finally:
        _request.deferred = False
    if _request.number:
        raise Interrupted(_request.number)


@contextlib.contextmanager
def default_message(message: str) -> Iterator[None]:
    """Give this message to an Interrupted that has none."""
    try:
        yield
    except Interrupted as stopped:
        raise Interrupted(stopped.number, stopped.message or message) from None
