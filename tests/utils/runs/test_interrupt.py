"""A signal waits while it is deferred; a second one does not."""

import contextlib
import signal

import pytest

from utils.runs.interrupt import Interrupted, default_message, defer_signals, handle_signals


@contextlib.contextmanager
def interrupted():
    """The block must end in Interrupted, which is yielded as `value`."""
    with pytest.raises(Interrupted) as stopped, handle_signals():
        yield stopped


def test_a_signal_that_is_not_deferred_acts_at_once():
    reached = []
    with interrupted() as stopped:
        signal.raise_signal(signal.SIGTERM)
        reached.append("after it")
    assert stopped.value.number == signal.SIGTERM
    assert not reached


def test_a_deferred_signal_is_raised_at_the_end():
    reached = []
    with interrupted(), defer_signals() as request:
        assert request.number == 0
        signal.raise_signal(signal.SIGINT)
        reached.append(request.number)
    assert reached == [signal.SIGINT]


def test_a_nested_call_leaves_the_signal_to_the_outer_one():
    reached = []
    with interrupted(), defer_signals() as outer:
        with defer_signals() as inner:
            signal.raise_signal(signal.SIGTERM)
        reached.append(inner is outer)
    assert reached == [True]


def test_a_second_signal_does_not_wait():
    reached = []
    with interrupted(), defer_signals():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        reached.append("after it")
    assert not reached
    with defer_signals() as request:
        assert request.number == 0, "and is forgotten"


def test_handlers_are_what_they_were_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with handle_signals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("own", "expected"), [("", "how to continue"), ("own", "own")])
def test_a_message_of_its_own_is_kept(own, expected):
    with pytest.raises(Interrupted) as stopped, default_message("how to continue"):
        raise Interrupted(signal.SIGTERM, own)
    assert str(stopped.value) == expected
