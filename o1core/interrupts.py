"""Ctrl-C and SIGTERM: a run stops at a point from which it can resume, and says so in one line.

The first signal raises Interrupted, which is a KeyboardInterrupt, in the main thread: at once, or at the end of a
`deferred` section, where work that must not be torn apart (an optimiser step and the state saved after it) is done. A
second signal during such a section does not wait for its end.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The process was asked to stop. number: of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


_depth = 0  # of deferred sections
_pending: int | None = None  # the signal that waits for the end of one


def install() -> None:
    """Handle SIGINT and SIGTERM from here on. Does nothing outside the main thread, which alone receives signals."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _handle)
        signal.signal(signal.SIGTERM, _handle)


def ignore() -> None:
    """Ignore both from here on: the process is about to end anyway."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _handle(number: int, frame: FrameType | None) -> None:
    global _pending
    if _depth and _pending is None:
        _pending = number
    else:
        raise Interrupted(number)


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """A section that a signal does not tear apart. Yields a function that says whether one has arrived; it is raised at
    the section's end."""
    global _depth, _pending
    _depth += 1
    try:
        yield lambda: _pending is not None
    finally:
        _depth -= 1
        if not _depth and _pending is not None:
            number, _pending = _pending, None
            raise Interrupted(number)
