"""The protocol of /dev/fuse: requests of the kernel, and answers to them, as bytes.

A request is a header and a body; an answer is a header, an errno in it, and a body. One system call reads or writes a
whole one. All numbers are little-endian on the machines that zkeep runs on; the kernel uses those of the host.

Source: Linux include/uapi/linux/fuse.h.
"""

from __future__ import annotations

import errno
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from zkeep.live.errors import fail

MAJOR, MINOR = 7, 36
MAX_WRITE = 1 << 20
"Bytes that one request may write."
ROOT = 1
"The node of the root folder; each other file has a number of ours, which the answer to LOOKUP tells."


class Op(IntEnum):
    """What a request asks for. Others are answered with ENOSYS: the kernel does without, and does not ask again."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    READ = 15
    WRITE = 16
    STATFS = 17
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    TMPFILE = 51


# What is agreed upon in INIT
ASYNC_READ = 1 << 0
BIG_WRITES = 1 << 5
DONT_MASK = 1 << 6
"The umask is left to us, as default ACLs replace it."
AUTO_INVAL_DATA = 1 << 12
DO_READDIRPLUS = 1 << 13
READDIRPLUS_AUTO = 1 << 14
PARALLEL_DIROPS = 1 << 18
POSIX_ACL = 1 << 20
"The kernel enforces ACLs."
MAX_PAGES = 1 << 22
CACHE_SYMLINKS = 1 << 23
SETXATTR_EXT = 1 << 29
"SETXATTR says when an ACL takes set-group-ID from a file."
HANDLE_KILLPRIV_V2 = 1 << 28
"We take set-user-ID and capabilities from a file that is written or gets another owner."
WANTED = (
    *(ASYNC_READ, BIG_WRITES, AUTO_INVAL_DATA, DO_READDIRPLUS, READDIRPLUS_AUTO),
    *(PARALLEL_DIROPS, MAX_PAGES, CACHE_SYMLINKS, HANDLE_KILLPRIV_V2, SETXATTR_EXT),
)

# Which attributes SETATTR changes
SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_ATIME, SET_MTIME = (1 << bit for bit in range(6))
SET_ANY = (1 << 6) - 1
ATIME_NOW, MTIME_NOW = 1 << 7, 1 << 8
KILL_IDS = 1 << 11
"With SET_SIZE: the file loses set-user-ID and set-group-ID."
ACL_KILLS_SGID = 1 << 0
"A flag of SETXATTR: who sets the ACL is not in the file's group."
WRITE_CACHE = 1 << 0
"A flag of WRITE: the kernel writes back pages of its own that a program changed in memory (mmap)."
WRITE_KILLS_IDS = 1 << 2
"The same, as a flag of WRITE."

HEADER_IN = Struct("=IIQQIIIHH")
"Length, operation, number of the request, node, user, group, process; two that are not used here."
HEADER = HEADER_IN.size
_used = Struct("=4xIQQII8x")
"What is used of it here: operation, number, node, user and group."
HEADER_OUT = Struct("=IiQ")
"Length, errno (negative), number of the request."

INIT_IN = Struct("=IIII")
INIT_OUT = Struct("=IIIIHHIIHHII24x")
ATTRIBUTES = "3Q3q10I"
"Inode, size, blocks; three times in seconds, the same in nanoseconds; mode, links, user, group, device, block size, 0."
ENTRY_OUT = Struct("=4Q2I" + ATTRIBUTES)
"Node, generation, how long name and attributes hold (seconds, nanoseconds), attributes."
ATTR_OUT = Struct("=QII" + ATTRIBUTES)
OPEN_OUT = Struct("=QIi")
STATFS_OUT = Struct("=5Q4I24x")
SIZE_OUT = Struct("=II")
OFFSET = Struct("=Q")
DIRENT = Struct("=QQII")
"Inode, offset of the next entry, length of the name, type; the name follows, padded to 8 bytes."

SETATTR_IN = Struct("=IIQQQqqq8I")
MKNOD_IN = Struct("=IIII")
MKDIR_IN = Struct("=II")
CREATE_IN = Struct("=IIII")
RENAME2_IN = Struct("=QII")
READ_IN = Struct("=QQIIQII")
WRITE_IN = READ_IN
FSYNC_IN = Struct("=QII")
XATTR_IN = Struct("=II")
SETXATTR_IN = Struct("=IIII")
"With SETXATTR_EXT; without it, as XATTR_IN."
FALLOCATE_IN = Struct("=QQQII")
LSEEK_IN = Struct("=QQII")
FORGET_IN = Struct("=Q")
FORGET_ONE = Struct("=QQ")


class Request(NamedTuple):
    """One request. `body` is valid only until the next one is read."""

    op: int
    unique: int
    node: int
    uid: int
    gid: int
    body: memoryview


def parse(message: memoryview) -> Request:
    """A request as it was read."""
    # Made of a tuple, as this is done for every request.
    return tuple.__new__(Request, (*_used.unpack_from(message), message[HEADER:]))


def name_in(body: memoryview, start: int = 0) -> bytes:
    """The name at the end of a request, which a zero byte ends."""
    return bytes(body[start:]).split(b"\0", 1)[0]


def names_in(body: memoryview, start: int = 0) -> tuple[bytes, bytes]:
    """Two names at the end of a request."""
    first, second, *_ = bytes(body[start:]).split(b"\0")
    return first, second


def dirent(inode: int, next_offset: int, name: bytes, kind: int) -> bytes:
    """An entry of a folder, padded to 8 bytes. `kind`: as in d_type."""
    padding = -len(name) % 8
    return DIRENT.pack(inode, next_offset, len(name), kind) + name + bytes(padding)


def sized(body: memoryview, value: bytes) -> bytes:
    """The answer that has an extended attribute or their names; the size alone where no room was given for it.

    Raises:
        OSError: it needs more room.
    """
    room, _ = XATTR_IN.unpack_from(body)
    if not room:
        return SIZE_OUT.pack(len(value), 0)
    if len(value) > room:
        fail(errno.ERANGE)
    return value
