"""The progress of long work, on one line of a terminal."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from zkeep.cli.common.terminal import draw
from zkeep.cli.common.text import nice

if TYPE_CHECKING:
    from zkeep.restore.files.extract import ExtractProgress


class Meter:
    """One line on a terminal, ten times a second at most: how much, how fast, how long still."""

    def __init__(self, total: int, unit: str = "files") -> None:
        """`total`: about how many bytes there will be; 0: unknown. `unit`: what is counted beside them."""
        self._total = total
        self._unit = unit
        self._started = self._last = time.monotonic()

    def __call__(self, progress: ExtractProgress) -> None:
        if seconds := self._due():
            self._show(self.line(progress, seconds))

    def bytes(self, name: str, done: int, total: int = 0) -> None:
        """Show progress in bytes alone; `name`: what is being done."""
        if seconds := self._due():
            self._show(f"{name}: {amount(done, total, seconds)}")

    def say(self, text: str) -> None:
        """Any line, if the last one is old enough."""
        if self._due():
            self._show(text)

    def _due(self) -> float:
        """Seconds since the beginning if the line may be renewed, else 0."""
        now = time.monotonic()
        if now - self._last < 0.1:
            return 0.0
        self._last = now
        return now - self._started

    def _show(self, line: str) -> None:
        draw(line, to=sys.stderr)

    def line(self, progress: ExtractProgress, seconds: float) -> str:
        total = self._total and max(self._total - progress.kept_bytes, 0)
        ahead = self._total and self._total - progress.kept_bytes - progress.bytes >= 0
        return f"{progress.files} {self._unit}, " + amount(
            progress.bytes, total if ahead else 0, seconds, self._total if ahead else 0
        )

    def end(self) -> None:
        draw("", to=sys.stderr)


class Received:
    """On a terminal: what is received, how much of it has come, and how fast; no stream tells how much is to come."""

    def __init__(self) -> None:
        self._name, self._meter = "", Meter(0)

    def __call__(self, name: str, received: int) -> None:
        if name != self._name:
            self._name, self._meter = name, Meter(0)
        self._meter.bytes(name, received)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Make room for a line that stays."""
        self._meter.end()


def amount(done: int, total: int, seconds: float, shown_total: int = 0) -> str:
    """`1M of 10M, 1M/s, 0:09 left`; without the total, and the time left, where `total` is 0 or was passed."""
    rate = done / max(seconds, 0.001)
    ahead = bool(total) and done <= total
    text = nice(done) + (f" of {nice(shown_total or total)}" if ahead else "") + f", {nice(int(rate))}/s"
    return f"{text}, {clock((total - done) / rate)} left" if ahead and rate else text


def clock(seconds: float) -> str:
    """`0:09`, `2:50:30`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
