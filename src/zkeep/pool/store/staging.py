"""Large appends past the page cache.

What a stream brings is not read again soon. In the page cache it would push out what is, and finding memory for it
there takes longer than everything else that a receive does. So bytes are collected in aligned memory and written in
large chunks with O_DIRECT, where system and file system can do that. The rest of a file, and small files, go through
the cache as always.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

STAGE = 4 << 20
"Bytes that go to the disk at a time; a multiple of any disk's block."
_DIRECT = getattr(os, "O_DIRECT", 0)


def memory() -> mmap:
    """Memory for a Stage; it begins at the start of a page, as O_DIRECT needs."""
    return mmap(-1, STAGE, MAP_PRIVATE | MAP_ANONYMOUS)


class WriteBuffer:
    """A write buffer: the end of a growing file. `append` writes to the file of `fd`, all or nothing."""

    def __init__(self, memory: mmap, fd: int, append: Callable[[memoryview], None]) -> None:
        self.memory = memory
        self.held = 0
        self._fd = fd
        self._append = append
        self._direct = False

    def add(self, content: memoryview) -> None:
        """Add bytes, and write whenever the memory is full."""
        import numpy as np  # copies without the GIL

        space = np.frombuffer(self.memory, np.uint8)
        while len(content):
            room = min(STAGE - self.held, len(content))
            space[self.held : self.held + room] = np.frombuffer(content[:room], np.uint8)
            self.held += room
            content = content[room:]
            if self.held == STAGE:
                # O_DIRECT only from the first full chunk on: small files stay in the cache.
                self._direct = self._direct or _set_direct(self._fd, direct=True)
                self._write_out()

    def flush(self) -> None:
        """Write what is left, through the cache: O_DIRECT cannot end in the middle of a disk's block."""
        if self._direct:
            self._direct = _set_direct(self._fd, direct=False)
        self._write_out()

    def _write_out(self) -> None:
        content = memoryview(self.memory)[: self.held]
        try:
            self._append(content)
        except OSError as error:
            if not self._direct or error.errno != errno.EINVAL:
                raise
            self._direct = _set_direct(self._fd, direct=False)  # this disk, or this offset, does not allow it
            self._append(content)
        self.held = 0


def _set_direct(fd: int, *, direct: bool) -> bool:
    """Switch O_DIRECT on or off; returns whether it is on."""
    if not _DIRECT:
        return False
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~_DIRECT
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | _DIRECT if direct else flags)
    except OSError:
        return False
    return direct
