"""FUSE's readdirplus, which mfusepy does not have: a folder is listed together with what is known of each entry.

Source: libfuse include/fuse.h fuse_readdir_flags, fuse_fill_dir_flags; lib/fuse.c fill_dir_plus().
"""

from __future__ import annotations

from typing import Any

import mfusepy

ASKED = 1 << 0
"Flag of a call (FUSE_READDIR_PLUS): attributes are wanted."
FILLED = 1 << 1
"Flag of an entry (FUSE_FILL_DIR_PLUS): these are all of its attributes."

TIMES = ("st_atime", "st_mtime", "st_ctime")


class Driver(mfusepy.FUSE):  # type: ignore[misc]
    """mfusepy's, which asks `operations.readdir_plus` where it can."""

    def readdir_fuse_3(self, path: bytes, buf: Any, filler: Any, offset: int, fip: Any, flags: int) -> int:
        """`offset`: how many entries whoever asks has; it is called anew when the system's buffer is full."""
        if not flags & ASKED:
            return int(super().readdir_fuse_3(path, buf, filler, offset, fip, flags))
        where = path.decode(self.encoding, self.errors)
        while some := self.operations.readdir_plus(where, offset):
            for name, attributes, is_whole in some:
                offset += 1
                text = name.encode(self.encoding, self.errors)
                if filler(buf, text, _status(attributes), offset, FILLED if is_whole else 0):
                    return 0
        return 0


def _status(attributes: dict[str, int]) -> Any:
    """Times are in nanoseconds."""
    status = mfusepy.c_stat()
    for name, value in attributes.items():
        if name in TIMES:
            at = getattr(status, name + "spec")
            at.tv_sec, at.tv_nsec = divmod(value, 1_000_000_000)
        else:
            setattr(status, name, value)
    return status
