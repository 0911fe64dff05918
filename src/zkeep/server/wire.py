"""The stream that a client sends or gets: with a limit for how long the peer may do nothing, a limit of speed, filters.

The time limit is a timer of the process that is set around each single read and write: it ends a wait for the peer,
never work of our own.
"""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, BinaryIO, cast

from zkeep.errors import TryAgain
from zkeep.server.filters import Filter, packer, unpacked

STRIDE = 1 << 20
"Bytes of one read or write at most, where there is a limit of speed."


class Pace:
    """Slows a stream down to `rate` bytes a second; 0 for no limit."""

    def __init__(
        self, rate: int, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._due = clock()
        "When what has passed may be over."

    def spend(self, size: int) -> None:
        if not self._rate:
            return
        now = self._clock()
        # Time in which nothing came is not saved up: after a pause, the rate is the same.
        self._due = max(self._due, now) + size / self._rate
        if self._due > now:
            self._sleep(self._due - now)

    @property
    def stride(self) -> int:
        """Bytes of one read or write: a second's, within bounds."""
        return min(STRIDE, max(4096, self._rate)) if self._rate else 1 << 30


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Let SIGALRM come unless the block ends in time; see watch()."""
    if not seconds:
        yield
        return
    # A timer of the kernel interrupts even a read that waits for ever.
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class Wire:
    """Standard input or output as a stream. `idle`: seconds that the peer may do nothing, 0 for ever."""

    def __init__(self, idle: float = 0, rate: int = 0, filters: Sequence[Filter] = ()) -> None:
        self.idle = idle
        self.filters = tuple(filters)
        rates = [each for each in (rate, *(f.rate for f in filters)) if each]
        self._pace = Pace(min(rates, default=0))
        self.received = 0
        self.sent = 0
        self._packers: list[Any] | None = None

    def source(self) -> BinaryIO:
        """What comes on standard input, behind the filters."""
        source = cast(BinaryIO, _Input(self))
        for each in self.filters:
            if each.packing:
                source = unpacked(source, each.packing)
        return source

    def read(self, room: Any) -> int:
        """One read into `room`; 0 at the end."""
        with time_limit(self.idle):
            count = os.readv(0, [memoryview(room)[: self._pace.stride]])
        self.received += count
        self._pace.spend(count)
        return count

    def write(self, content: Any) -> None:
        """Write all of it."""
        for pack in self._packing():
            content = pack.compress(content)
        self._write(content)

    def finish(self) -> None:
        """Write what the filters of a stream that goes out still have."""
        # The rest of each filter still goes through those behind it.
        rest = b""
        for pack in self._packing():
            rest = (pack.compress(rest) if rest else b"") + pack.flush()
        self._write(rest)

    def _packing(self) -> list[Any]:
        if self._packers is None:
            self._packers = [packer(each.packing) for each in self.filters if each.packing]
        return self._packers

    def _write(self, content: Any) -> None:
        view = memoryview(content).cast("B")
        while len(view):
            with time_limit(self.idle):
                done = os.write(1, view[: self._pace.stride])
            self.sent += done
            self._pace.spend(done)
            view = view[done:]


class _Input(io.RawIOBase):
    """The bytes of standard input."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int:
        return self._wire.read(room)


class Silence:
    """Whether a peer did nothing for too long: then it gets nothing more."""

    happened = False


def watch(seconds: float) -> Silence:
    """From now on, a peer that does nothing for too long is an error that ends the verb (exit status 5)."""
    silence = Silence()

    def expired(number: int, frame: FrameType | None) -> None:
        silence.happened = True
        raise TryAgain(f"the other side neither sent nor took anything for {seconds:g} seconds")

    signal.signal(signal.SIGALRM, expired)
    return silence
