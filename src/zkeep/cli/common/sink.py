"""Standard input and output for streams: unbuffered, in reads and writes of a size that suits pipes and files.

Within `zkeep server` they have limits and filters of the client's: wired().
"""

from __future__ import annotations

import fcntl
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO

from zkeep.cli.common.terminal import named

if TYPE_CHECKING:
    from zkeep.server.wire import Wire

STRIDE = 1 << 18
"""Bytes of one write to a file, of which it gets whole multiples. For larger writes Linux keeps files in larger pieces
of memory, and finding those can take several times as long as the copying; smaller ones cost a tenth more."""
PIPE = 1 << 20
"Bytes that a pipe may hold, if the system allows it: with less, writer and reader wait for each other more often."


class _Wiring:
    """The wire of the process, if it serves a client."""

    wire: Wire | None = None


@contextmanager
def wired(wire: Wire) -> Iterator[None]:
    """Inside, streams come and go through `wire`."""
    before, _Wiring.wire = _Wiring.wire, wire
    try:
        yield
    finally:
        _Wiring.wire = before


def stream_input() -> BinaryIO:
    """Standard input, as it is or as it comes through the wire."""
    return _Wiring.wire.source() if _Wiring.wire else open(0, "rb", buffering=0, closefd=False)


class Sink(io.RawIOBase):
    """Standard output without a buffer. Unlike that of a raw file, its write() writes everything."""

    def __init__(self) -> None:
        mode = os.fstat(1).st_mode
        self._at = 0
        self._stride = STRIDE if stat.S_ISREG(mode) else 1 << 30
        if stat.S_ISFIFO(mode) and hasattr(fcntl, "F_SETPIPE_SZ"):
            with suppress(OSError):
                fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, PIPE)

    @property
    def written(self) -> int:
        """Bytes written so far."""
        return self._at

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        total = len(view)
        # For a client of zkeep server: what limits its speed and watches for silence does the writing.
        if _Wiring.wire:
            _Wiring.wire.write(view)
            self._at += total
            return total
        # Write up to the next whole stride, so that the file behind standard output is written in aligned pieces.
        while len(view):
            done = self._put(view[: self._stride - self._at % self._stride])
            self._at += done
            view = view[done:]
        return total

    def _put(self, content: memoryview) -> int:
        try:
            return os.write(1, content)
        except OSError as error:
            raise named(error) from None
