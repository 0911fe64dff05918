"""The log of a mount: what goes wrong again and again is told once an hour, so that it never fills a disk."""

from __future__ import annotations

import sys
import threading
import time

WINDOW = 3600.0
"Seconds in which a line is told once."
MOST = 100
"Lines that are told in that time; what else goes wrong is counted."


class MountLog:
    """Call it with a line. Several threads may."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: set[str] = set()
        self._left_out = 0
        self._begun = 0.0

    def __call__(self, text: str) -> None:
        with self._lock:
            if time.monotonic() - self._begun >= WINDOW:
                self._begin_anew()
            if text in self._told or len(self._told) >= MOST:
                self._left_out += 1
                return
            self._told.add(text)
            _print(text)

    def close(self) -> None:
        """Tell how many lines were left out."""
        with self._lock:
            self._begin_anew()

    def _begin_anew(self) -> None:
        if self._left_out:
            _print(f"{self._left_out} more errors: each is told once an hour, and at most {MOST} are")
        self._told.clear()
        self._left_out, self._begun = 0, time.monotonic()


def _print(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} zkeep: {text}", file=sys.stderr, flush=True)
