"""Staging folders: files are made in a private folder inside the target, and get their names when they are complete.

So an unfinished file is never seen under its name, and a file is replaced only by a complete one. Where others can
write to the target, they cannot put a link in the place of a new file. What a killed call left behind is removed by the
next one: a lock on the folder tells whether that call still runs.

    TARGET/.zkeep-extract-0123456789abcdef/PROCESS/COUNTER      a file that is being made
                                          /PROCESS/link-OBJECT  a file of several names, until all of them are made
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
import unicodedata
from collections.abc import Callable
from contextlib import ExitStack, suppress
from itertools import count

PREFIX = b".zkeep-extract-"
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OURS = re.compile(rb"\.zkeep-extract-[0-9a-f]{16}")
_PROCESS = re.compile(rb"[0-9]+")
_MADE = re.compile(rb"[0-9]+|link-[0-9]+")
_TRIES = 5
Folding = Callable[[bytes], bytes]
_INHERITED = ("system.posix_acl_default", "system.posix_acl_access")


class Staging:
    """Make it with within(), and close() it. A process that was forked after that may use it without closing it."""

    def __init__(self, parent: int, name: bytes, fd: int) -> None:
        self._parent = os.dup(parent)
        self._name = name
        self._fd = fd
        self._owner = os.getpid()
        self._inner = 0, -1
        self._numbers = count()

    @classmethod
    def within(cls, parent: int) -> Staging:
        """Make a staging folder in an open folder. Raises OSError if nothing can be made there."""
        # What a killed call left is removed first, as nothing else ever would.
        # Remove the leftovers of killed calls in a folder, but none that is locked, which is in use
        with suppress(OSError):
            # A folder that its owner holds open is locked, and _remove_one() leaves it alone.
            for left in os.listdir(parent):
                if _OURS.fullmatch(os.fsencode(left)):
                    _remove_one(parent, os.fsencode(left))
        for _ in range(_TRIES):
            name = PREFIX + secrets.token_hex(8).encode()
            os.mkdir(name, 0o700, dir_fd=parent)
            with ExitStack() as undo:
                undo.callback(_remove_folder, name, parent)
                fd = os.open(name, FOLDER, dir_fd=parent)
                undo.callback(os.close, fd)
                # Between making it and locking it, a cleaning neighbour may have taken it away: look again, and try
                # again.
                if _lock(fd) and _is_still(parent, name, fd) and (_is_private(fd) or not _has_owners(parent)):
                    drop_inherited_acls(fd)
                    made = cls(parent, name, fd)
                    undo.pop_all()
                    return made
        raise OSError(f"{os.fsdecode(name)} is taken away as soon as it is made")

    @property
    def fd(self) -> int:
        """This process's own subfolder: when many processes make files in one folder, they wait for each other."""
        process, fd = self._inner
        if process != os.getpid():
            name = b"%d" % os.getpid()
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=self._fd)
            fd = os.open(name, FOLDER, dir_fd=self._fd)
            self._inner = os.getpid(), fd
        return fd

    def new_name(self) -> bytes:
        return b"%d" % next(self._numbers)

    def drop(self, name: bytes) -> None:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)

    def close(self) -> None:
        """Remove it with everything in it; what the disk does not let go is unlocked, so that the next call can."""
        process, fd = self._inner
        if process == os.getpid():
            os.close(fd)
            self._inner = 0, -1
        if self._owner == os.getpid():
            with suppress(OSError):
                _clear(self._fd)
            _remove_folder(self._name, self._parent)
        os.close(self._fd)
        os.close(self._parent)


