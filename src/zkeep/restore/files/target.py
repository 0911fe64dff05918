"""Folders of the target of an extraction: nothing is ever made outside of it.

Every call is relative to an open folder, with one name, and follows no symbolic link. That holds whatever names and
links a snapshot has, and whatever is in the target already or is put there meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack, suppress
from functools import cached_property
from typing import NamedTuple

from zkeep.cache import Cache
from zkeep.errors import Refused
from zkeep.names import printable_path
from zkeep.restore.files.staging import FOLDER, Staging, drop_inherited_acls

_ALL = stat.S_IRWXU
_PINNED_MOST = 64
"Folders that stay open so that their inode numbers stay the same: some filesystems invent them on opening."
_NEAR_MOST = 64
"Folders that stay open because the next ones are probably near."


class InTheWay(Refused):
    """Another file exists at this path, and may not be replaced."""

    def __init__(self, text: str = "it is there already; --force overwrites") -> None:
        super().__init__(text)


class Identity(NamedTuple):
    device: int
    inode: int


class TargetPlace(NamedTuple):
    """A folder below the top, and the inodes through which it must be reached.

    `seen` has, by depth, those folders on the way that lie where other users can write. They could put another folder
    of the same name in its place, and its inode would differ.
    """

    path: bytes
    seen: tuple[tuple[int, Identity], ...] = ()


class Shared:
    """State that all folders of one extraction share."""

    def __init__(self) -> None:
        self.modes: dict[bytes, int] = {}
        "Modes of folders that were made writable, by path."
        self.pinned: dict[bytes, int] = {}
        self._near: Cache[bytes, int] = Cache(_NEAR_MOST, on_drop=os.close)

    def close(self) -> None:
        for fd in self.pinned.values():
            os.close(fd)
        self.pinned.clear()
        self._near.clear()

    def nearest(self, path: bytes) -> tuple[bytes, int] | None:
        """Find the innermost folder on the way to a path that is still open: its path, and a descriptor of it.

        The next folder mostly lies near the last one. Without this, a deep one would cost one open() a level each time.
        """
        while path:
            if (fd := self._near.get(path)) is not None:
                return path, os.dup(fd)
            path = path.rpartition(b"/")[0]
        return None

    def keep(self, path: bytes, fd: int) -> None:
        """Keep a folder open for nearest()."""
        if path and path not in self._near:
            self._near.put(path, os.dup(fd))


class TargetFolder:
    """An open folder of the target. Close it, or use it as a context manager."""

    def __init__(self, fd: int, place: TargetPlace, shared: Shared) -> None:
        self.fd = fd
        self.place = place
        self.path = place.path
        self._shared = shared
        self._is_top = False

    @classmethod
    def top(cls, path: str) -> TargetFolder:
        """Open the folder to extract into, and make it if need be. Its own path may contain links.

        Raises:
            Refused: it cannot be made or opened.
        """
        try:
            os.makedirs(path, exist_ok=True)
            with suppress(PermissionError):
                return cls._top(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            old = stat.S_IMODE(os.stat(path).st_mode)
            os.chmod(path, old | _ALL)
            return cls._top(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), old)
        except OSError as error:
            raise Refused(f"cannot extract into {path}: {error.strerror}") from None

    @classmethod
    def top_below(cls, path: str, place: bytes) -> TargetFolder:
        """Open a folder below the one that was named; no link on the way from there is followed.

        Folders on the way keep their times and modes.
        """
        with ExitStack() as stack:
            folder = stack.enter_context(cls.top(path))
            stack.callback(folder.restore_mode)
            for name in place.split(b"/") if place else ():
                # Enter or make each folder; making one must not change the times of the one above.
                before = os.fstat(folder.fd)
                is_new = folder.status(name) is None
                try:
                    inner = stack.enter_context(folder.enter(name))
                except (OSError, Refused) as error:
                    why = error.strerror if isinstance(error, OSError) else error
                    raise Refused(f"cannot extract into {printable_path(place)}: {why}") from None
                if is_new:
                    os.utime(folder.fd, ns=(before.st_atime_ns, before.st_mtime_ns))
                # On the way out, folders that were opened up for us get their modes back, inner ones first.
                stack.callback(inner.restore_mode)
                folder = inner
            # The stack closes all folders on the way; the innermost is kept open.
            fd = os.dup(folder.fd)
        return cls._top(fd)

    @classmethod
    def _top(cls, fd: int, mode: int | None = None) -> TargetFolder:
        top = cls(fd, TargetPlace(b""), Shared())
        top._is_top = True
        if mode is None:
            top._unlock()
        else:
            top._shared.modes[b""] = mode
        return top

    def __enter__(self) -> TargetFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_top:
            self._shared.close()
        os.close(self.fd)

    @cached_property
    def device(self) -> int:
        return os.fstat(self.fd).st_dev

    def below(self, name: bytes) -> bytes:
        return self.path + b"/" + name if self.path else name

    # Folders in it

    def enter(self, name: bytes) -> TargetFolder:
        """Open a folder in this one, made if need be. If it is ours and read-only, it becomes writable.

        Raises:
            Refused: something that is not a folder has this name.
        """
        check_name(name)
        made = True
        try:
            os.mkdir(name, 0o700, dir_fd=self.fd)
        except FileExistsError:
            made = False
        except OSError:
            if self.status(name) is None:  # a read-only disk reports that first, even if the folder exists
                raise
            made = False
        found = self._open(name)
        try:
            if made:
                drop_inherited_acls(found.fd)
            else:
                found._unlock()
            # Remember the inode of a folder, if it lies where others could put another one in its place
            if not is_exposed(self.fd):
                return found
            found.place = TargetPlace(found.path, (*self.place.seen, (found.path.count(b"/") + 1, _identity(found.fd))))
            if len(self._shared.pinned) < _PINNED_MOST and found.path not in self._shared.pinned:
                self._shared.pinned[found.path] = os.dup(found.fd)
            return found
        except BaseException:
            os.close(found.fd)
            raise

    def inner(self, place: TargetPlace) -> TargetFolder:
        """Open a folder that was made before. Raises Refused if another one is in its place now."""
        # Begin at the nearest folder that is still open, and go down name by name.
        parts = place.path.split(b"/") if place.path else []
        path, fd = self._shared.nearest(place.path) or (b"", os.dup(self.fd))
        start = path.count(b"/") + 1 if path else 0
        found = TargetFolder(fd, TargetPlace(path, self.place.seen), self._shared)
        seen = dict(place.seen)
        for depth in range(start, len(parts) + 1):
            if depth > start:
                found = found._next(parts[depth - 1])
            # Where others can write, it must be the same inode as before.
            if depth in seen and seen[depth] != _identity(found.fd):
                os.close(found.fd)
                raise Refused("its folder was replaced by another one meanwhile")
            self._shared.keep(found.path, found.fd)
        found.place = place
        return found

    def _next(self, name: bytes) -> TargetFolder:
        """Open a folder in this one, and close this one."""
        try:
            return self._open(name)
        finally:
            os.close(self.fd)

    def _open(self, name: bytes) -> TargetFolder:
        try:
            try:
                fd = os.open(name, FOLDER, dir_fd=self.fd)
            except PermissionError:
                # Change the mode of a folder of ours that we may not open. Raises OSError if it is not ours.
                found = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
                change_mode(name, self.fd, stat.S_IMODE(found.st_mode) | _ALL)
                self._shared.modes.setdefault(self.below(name), stat.S_IMODE(found.st_mode))
                fd = os.open(name, FOLDER, dir_fd=self.fd)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise Refused("something else is there") from None
            raise
        return TargetFolder(fd, TargetPlace(self.below(name), self.place.seen), self._shared)

    def _unlock(self) -> None:
        """Make a folder of ours writable, until restore_mode()."""
        found = os.fstat(self.fd)
        if found.st_mode & _ALL != _ALL and found.st_uid == os.geteuid() != 0:
            os.fchmod(self.fd, stat.S_IMODE(found.st_mode) | _ALL)
            self._shared.modes.setdefault(self.path, stat.S_IMODE(found.st_mode))

    def restore_mode(self) -> None:
        """Restore the mode of the folder, if it was made writable."""
        mode = self._shared.modes.pop(self.path, None)
        if mode is not None:
            os.fchmod(self.fd, mode)

    # Names in it

    def status(self, name: bytes) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def put(self, staging: Staging, made: bytes, name: bytes, *, replace: bool) -> None:
        """Give a finished file its name; its name in the staging folder is gone then, or has to be dropped.

        Raises:
            FileExistsError: `replace` is not set and something is there.
            Refused: a folder is there that is not empty.
            OSError: EXDEV if it cannot be moved from this staging folder into this one.
        """
        check_name(name)
        if replace:
            self._replace(staging, made, name)
            return
        try:
            os.link(made, name, src_dir_fd=staging.fd, dst_dir_fd=self.fd, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.EXDEV, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG):
                raise
            if self.status(name) is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
            os.rename(made, name, src_dir_fd=staging.fd, dst_dir_fd=self.fd)  # there are no links here

    def _replace(self, staging: Staging, made: bytes, name: bytes) -> None:
        found = self.status(name)
        if found is not None and stat.S_ISDIR(found.st_mode):
            try:
                os.rmdir(name, dir_fd=self.fd)
            except OSError as error:
                raise Refused(f"what is there cannot be removed: {error.strerror}") from None
        os.rename(made, name, src_dir_fd=staging.fd, dst_dir_fd=self.fd)


def is_exposed(folder: int) -> bool:
    """Whether other users can replace the entries of an open folder."""
    found = os.fstat(folder)
    return found.st_uid not in (0, os.geteuid()) or bool(found.st_mode & 0o022)


def _identity(fd: int) -> Identity:
    found = os.fstat(fd)
    return Identity(found.st_dev, found.st_ino)


def check_name(name: bytes) -> None:
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise Refused(f"cannot extract a file called {printable_path(name)}")


def change_mode(name: bytes, folder: int, mode: int) -> None:
    """Change the mode of a name without following a link: chmod() on Linux follows them."""
    if os.chmod in os.supports_follow_symlinks:
        os.chmod(name, mode, dir_fd=folder, follow_symlinks=False)
        return
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)
