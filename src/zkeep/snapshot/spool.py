"""The file in which records wait for the others of their block of dnodes; it gives its room back as they leave.

So a large file needs room once while it is stored, and not once in the spool and once in the pool.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from typing import IO

from zkeep.snapshot.changes import Buffer

_PUNCH_HOLE_KEEP_SIZE = 0x03
"FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE of Linux."
BLOCK = 128 << 10
"Bytes of a file system's block at most, of those that are common."


def _fallocate() -> Callable[..., int] | None:
    """The system's call that gives room back; None where there is none."""
    for name in ("fallocate64", "fallocate"):
        try:
            found: Callable[..., int] = ctypes.CDLL(None).__getattr__(name)
        except (OSError, AttributeError):
            continue
        found.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)  # type: ignore[attr-defined]
        return found
    return None


class Spool:
    """Keeps pieces of ciphertext in a file of its own, which has no name."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._fallocate = _fallocate()
        self.size = 0

    def write(self, piece: Buffer) -> None:
        self._file.write(piece)
        self.size += len(piece)

    def taken(self, start: int, end: int, most: int) -> Iterator[bytes]:
        """Read what lies there, `most` bytes at a time; each part is gone from the disk when the next is read."""
        first = start
        while start < end:
            self._file.seek(start)
            part = self._file.read(min(most, end - start))
            if not part:
                raise OSError("the spool is shorter than what was written")
            yield part
            # The block in which the part before ended is whole only now.
            self._give_back(max(first, start - BLOCK), start + len(part))
            start += len(part)
        self._file.seek(0, os.SEEK_END)

    def clear(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self.size = 0

    def _give_back(self, start: int, end: int) -> None:
        call, fd = self._fallocate, self._file.fileno()
        # A file system that cannot do it needs the room until the end.
        if call is not None and call(fd, _PUNCH_HOLE_KEEP_SIZE, start, end - start):
            self._fallocate = None
