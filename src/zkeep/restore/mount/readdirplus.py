"""FUSE's readdirplus, which mfusepy lacks: it lists a folder together with the attributes of each entry.

Source: libfuse include/fuse.h fuse_readdir_flags, fuse_fill_dir_flags; lib/fuse.c fill_dir_plus().
"""

from __future__ import annotations

import os
from ctypes.util import find_library
from typing import Any

# Where libfuse 2 is installed, too, mfusepy would take that: it has no readdirplus.
if not {"FUSE_LIBRARY_PATH", "FUSE_LIBRARY_NAME"} & os.environ.keys() and find_library("fuse3"):
    os.environ["FUSE_LIBRARY_NAME"] = "fuse3"

import mfusepy

ASKED = 1 << 0
"Flag of a call (FUSE_READDIR_PLUS): attributes are wanted."
FILLED = 1 << 1
"Flag of an entry (FUSE_FILL_DIR_PLUS): these are all of its attributes."

TIMES = ("st_atime", "st_mtime", "st_ctime")


def cache_options(seconds: float) -> dict[str, str | bool]:
    """What libfuse 2 is to be told as options, and libfuse 3 in `init_with_config`: numbers of inodes, and caching."""
    if mfusepy.fuse_version_major >= 3:
        return {}
    times = dict.fromkeys(("entry_timeout", "negative_timeout", "attr_timeout"), str(seconds))
    return {"use_ino": True, "kernel_cache": True, **times}


class Driver(mfusepy.FUSE):  # type: ignore[misc]
    """mfusepy's FUSE, which calls `operations.readdir_plus` where the kernel supports it."""

    def readdir_fuse_3(self, path: bytes, buf: Any, filler: Any, offset: int, fip: Any, flags: int) -> int:
        """`offset`: how many entries the kernel has already. When its buffer is full, it calls again from there."""
        if not flags & ASKED:
            return int(super().readdir_fuse_3(path, buf, filler, offset, fip, flags))
        where = path.decode(self.encoding, self.errors)
        while entries := self.operations.readdir_plus(where, offset):
            for name, attributes, is_whole in entries:
                offset += 1
                text = name.encode(self.encoding, self.errors)
                if filler(buf, text, _status(attributes), offset, FILLED if is_whole else 0):
                    return 0
        return 0


def _status(attributes: dict[str, int]) -> Any:
    """Build a struct stat; `attributes` has times in nanoseconds."""
    status = mfusepy.c_stat()
    for name, value in attributes.items():
        if name in TIMES:
            # struct stat has seconds and nanoseconds apart.
            at = getattr(status, name + "spec")
            at.tv_sec, at.tv_nsec = divmod(value, 1_000_000_000)
        else:
            setattr(status, name, value)
    return status
