"""Signals: at once outside a deferred section, at its end inside, and a second one does not wait."""

import os
import signal

import pytest

from o1core import interrupts
from o1core.interrupts import Interrupted, deferred


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interrupts.install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_raised_at_once(number):
    with pytest.raises(Interrupted) as stop:
        os.kill(os.getpid(), number)
    assert stop.value.number == number


def test_a_deferred_section_is_finished_first():
    done = []
    with pytest.raises(Interrupted), deferred() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGTERM)
        done.append(asked())
    assert done == [True]


def test_only_the_outermost_section_raises():
    done = []
    with pytest.raises(Interrupted), deferred():
        with deferred():
            os.kill(os.getpid(), signal.SIGTERM)
        done.append("after the inner one")
    assert done


def test_a_second_signal_does_not_wait():
    done = []
    with pytest.raises(Interrupted), deferred():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        done.append(1)
    assert not done


def test_nothing_is_left_pending():
    with pytest.raises(Interrupted), deferred():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    with deferred() as asked:
        assert not asked()
