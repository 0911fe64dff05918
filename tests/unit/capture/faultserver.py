"""`python faultserver.py FOLDER` mounts a folder with the files of filefaultkit.py (FUSE)."""

from __future__ import annotations

import errno
import itertools
import stat
import sys
from typing import Any

import mfusepy
from filefaultkit import AT_OPEN, AT_READ, CONTENT, NAMES, SIZE, XATTRS


class Faults(mfusepy.Operations):
    use_ns = True

    def __init__(self) -> None:
        self._clock = itertools.count()

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        name, now = path[1:], 1_600_000_000_000_000_001
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), now)
        if not name:
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2, **times}
        if name not in NAMES:
            raise mfusepy.FuseOSError(errno.ENOENT)
        sizes = {"empty": 0, "one byte": 1}
        found = {"st_mode": stat.S_IFREG | 0o640, "st_nlink": 1, "st_size": sizes.get(name, SIZE), **times}
        if name == "changes":
            found["st_mtime"] += next(self._clock)
        if name == "grows":
            found["st_size"] += next(self._clock)
        return found

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *NAMES]

    def open(self, path: str, flags: int) -> int:
        if path[1:] in AT_OPEN:
            raise mfusepy.FuseOSError(AT_OPEN[path[1:]])
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        name = path[1:]
        if AT_READ.get(name):
            raise mfusepy.FuseOSError(AT_READ[name])
        if name == "late" and offset:
            raise mfusepy.FuseOSError(errno.EIO)
        # Fewer bytes than were asked for: a file that ends early, or one that gives its content in pieces.
        ends = {"short": 700, "shorter": 0, "late": 512, "pieces": offset + 500}
        return CONTENT[offset : min(offset + size, ends.get(name, SIZE))]

    def listxattr(self, path: str) -> list[str]:
        if path[1:] == "no names":
            raise mfusepy.FuseOSError(errno.EIO)
        if path[1:] == "none supported":
            raise mfusepy.FuseOSError(errno.ENOTSUP)
        return list(XATTRS.get(path[1:], ()))

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        values = XATTRS.get(path[1:], {})
        if name not in values:
            raise mfusepy.FuseOSError(errno.ENODATA)
        if name == "user.bad":
            if path == "/value grows":
                return b"x" * (next(self._clock) % 7)
            raise mfusepy.FuseOSError(errno.ENODATA if path == "/value is gone" else errno.EIO)
        return values[name]


if __name__ == "__main__":
    options = {"attr_timeout": 0, "entry_timeout": 0, "negative_timeout": 0, "direct_io": True}
    mfusepy.FUSE(Faults(), sys.argv[1], foreground=True, nothreads=True, **options)
