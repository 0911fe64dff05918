"""The calls that reach the disk below a pool's folder. None follows a link or opens anything but a regular file.

A pool's folder may come from elsewhere, and may be hostile. A link in it would lead reads and writes out of it, a FIFO
would block for ever, a device might do anything. So each
folder is opened below the one before it (openat with O_NOFOLLOW), and a file is examined before and after it is opened.
The pool's folder itself is the user's choice, and may be reached by links.

Every change goes through `Disk`, so that a test can record the calls and replay them with whatever was not yet synced
lost or reordered, or make them fail.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from zkeep.errors import Damaged
from zkeep.names import shown
from zkeep.pool.store.port import Buffer

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"O_NONBLOCK has no effect on a regular file, and keeps the opening of a FIFO from blocking."
FULL = (errno.ENOSPC, errno.EDQUOT)
"What a disk says that has no room."
DEPTH = 3
"How many levels of folders names() looks into; a pool's own names have two."


@dataclass(slots=True, eq=False)
class DiskFolder:
    """An open folder of the pool, `names` below its root. A `with` block closes it."""

    fd: int
    root: Path
    names: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    @property
    def path(self) -> Path:
        """For messages, never opened; put together only when one is made."""
        return self.root.joinpath(*self.names)

    def below(self, fd: int, name: str) -> DiskFolder:
        return DiskFolder(fd, self.root, (*self.names, name))

    def entry(self, name: str) -> DiskEntry:
        return DiskEntry(self, name)


@dataclass(slots=True, eq=False)
class DiskEntry:
    """A name in an open folder; such a file may exist or not. A `with` block closes the folder."""

    folder: DiskFolder
    name: str

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.folder.fd)

    @property
    def path(self) -> Path:
        return self.folder.path / self.name

    def stat(self) -> os.stat_result:
        """The status of the entry itself; a link is not followed."""
        return os.stat(self.name, dir_fd=self.folder.fd, follow_symlinks=False)

    def exists(self) -> bool:
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True


class Disk:
    """The calls that change a disk, and nothing else; the recording shim of the tests overrides them all."""

    def open(self, entry: DiskEntry, flags: int) -> int:
        return os.open(entry.name, flags | _SAFE, 0o600, dir_fd=entry.folder.fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def write(self, fd: int, offset: int, buffers: Sequence[Buffer]) -> int:
        """Write some of the buffers at `offset`; returns how many bytes."""
        return os.pwritev(fd, buffers, offset)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        if sys.platform == "darwin":  # fsync leaves the bytes in the drive's cache there
            with suppress(OSError):  # not every file is on a drive
                fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
                return
        os.fsync(fd)

    def sync_folder(self, folder: DiskFolder) -> None:
        os.fsync(folder.fd)

    def link(self, source: DiskEntry, target: DiskEntry) -> None:
        os.link(
            *(source.name, target.name),
            src_dir_fd=source.folder.fd,
            dst_dir_fd=target.folder.fd,
            follow_symlinks=False,
        )

    def rename(self, source: DiskEntry, target: DiskEntry) -> None:
        os.rename(source.name, target.name, src_dir_fd=source.folder.fd, dst_dir_fd=target.folder.fd)

    def unlink(self, entry: DiskEntry) -> None:
        os.unlink(entry.name, dir_fd=entry.folder.fd)

    def mkdir(self, entry: DiskEntry) -> None:
        os.mkdir(entry.name, 0o700, dir_fd=entry.folder.fd)


_NO_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.EACCES, errno.EROFS)
"What fsync of a folder, or opening it for that, says where this cannot be done at all."


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk: those made, renamed and removed. It may be reached by links."""
    try:
        fd = os.open(path, _FOLDER)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder and those above it, where they are missing, and wait until their names are on the disk."""
    fresh = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    for each in fresh:
        sync_folder(each.parent)


def replace_durably(fresh: Path, path: Path) -> None:
    """Rename `fresh`, which is written, over `path`: after a power loss there is the old or the whole new file."""
    # The content first, then the name: a name that is durable earlier could lead to an empty file.
    fd = os.open(fresh, os.O_RDONLY | _SAFE)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    fresh.replace(path)
    sync_folder(path.parent)


def open_file(entry: DiskEntry, flags: int, opener: Callable[[DiskEntry, int], int] | None = None) -> int:
    """Open a regular file. Raises Damaged where the name is anything else: a link, a FIFO, a device."""
    with suppress(FileNotFoundError):
        _refuse_special(entry.stat(), entry)
    try:
        fd = (opener or Disk().open)(entry, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # put there since we looked
            raise Damaged(_not_regular(entry.path)) from None
        raise _named(error, entry.path) from None
    try:
        # Look again at what was opened: between the two calls another file may have come in its place.
        _refuse_special(os.fstat(fd), entry)
    except BaseException:
        os.close(fd)
        raise
    return fd


def file_size(entry: DiskEntry) -> int:
    found = entry.stat()
    _refuse_special(found, entry)
    return found.st_size


def _refuse_special(found: os.stat_result, entry: DiskEntry) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Damaged(_not_regular(entry.path))


def _not_regular(path: Path) -> str:
    where = shown(str(path), 200)[1:-1]
    return f"{where} is not a regular file: in a pool's folder no link is followed, and nothing else is opened"


def _named(error: OSError, path: Path) -> OSError:
    """Add the whole path to an error: a call below an open folder knows only the last name."""
    return OSError(error.errno, error.strerror, str(path))


class Root:
    """The folder in which everything lies. It stays the one that was opened first.

    A disk may be unmounted, or another one mounted in its place, while a process runs. What that one knows, the place
    in the journal above all, is of the first: it must neither look there for files, and take them for deleted, nor
    write there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is: tuple[int, int] | None = None

    def open(self) -> int:
        """Raises OSError: it is gone, or another one."""
        try:
            fd = os.open(self.path, _FOLDER)
        except (FileNotFoundError, NotADirectoryError):
            if self._is is None:
                raise
            raise self._stale("it is not there any more") from None
        status = os.fstat(fd)
        found = status.st_dev, status.st_ino
        if self._is not in (None, found):
            os.close(fd)
            raise self._stale("another folder is in its place now")
        self._is = found
        return fd

    def _stale(self, why: str) -> OSError:
        # No FileNotFoundError: that means that a file was deleted.
        return OSError(errno.ESTALE, f"{why}: was a disk unmounted, or exchanged?", str(self.path))


