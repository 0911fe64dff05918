"""Signals that end a verb: it stops, takes back what is not complete, and ends with one line and status 5."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 1.0
"""Seconds in which a second signal is taken for the first: timeout(1), shells and terminals send more than one.
Later, it interrupts what the first one left to be taken back."""


class Interrupt(KeyboardInterrupt):
    """Python itself ends a process by SIGINT after a bare KeyboardInterrupt in code that it compiled meanwhile."""


class _Stop:
    """Raises Interrupt where the main thread is."""

    def __init__(self) -> None:
        self._last = -PATIENCE

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last >= PATIENCE:
            self._last = now
            raise Interrupt

    def on_dropped(self, problem: sys.UnraisableHookArgs) -> None:
        """An interrupt that came while Python removed an object was dropped there: it is raised again, soon."""
        if not issubclass(problem.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(problem)
            return
        self._last = -PATIENCE
        again = threading.Timer(0.01, self._send)
        again.daemon = True
        again.start()

    def _send(self) -> None:
        if signal.getsignal(signal.SIGTERM) is self:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


@contextmanager
def interrupting() -> Iterator[None]:
    """Inside, signals raise Interrupt; afterwards they do what they did before.

    Those that are ignored stay so: nohup asks for it, and shells for what runs in the background.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stop = _Stop()
    before = {number: signal.getsignal(number) for number in ENDS}
    hook, sys.unraisablehook = sys.unraisablehook, stop.on_dropped
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, stop)
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
