"""What mfusepy leaves out of FUSE: the flags of rename, and operations on files by their handle alone.

Source: libfuse include/fuse.h struct fuse_operations; lib/fuse.c.
"""

from __future__ import annotations

from typing import Any

import mfusepy


class Driver(mfusepy.FUSE):  # type: ignore[misc]
    """mfusepy's FUSE, which passes on the flags of rename, and the handle where there is no path."""

    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
        """Without the flags an exchange of two files would lose one of them."""
        return int(self.operations.rename(self._text(old), self._text(new), flags) or 0)

    def chmod_fuse_3(self, path: bytes | None, mode: int, fip: Any) -> int:
        return int(self.operations.chmod(self._text(path), mode, _handle(fip)) or 0)

    def chown_fuse_3(self, path: bytes | None, uid: int, gid: int, fip: Any) -> int:
        uid, gid = (-1 if number == 0xFFFFFFFF else number for number in (uid, gid))
        return int(self.operations.chown(self._text(path), uid, gid, _handle(fip)) or 0)

    def truncate_fuse_3(self, path: bytes | None, length: int, fip: Any) -> int:
        return int(self.operations.truncate(self._text(path), length, _handle(fip)) or 0)

    def utimens_fuse_3(self, path: bytes | None, buf: Any, fip: Any) -> int:
        """`buf`: two times; nanoseconds may say that it is now, or that one stays."""
        both = (buf.contents.actime, buf.contents.modtime) if buf else None
        times = tuple((int(each.tv_sec), int(each.tv_nsec)) for each in both) if both else None
        return int(self.operations.utimens(self._text(path), times, _handle(fip)) or 0)

    def lseek(self, path: bytes | None, offset: int, whence: int, fip: Any) -> int:
        return int(self.operations.lseek(self._text(path), offset, whence, _handle(fip)))

    def _text(self, path: bytes | None) -> str | None:
        return None if path is None else path.decode(self.encoding, self.errors)


def context() -> tuple[int, int, int]:
    """User, group and umask of who asks."""
    found = mfusepy._libfuse.fuse_get_context().contents  # fuse_get_context() leaves the umask out
    return int(found.uid), int(found.gid), int(found.umask)


def _handle(fip: Any) -> int | None:
    return int(fip.contents.fh) if fip else None