class Stagings:
    """The staging folders of one call: one for each filesystem of the target, made when it is first needed.

    It lies at the top of the target, where the next call looks for leftovers; if it cannot be made there, in the first
    folder that needs it.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._found: dict[object, Staging] = {}

    def of(self, folder: int, path: bytes, device: int) -> Staging:
        """Find or make the one from which files can be moved into an open folder. Raises OSError if there is none."""
        found = self._found.get(path) or self._found.get(device)
        if found is None:
            found = self._found[device] = self._made(device, folder)
        return found

    def apart(self, folder: int, path: bytes) -> Staging:
        """Make one in this very folder, where no file can be moved in from elsewhere: bind mounts, project quotas."""
        self._found[path] = Staging.within(folder)
        return self._found[path]

    def _made(self, device: int, folder: int) -> Staging:
        if os.fstat(self._top).st_dev == device:
            with suppress(OSError):
                return Staging.within(self._top)
        return Staging.within(folder)

    def folding(self) -> Folding | None:
        """Find the function that maps names that the target cannot tell apart to one; None: it tells all apart."""
        for staging in self._found.values():
            with suppress(OSError):
                return _folding(staging.fd)
        return None

    def close(self, *, before: frozenset[object] = frozenset()) -> None:
        """Close all, or only those that are not in `before`, an earlier result of made()."""
        for key in self._found.keys() - before:
            self._found.pop(key).close()

    def made(self) -> frozenset[object]:
        return frozenset(self._found)


def _folding(fd: int) -> Folding | None:
    """Try in an open folder: exFAT and APFS ignore case; HFS+ and APFS take an accented letter for its two parts."""
    first, capital, apart = "zk\u00e9".encode(), "ZK\u00e9".encode(), "zke\u0301".encode()
    # Make a file, and look whether it also answers to the other spellings.
    os.close(os.open(first, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=fd))
    try:
        has_case, has_form = not _is_there(fd, capital), not _is_there(fd, apart)
    finally:
        os.unlink(first, dir_fd=fd)
    # Names are taken byte by byte, as ZFS stores them: nothing can collide.
    if has_case and has_form:
        return None

    def fold(name: bytes) -> bytes:
        text = unicodedata.normalize("NFD", name.decode("utf-8", "surrogateescape"))
        return (text if has_case else text.casefold()).encode("utf-8", "surrogateescape")

    return fold


def _is_there(fd: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except OSError:
        return False
    return True


def drop_inherited_acls(fd: int) -> None:
    """Remove the ACLs that a new folder inherited from the one around it: files get only what is stored."""
    if hasattr(os, "removexattr"):
        for name in _INHERITED:
            with suppress(OSError):
                os.removexattr(fd, name)


def _lock(fd: int) -> bool:
    """Lock it. False: another process is just checking whether it is a leftover. Without locks, none can check."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_still(parent: int, name: bytes, fd: int) -> bool:
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(fd))


def _is_private(fd: int) -> bool:
    """Whether this is what we made, not what another user put there. Some filesystems have no modes: _has_owners()."""
    found = os.fstat(fd)
    return found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _has_owners(parent: int) -> bool:
    """Whether what we make in a folder is ours alone, as on most filesystems: tried with a file.

    A file that is made and opened in one call is the one that we made, also where others can write to the folder.
    """
    name = PREFIX + secrets.token_hex(8).encode()
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
    try:
        return _is_private(fd)
    finally:
        os.close(fd)
        with suppress(OSError):
            os.unlink(name, dir_fd=parent)


def _remove_one(parent: int, name: bytes) -> None:
    with suppress(OSError):
        fd = os.open(name, FOLDER, dir_fd=parent)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.geteuid() in (0, os.fstat(fd).st_uid):
                _clear(fd)
                os.rmdir(name, dir_fd=parent)
        finally:
            os.close(fd)


def _remove_folder(name: bytes, parent: int) -> None:
    """Remove an empty folder, if it can be."""
    with suppress(OSError):
        os.rmdir(name, dir_fd=parent)


def _clear(fd: int) -> None:
    """Remove the files in an open staging folder."""
    for process in map(os.fsencode, os.listdir(fd)):
        # Each worker process has a folder of its own; only names that we give are touched.
        if not _PROCESS.fullmatch(process):
            continue
        with suppress(OSError):
            inner = os.open(process, FOLDER, dir_fd=fd)
            try:
                for name in map(os.fsencode, os.listdir(inner)):
                    mode = os.stat(name, dir_fd=inner, follow_symlinks=False).st_mode if _MADE.fullmatch(name) else 0
                    if mode and not stat.S_ISDIR(mode):
                        os.unlink(name, dir_fd=inner)
            finally:
                os.close(inner)
            os.rmdir(process, dir_fd=fd)
