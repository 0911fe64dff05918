"""Making files, and never outside the folder that was named.

Everything is done relative to an open folder, one name at a time, and no symbolic link is followed: whatever names and
links a snapshot holds, and whatever lies in the target already.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from zkeep.errors import Refused
from zkeep.format.znode import Znode
from zkeep.tree.filesystem import Extent, shown

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BEGUN = stat.S_ISVTX | stat.S_IWUSR
"""The mode of a file that is being written. The sticky bit is its mark until all else is as it should be: it means
nothing for files and nobody sets it, so that what an interrupted call left behind is known for what it is."""
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSPC, errno.E2BIG, errno.ERANGE)
NOT_OURS = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP)
"What chown() says of owners, and mknod() of devices, that are not ours to give, or that this system does not have."


@dataclass
class Skipped:
    """What could not be made as it is stored, by kind; told to the person at the end."""

    counts: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str) -> None:
        self.counts[kind] += 1

    def __str__(self) -> str:
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items()))


class Folder:
    """An open folder of the target. Close it, or use it as a context manager."""

    def __init__(self, fd: int, path: bytes) -> None:
        self.fd = fd
        self.path = path

    @classmethod
    def top(cls, path: str) -> Folder:
        """The folder to extract into; made if it is not there. Its own path may lead over links."""
        os.makedirs(path, exist_ok=True)
        return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), b"")

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def below(self, name: bytes) -> bytes:
        return self.path + b"/" + name if self.path else name

    def enter(self, name: bytes) -> Folder:
        """A folder in it, made if it is not there."""
        check_name(name)
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self.fd)
        return self._open(name)

    def inner(self, path: bytes) -> Folder:
        """One below it that was made before."""
        found = Folder(os.dup(self.fd), self.path)
        for name in path.split(b"/") if path else ():
            with found:
                found = found._open(name)
        return found

    def _open(self, name: bytes) -> Folder:
        try:
            return Folder(os.open(name, _FOLDER, dir_fd=self.fd), self.below(name))
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise Refused(f"cannot extract {shown(self.below(name))}: something else is there") from None
            raise

    def status(self, name: bytes) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def clear(self, name: bytes, *, force: bool) -> None:
        """Remove what stands in the way; a folder only if it is empty.

        Raises:
            Refused: `force` is not set and it is no file that was begun, or it is a folder with something in it.
        """
        found = self.status(name)
        if found is None:
            return
        path = shown(self.below(name))
        if not force and not was_begun(found):
            raise Refused(f"cannot extract {path}: it is there already; --force overwrites")
        try:
            if stat.S_ISDIR(found.st_mode):
                os.rmdir(name, dir_fd=self.fd)
            else:
                os.unlink(name, dir_fd=self.fd)
        except OSError as error:
            raise Refused(f"cannot extract {path}: what is there cannot be removed: {error.strerror}") from None

    def make_file(self, name: bytes, extents: Iterable[Extent], size: int) -> int:
        """Write a new file, sparse, and return it open; what is begun and cannot be finished is removed."""
        check_name(name)
        fd = os.open(name, _NEW, _BEGUN, dir_fd=self.fd)
        try:
            end = write_sparse(fd, extents)
            if end != size:
                os.ftruncate(fd, size)
        except BaseException:
            os.close(fd)
            os.unlink(name, dir_fd=self.fd)
            raise
        return fd

    def make_link(self, name: bytes, target: bytes) -> None:
        check_name(name)
        os.symlink(target, name, dir_fd=self.fd)

    def make_node(self, name: bytes, node: Znode) -> None:
        """A fifo, a socket or a device."""
        check_name(name)
        os.mknod(name, stat.S_IFMT(node.mode) | 0o600, os.makedev(*node.device), dir_fd=self.fd)


def was_begun(found: os.stat_result) -> bool:
    """Whether an interrupted call left it."""
    mine = os.geteuid() in (0, found.st_uid) and found.st_nlink == 1
    return mine and stat.S_ISREG(found.st_mode) and bool(found.st_mode & stat.S_ISVTX)


def check_name(name: bytes) -> None:
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise Refused(f"cannot extract a file called {shown(name)}")


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


def dress(place: int | bytes, folder: int | None, node: Znode, xattrs: dict[bytes, bytes], skipped: Skipped) -> None:
    """Owner, extended attributes, times and mode, in the order in which none undoes another; with the mode it is done.

    `place` is a descriptor, or the name of what cannot be opened (links, devices) in `folder`.
    """
    mode = stat.S_IMODE(node.mode)
    try:
        if isinstance(place, int):
            os.fchown(place, node.uid, node.gid)
        else:
            os.chown(place, node.uid, node.gid, dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NOT_OURS:
            raise
        skipped.add("owners")
        mode &= ~(stat.S_ISUID | stat.S_ISGID)  # what another owner's file may do, ours need not
    for name, value in xattrs.items():
        _set_xattr(place, folder, name, value, skipped)
    times = node.atime, node.mtime
    if isinstance(place, int):
        os.utime(place, ns=times)
    else:
        os.utime(place, ns=times, dir_fd=folder, follow_symlinks=False)
    if not node.is_link:
        os.chmod(place, mode, dir_fd=None if isinstance(place, int) else folder)


def _set_xattr(place: int | bytes, folder: int | None, name: bytes, value: bytes, skipped: Skipped) -> None:
    if not takes_xattr(place, folder, name, value):
        skipped.add("ACLs" if name.startswith(b"system.posix_acl") else "extended attributes")


def takes_xattr(place: int | bytes, folder: int | None, name: bytes, value: bytes) -> bool:
    """Set an extended attribute; False if the target cannot have it, as none can where Python has no setxattr."""
    if not hasattr(os, "setxattr"):
        return False
    if isinstance(place, bytes):
        target: int | bytes = b"/proc/self/fd/%d/%s" % (folder or 0, place)
        follow = False
    else:
        target, follow = place, True
    try:
        os.setxattr(target, name, value, follow_symlinks=follow)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    return True
