"""Write content into new files, with holes where the snapshot has holes."""

from __future__ import annotations

import os
from collections.abc import Iterable

from zkeep.tree.filesystem import Extent

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def write_file(folder: int, name: bytes, extents: Iterable[Extent], size: int) -> int:
    """Write a new file, sparse, in an open folder, and return it open."""
    fd = os.open(name, _NEW, 0o600, dir_fd=folder)
    try:
        end = write_sparse(fd, extents)
        if end != size:
            os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def write_sparse(fd: int, extents: Iterable[Extent]) -> int:
    """Write extents to their places; returns where the last one ends."""
    end = 0
    for extent in extents:
        view = memoryview(extent.content)
        at = extent.offset
        while view:
            done = os.pwrite(fd, view, at)
            view, at = view[done:], at + done
        end = at
    return end
