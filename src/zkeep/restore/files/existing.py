"""Compare files that exist already with those that would be extracted: the same ones stay, so calls can be repeated.

For most files, size and time decide. Where the target keeps times coarsely, or not at all, content is compared.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress

from zkeep.format.znode import Znode
from zkeep.tree.filesystem import Extent, Filesystem

_GRAINS = (100, 1_000, 1_000_000, 10_000_000, 1_000_000_000, 2_000_000_000)
"Resolution of times in nanoseconds: NTFS and SMB, ..., exFAT, HFS+ and NFSv2, FAT."
_PIECE = 1 << 20
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def is_same(
    filesystem: Filesystem, node: Znode, folder: int, name: bytes, found: os.stat_result, *, by_content: bool = False
) -> bool:
    """Whether an existing name in an open folder is this file, with the same content. `found`: its stat().

    `by_content`: compare the content, as size and time are not enough.
    """
    if stat.S_IFMT(found.st_mode) != stat.S_IFMT(node.mode):
        return False
    if node.is_file:
        return _is_same_file(filesystem, node, folder, name, found, by_content=by_content)
    if node.is_link:
        return os.readlink(name, dir_fd=folder) == node.target
    if stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode):
        return (os.major(found.st_rdev), os.minor(found.st_rdev)) == node.device
    return True


def _is_same_file(
    filesystem: Filesystem, node: Znode, folder: int, name: bytes, found: os.stat_result, *, by_content: bool
) -> bool:
    if found.st_size != node.size:
        return False
    if not by_content and is_same_time(found.st_mtime_ns, node.mtime):
        return True
    with suppress(PermissionError):
        return has_content(folder, name, filesystem.extents(node), node.size)
    return False


def is_same_time(found: int, stored: int) -> bool:
    """Whether a filesystem that was asked to store `stored` may return `found`; both in nanoseconds."""
    return found == stored or any(found % grain == 0 and abs(found - stored) < grain for grain in _GRAINS)


def has_content(folder: int, name: bytes, extents: Iterable[Extent], size: int) -> bool:
    """Whether a file has exactly these extents, and zeros between them."""
    fd = os.open(name, _READ, dir_fd=folder)
    try:
        found = os.fstat(fd)
        # Another kind or size of file cannot have this content.
        if not stat.S_ISREG(found.st_mode) or found.st_size != size:
            return False
        at = 0
        # Compare extent by extent, so that a large file need not fit into memory; between extents there must be zeros.
        for extent in extents:
            if not _is_blank(fd, at, extent.offset) or not _holds(fd, extent):
                return False
            at = extent.offset + len(extent.content)
        # Behind the last extent comes a hole up to the end of the file.
        return _is_blank(fd, at, size)
    finally:
        os.close(fd)


def _holds(fd: int, extent: Extent) -> bool:
    view = memoryview(extent.content)
    for start in range(0, len(view), _PIECE):
        piece = view[start : start + _PIECE]
        if os.pread(fd, len(piece), extent.offset + start) != piece:
            return False
    return True


def _is_blank(fd: int, at: int, end: int) -> bool:
    """Whether a range holds only zeros. Holes, which may be huge, are not read."""
    while at < end and (start := _next(fd, at, end, os.SEEK_DATA)) < end:
        at = min(_next(fd, start, end, os.SEEK_HOLE), start + _PIECE)
        if any(os.pread(fd, at - start, start)):
            return False
    return True


def _next(fd: int, at: int, end: int, what: int) -> int:
    """Find where the next data or hole begins. On filesystems that cannot tell, all is data."""
    try:
        return min(os.lseek(fd, at, what), end)
    except OSError as error:
        return end if error.errno == errno.ENXIO or what == os.SEEK_HOLE else at