def file_at(path: Path) -> tuple[int, int] | None:
    """Which file this is: its device and inode; None if there is none."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_exposed(path: Path) -> bool:
    """Whether another user could put something else in the place of what is opened by a path below this folder.

    That is who owns the folder or one above it, and everyone where everyone may write. Who is in the group of one is
    trusted, as its owner chose. Nobody can change what is on a disk that is read-only.
    """
    real = Path(os.path.realpath(path))
    mine = (0, os.geteuid())
    for each in (real, *real.parents):
        found = os.lstat(each)
        # With the sticky bit others can make files in a folder, but not rename those of ours.
        is_open = found.st_mode & stat.S_IWOTH and (each == real or not found.st_mode & stat.S_ISVTX)
        if found.st_uid not in mine or is_open:
            return not os.statvfs(real).f_flag & os.ST_RDONLY
    return False


@contextmanager
def naming(path: Path, only: Sequence[int] = ()) -> Iterator[None]:
    """Name a folder in errors that have no whole path: calls on a descriptor know none, those below a folder a part.

    Else a person is not told which of the disks is full. `only`: in errors of these numbers; none: in all.
    """
    try:
        yield
    except OSError as error:
        known = error.filename
        if (not only or error.errno in only) and not (isinstance(known, str) and os.path.isabs(known)):
            error.filename = str(path)
        raise


def open_folder(root: Root, names: Sequence[str]) -> DiskFolder:
    """Open the folder `names` below `root`, one component at a time; FileNotFoundError if one does not exist.

    Raises:
        Damaged: a component is a link, or not a folder.
    """
    folder = DiskFolder(root.open(), root.path)
    try:
        for name in names:
            # openat() from folder to folder: a link in the middle of a path cannot lead out of the pool.
            below = _open_below(folder, name)
            os.close(folder.fd)
            folder = below
    except BaseException:
        os.close(folder.fd)
        raise
    return folder


def _open_below(folder: DiskFolder, name: str) -> DiskFolder:
    try:
        return folder.below(os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder.fd), name)
    except OSError as error:
        path = folder.path / name
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise Damaged(f"{path} is not a folder: in a pool's folder no link is followed") from None
        raise _named(error, path) from None


def walk(folder: DiskFolder, prefix: str, depth: int = DEPTH) -> Iterator[str]:
    """The names of all files below, links and special files included, with `prefix` and `/` before each."""
    with os.scandir(folder.fd) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        if not is_folder:
            yield f"{prefix}/{name}"
        elif depth > 1:
            with suppress(FileNotFoundError, PermissionError):  # such as lost+found at the root of a disk
                below = _open_below(folder, name)
                try:
                    yield from walk(below, f"{prefix}/{name}", depth - 1)
                finally:
                    os.close(below.fd)


def allow_open_files(more: int) -> None:
    """Raise the limit of open files so that `more` can be open beside the usual ones, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = more + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def write_fault(path: Path) -> str:
    """Why nothing can be written to the disk of this folder; empty if it can be, or if only this user may not.

    A file system that ext4 gave up after an error does not say that it is read-only: only an attempt tells. The file
    that is made has no name, and is gone when it is closed.
    """
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return os.strerror(errno.EROFS)
    if not hasattr(os, "O_TMPFILE"):
        return ""
    try:
        os.close(os.open(path, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError as error:
        return os.strerror(error.errno) if error.errno in (errno.EROFS, errno.EIO) else ""
    return ""
