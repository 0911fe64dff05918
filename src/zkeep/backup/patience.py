"""How long the other side may keep a stream waiting.

ssh itself ends a line that is dead. What this is for is a side that lives and gives, or takes, next to nothing: without
a limit a backup would never end, and each that is due later would find it still running.
"""

from __future__ import annotations

import io
import os
import select
import time
from typing import IO, Any

from zkeep.errors import TryAgain

WAIT_SECONDS = 900.0
"Seconds of waiting for the other side, in which at least LEAST bytes must move. What we do meanwhile does not count."
LEAST = 64 << 10


class Patience:
    """The waiting for one side of one stream. `what` it does: an error begins with it."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._waited, self._moved = 0.0, 0

    def moved(self, size: int) -> None:
        self._moved += size

    def wait(self, sources: list[int], sinks: list[int]) -> None:
        """Wait until one of them can be read or written.

        Raises:
            TryAgain: it takes too long, or has gone too slowly.
        """
        ready = False
        while not ready:
            began = time.monotonic()
            ready = any(select.select(sources, sinks, [], max(0.0, WAIT_SECONDS - self._waited)))
            self._waited += time.monotonic() - began
            if self._waited >= WAIT_SECONDS:
                self._judge()

    def _judge(self) -> None:
        moved = f"{self._moved} bytes" if self._moved else "nothing"
        if self._moved < LEAST:
            raise TryAgain(f"{self._what}: {moved} moved in {WAIT_SECONDS:.0f} seconds of waiting for the other side")
        self._waited, self._moved = 0.0, 0


class Patient(io.RawIOBase):
    """What a program writes, as long as it goes on writing."""

    def __init__(self, pipe: IO[bytes], what: str = "cannot receive") -> None:
        self._fd = pipe.fileno()
        self._patience = Patience(what)

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int:
        self._patience.wait([self._fd], [])
        count = os.readv(self._fd, [room])
        self._patience.moved(count)
        return count
