"""Large appends past the page cache.

What a stream brings is not read again soon. In the cache it would push out what is, and finding memory for it there
takes longer than all else that a receive does. So bytes gather in aligned memory and leave it in whole stretches,
straight for the disk, where system and file system can do that. The rest of a file, and small files, go through the
cache as always.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

STAGE = 4 << 20
"""Bytes that go to the disk at a time; a multiple of any disk's block."""
_DIRECT = getattr(os, "O_DIRECT", 0)


def memory() -> mmap:
    """For a Stage: it begins with a page."""
    return mmap(-1, STAGE, MAP_PRIVATE | MAP_ANONYMOUS)


class Stage:
    """Memory in which the end of a growing file gathers. `append` writes to the file of `fd`, all or nothing."""

    def __init__(self, memory: mmap, fd: int, append: Callable[[memoryview], None]) -> None:
        self.memory = memory
        self.held = 0
        self._fd = fd
        self._append = append
        self._direct = False

    def add(self, content: memoryview) -> None:
        """Take bytes, and write whenever the memory is full."""
        import numpy as np  # copies without the GIL

        space = np.frombuffer(self.memory, np.uint8)
        while len(content):
            room = min(STAGE - self.held, len(content))
            space[self.held : self.held + room] = np.frombuffer(content[:room], np.uint8)
            self.held += room
            content = content[room:]
            if self.held == STAGE:
                self._direct = self._direct or _turn(self._fd, direct=True)
                self._leave()

    def flush(self) -> None:
        """Write what there is, through the cache: it may end anywhere."""
        if self._direct:
            self._direct = _turn(self._fd, direct=False)
        self._leave()

    def _leave(self) -> None:
        content = memoryview(self.memory)[: self.held]
        try:
            self._append(content)
        except OSError as error:
            if not self._direct or error.errno != errno.EINVAL:
                raise
            self._direct = _turn(self._fd, direct=False)  # not at this offset, or not on this disk
            self._append(content)
        self.held = 0


def _turn(fd: int, *, direct: bool) -> bool:
    """Let writes pass the cache by, or not; returns whether they do."""
    if not _DIRECT:
        return False
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~_DIRECT
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | _DIRECT if direct else flags)
    except OSError:
        return False
    return direct
