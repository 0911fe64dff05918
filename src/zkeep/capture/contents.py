"""Read what a snapshot stores of one file: its attributes, and its blocks without the holes.

Everything is read through a descriptor of the file itself, opened below its folder's descriptor without following
links, so that what is put in its place meanwhile is never read in its stead.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fcntl import ioctl
from functools import cache
from typing import Any, Protocol

from zkeep.format.znode import LINUX_FLAGS
from zkeep.format.znode_writer import FileFields
from zkeep.snapshot.changes import Block

SMALL = 4 << 20
"Bytes of a file that is read before any of it is stored, so that it can be read again if it changed meanwhile."
ATTEMPTS = 3
DROP_BEHIND = 32 << 20
"Bytes read of a file after which the page cache is told that they are not needed again."
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_NOATIME = getattr(os, "O_NOATIME", 0)


class Changed(Exception):
    """The file changed while it was read."""


class SourceError(Exception):
    """A file could not be read: why. Apart from OSError, which what stores it may raise as well."""

    def __init__(self, error: OSError) -> None:
        self.reason = error.strerror or str(error)
        super().__init__(self.reason)


class Status(Protocol):
    """What is asked of the status of a file or folder."""

    @property
    def st_dev(self) -> int: ...
    @property
    def st_ino(self) -> int: ...
    @property
    def st_size(self) -> int: ...
    @property
    def st_mtime_ns(self) -> int: ...
    @property
    def st_ctime_ns(self) -> int: ...


@dataclass
class Cut:
    """A file that is read: the first block that is not stored yet, and how it was when the reading began."""

    block: int
    status: os.stat_result
    bonus: bytes
    spill: bytes | None


class _Reading:
    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise SourceError(error) from error


_READING = _Reading()


def reading() -> _Reading:
    """Let an OSError inside the block become a SourceError."""
    return _READING


def read_blocks(source: Iterable[Block]) -> Iterator[Block]:
    """The blocks of a file: errors of reading become SourceErrors, those of the code between them do not."""
    blocks = iter(source)
    while True:
        with reading():
            block = next(blocks, None)
        if block is None:
            return
        yield block


def open_file(name: bytes, folder: int) -> int:
    """A descriptor for reading; the access time stays where this user may ask for that.

    Raises:
        OSError: it is gone, is a link, or may not be read.
    """
    try:
        return os.open(name, _READ | _NOATIME, dir_fd=folder)
    except PermissionError:
        return os.open(name, _READ, dir_fd=folder)


def same(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether a file is as it was, as far as its status tells."""
    names = ("st_dev", "st_ino", "st_mode", "st_size", "st_mtime_ns", "st_ctime_ns")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def blocks_of(fd: int, size: int, blksz: int, first: int = 0) -> Iterator[Block]:
    """The blocks of a file from `first` on that are no holes, each filled with zeros to its size."""
    done = first * blksz
    for start, end in _data(fd, size, blksz, done):
        for offset in range(start, end, blksz):
            content = _read(fd, offset, min(blksz, size - offset))
            if len(content) < blksz:
                content += bytes(blksz - len(content))
            yield Block(offset // blksz, content)
            # A backup reads all files once: it must not push what is in use out of the page cache.
            if offset - done >= DROP_BEHIND:
                _forget(fd, done, offset)
                done = offset
    if done or size > SMALL:
        _forget(fd, done, size)


def _read(fd: int, offset: int, size: int) -> bytes:
    """Read up to `size` bytes, fewer only at the end of the file."""
    content = os.pread(fd, size, offset)
    while 0 < len(content) < size:
        more = os.pread(fd, size - len(content), offset + len(content))
        if not more:
            break
        content += more
    return content


def _forget(fd: int, start: int, end: int) -> None:
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_DONTNEED)


