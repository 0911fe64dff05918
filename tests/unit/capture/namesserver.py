"""`python namesserver.py FOLDER NAMES` mounts a folder whose files have the names and inodes that a file says (FUSE).

NAMES is a file of JSON: {"changed": nanoseconds of the folder's mtime and ctime, "files": {name: inode}}. It is read at
each listing. Nothing else of the files ever changes: neither times nor contents.
"""

from __future__ import annotations

import errno
import json
import stat
import sys
from pathlib import Path
from typing import Any

import mfusepy

TIME = 1_600_000_000_000_000_001


class Names(mfusepy.Operations):
    use_ns = True

    def __init__(self, source: Path) -> None:
        self._source = source

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        said = json.loads(self._source.read_text())
        if path in ("/", "/folder"):
            times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), said["changed"])
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2, "st_ino": 1 + len(path), **times}
        inode = said["files"].get(path.rpartition("/")[2])
        if inode is None:
            raise mfusepy.FuseOSError(errno.ENOENT)
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), TIME)
        return {"st_mode": stat.S_IFREG | 0o640, "st_nlink": 1, "st_size": 7, "st_ino": inode, **times}

    def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, Any], int]]:
        names = ["folder"] if path == "/" else json.loads(self._source.read_text())["files"]
        return [(name, self.getattr(f"{path.rstrip('/')}/{name}"), 0) for name in names]

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return b"content"[offset : offset + size]


if __name__ == "__main__":
    options = {"attr_timeout": 0, "entry_timeout": 0, "negative_timeout": 0, "direct_io": True, "use_ino": True}
    mfusepy.FUSE(Names(Path(sys.argv[2])), sys.argv[1], foreground=True, nothreads=True, **options)
