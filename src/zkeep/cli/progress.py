"""How far something is that takes long."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from zkeep.cli.text import nice

if TYPE_CHECKING:
    from zkeep.restore.files.extract import Progress


class Meter:
    """One line on a terminal, ten times a second at most: how much, how fast, how long still."""

    def __init__(self, total: int, unit: str = "files") -> None:
        """`total`: about how many bytes there will be; 0: nobody knows. `unit`: what is counted beside them."""
        self._total = total
        self._unit = unit
        self._started = self._last = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._last >= 0.1:
            self._last = now
            print(f"\r{self.line(progress, now - self._started)}\x1b[K", end="", file=sys.stderr, flush=True)

    def line(self, progress: Progress, seconds: float) -> str:
        rate = progress.bytes / max(seconds, 0.001)
        text = f"{progress.files} {self._unit}, {nice(progress.bytes)}"
        left = self._total - progress.kept_bytes - progress.bytes
        if self._total and left >= 0:
            text += f" of {nice(self._total)}"
        text += f", {nice(int(rate))}/s"
        return f"{text}, {_clock(left / rate)} left" if self._total and left >= 0 and rate else text

    def end(self) -> None:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