def _data(fd: int, size: int, blksz: int, at: int) -> Iterator[tuple[int, int]]:
    """Stretches with data from `at` on, [start, end), widened to whole blocks and never overlapping."""
    if at == 0 < size <= blksz:
        yield 0, size  # a block of zeros is a hole, also where the filesystem did not say so
        return
    last = at
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on
                return
            start, end = at, size  # the file system cannot tell
        start, end = max(start // blksz * blksz, last), min(max(end, start + 1), size)
        if start < end:
            yield start, end
            last = -(-end // blksz) * blksz
        at = max(end, last)


EVERY = b""
"Among names of extended attributes that could not be read: not even the names could."


def xattrs_of(place: int | str) -> tuple[dict[bytes, bytes], dict[bytes, str]]:
    """Extended attributes, POSIX ACLs among them, by their full names; and why which could not be read.

    `place`: a descriptor, or a path not followed.

    Raises:
        FileNotFoundError: the file is gone.
    """
    follow = isinstance(place, int)
    # First the names. A file system without extended attributes has none; any other error concerns all of them.
    try:
        names = os.listxattr(place, follow_symlinks=follow)
    except FileNotFoundError:
        raise
    except OSError as error:
        has_none = error.errno in (errno.ENOTSUP, errno.EOPNOTSUPP)
        return {}, {} if has_none else {EVERY: error.strerror or str(error)}
    # Then each value; one that cannot be read does not keep the others out.
    found, unread = {}, {}
    for name in names:
        try:
            found[os.fsencode(name)] = os.getxattr(place, name, follow_symlinks=follow)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno != errno.ENODATA:  # it was removed meanwhile
                unread[os.fsencode(name)] = error.strerror or str(error)
    return found, unread


_GET_FLAGS = 0x80086601


def flags_of(fd: int) -> int:
    """The flags of a file or folder (chattr); none where there is no such thing."""
    try:
        found = int.from_bytes(ioctl(fd, _GET_FLAGS, bytes(8))[:4], sys.byteorder)
    except OSError:
        return 0
    return stored_flags(found)


def stored_flags(found: int) -> int:
    """Flags of a file (FS_IOC_GETFLAGS) as they are stored."""
    return sum(stored for flag, stored in LINUX_FLAGS.items() if found & flag) if found else 0


def fields_of(
    status: os.stat_result, *, size: int, links: int, parent: int, generation: int, birth: int = 0
) -> FileFields:
    """The fields of a file's attributes, from its status. `birth`: in nanoseconds, 0 if it is not known."""
    times = status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns
    device = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
    # FUSE and many filesystems know no time of birth: then the earliest of the others stands for it. Devices are packed
    # as ZFS does: the major number above 20 bits of the minor one.
    return FileFields(
        status.st_mode,
        status.st_uid,
        status.st_gid,
        size,
        links,
        *times,
        birth or min(times),
        parent,
        generation,
        rdev=os.major(status.st_rdev) << 20 | os.minor(status.st_rdev) if device else 0,
    )


# Birth times: Python's stat() has none on Linux.

_AT_EMPTY_PATH, _AT_SYMLINK_NOFOLLOW, _STATX_BTIME = 0x1000, 0x100, 0x800


class _Time(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_uint32), ("reserved", ctypes.c_int32)]


class _Statx(ctypes.Structure):
    """struct statx of Linux, 256 bytes."""

    _fields_ = [
        ("mask", ctypes.c_uint32),
        ("before", ctypes.c_uint8 * 60),
        ("atime", _Time),
        ("btime", _Time),
        ("after", ctypes.c_uint8 * 160),
    ]


@cache
def _statx() -> Any:
    try:
        return ctypes.CDLL(None, use_errno=True).statx
    except (AttributeError, OSError):
        return None


def birth_of(name: bytes, folder: int) -> int:
    """When a file was made, in nanoseconds since 1970; 0 where the system does not tell."""
    call = _statx()
    if call is None:
        return 0
    buffer = _Statx()
    # os.stat() has no time of birth on Linux, so ask statx(2) itself; without a name, of the open folder.
    flags = _AT_SYMLINK_NOFOLLOW if name else _AT_EMPTY_PATH
    if call(folder, name, flags, _STATX_BTIME, ctypes.byref(buffer)) or not buffer.mask & _STATX_BTIME:
        return 0
    birth = buffer.btime
    return int(birth.seconds) * 1_000_000_000 + int(birth.nanoseconds)
