"""FUSE operations of a dataset that is mounted read-write.

What was done is committed every few seconds, at fsync and at the end. An error that is none of a system call (damaged
data, a full disk) is EIO or ENOSPC for the caller, and a line in the log.

libfuse knows files by their paths. One that is open and loses its name is therefore renamed first, to
`.fuse_hidden...` in its folder, and that is unlinked when it is closed. Here such a name is in no folder: it leads to
the file without a name that it stands for.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

from zkeep.errors import Refused, ZkeepError
from zkeep.live.control_folder import ControlFolder, Snapshots
from zkeep.live.errors import fail
from zkeep.live.files import LiveFiles
from zkeep.live.inode import Inode
from zkeep.pool.transfer.reserve import QuotaExceeded
from zkeep.tree.filesystem import NoSuchFile

INTERVAL = 5.0
"Seconds after which what was done is committed."
BLOCK = 512
FOREVER = 86_400.0
HIDDEN = re.compile(rb"(.*/)?\.fuse_hidden[0-9a-f]{16}")
HIDING = 0.2
"Seconds that libfuse may take from hiding a file to replacing it: no commit may come between."
NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2
"In place of nanoseconds: UTIME_NOW, UTIME_OMIT."

WITH_HANDLE = frozenset({"getattr", "readdir", "read", "release", "releasedir", "lseek", "fsync", "fsyncdir"})
"Operations that may come without a path."
CHANGING = {
    *("chmod", "chown", "utimens", "mkdir", "mknod", "symlink", "link", "rename", "create", "write"),
    *("truncate", "fallocate", "setxattr", "removexattr", "unlink", "rmdir", "fsync", "fsyncdir")
}
"Operations that fail once nothing can be committed any more, as what they do would be lost."
DONT_MASK, POSIX_ACL = 1 << 6, 1 << 19
"FUSE_CAP_*: the kernel leaves the umask to us, as default ACLs replace it; and it enforces ACLs."

P = ParamSpec("P")
R = TypeVar("R")
Log = Callable[[str], object]


class Caller(NamedTuple):
    """Who asks."""

    uid: int
    gid: int
    umask: int


def answer(method: Callable[P, R]) -> Callable[P, R]:
    """Decorate an operation: it has the dataset to itself, and every exception becomes an OSError with an errno."""

    @wraps(method)
    def answered(*args: P.args, **kwargs: P.kwargs) -> R:
        me = args[0]
        assert isinstance(me, Operations)
        try:
            with me.files.dataset.lock:
                inside = me.control.path_of(args[1:], me.handle_of(method.__name__, args))
                if inside is not None:
                    result: R = me.control.answer(method.__name__, inside, args[1:], me.next_handle())
                    return result
                if me.files.dataset.is_stale and method.__name__ in CHANGING:
                    raise Refused("something else was written to the dataset: nothing can be committed any more")
                return method(*args, **kwargs)
        except Exception as error:
            number = me.errno_of(str(args[1]) if len(args) > 1 else "", error)
        raise OSError(number, os.strerror(number))

    return answered


class Operations:
    """The operations that mfusepy calls, by the names that it expects."""

    use_ns = True
    flag_nullpath_ok = flag_nopath = 1

    def __init__(
        self,
        files: LiveFiles,
        log: Log,
        on_mounted: Callable[[], object],
        caller: Callable[[], Caller],
        *,
        acls: bool,
        snapshots: Snapshots | None = None,
    ) -> None:
        """`on_mounted` is called once the folder shows its content; `caller` tells who asks. `acls`: there are some."""
        self.files = files
        self.control = ControlFolder(snapshots)
        self._log = log
        self._on_mounted = on_mounted
        self._caller = caller
        self._acls = acls
        self.has_begun = False
        self._handles: dict[int, Inode] = {}
        self._next_handle = 1
        self._ended = threading.Event()
        self._hidden: dict[bytes, Inode] = {}
        self._hid_at = -HIDING

    def next_handle(self) -> int:
        self._next_handle += 1
        return self._next_handle - 1

    def handle_of(self, operation: str, args: tuple[Any, ...]) -> int | None:
        """The handle among the arguments of an operation, if it has one: it is the last."""
        last = args[-1] if operation in WITH_HANDLE and len(args) > 2 else None
        return last if isinstance(last, int) else None

    def errno_of(self, path: str, error: Exception) -> int:
        if isinstance(error, NoSuchFile):
            return errno.ENOENT
        if isinstance(error, QuotaExceeded):
            return errno.EDQUOT
        if isinstance(error, OSError) and error.errno:
            return error.errno
        text = str(error) if isinstance(error, ZkeepError) else f"unexpected {type(error).__name__}: {error}"
        self._log(f"{ascii(path)[1:-1]}: {text}")
        return errno.EIO

    # The mount itself

    def init_with_config(self, connection: Any, config: Any) -> None:
        if config is not None:
            config.use_ino = config.nullpath_ok = 1
            config.entry_timeout = FOREVER
            config.negative_timeout = 1.0  # snapshots come below .zfs
            config.attr_timeout = 0.0
        if self._acls:
            connection.want |= POSIX_ACL | DONT_MASK
        self.has_begun = True
        threading.Thread(target=self._commit_at_times, daemon=True).start()
        self._on_mounted()

    def _commit_at_times(self) -> None:
        while not self._ended.wait(INTERVAL):
            try:
                with self.still():
                    if self._ended.is_set():
                        return
                    self.files.dataset.commit()
                    self.files.dataset.forget_unused()
                    self.control.rest()
            except Exception as error:
                self.errno_of("commit", error)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Nothing changes while this is held, and no change is half done."""
        while True:
            with self.files.dataset.lock:
                wait = self._hid_at + HIDING - time.monotonic()
                if wait <= 0:
                    yield
                    return
            time.sleep(wait)

    @answer
    def destroy(self, path: str) -> None:
        """The end. A file that somebody gave a name like a hidden one's gets it.

        libfuse has taken its handlers of signals away; a second signal must not end the last commit.
        """
        ignore_signals()
        self._ended.set()
        for hidden, inode in self._hidden.items():
            if inode.opens == 1:
                self.files.enter_again(hidden, inode)

    def statfs(self, path: str) -> dict[str, int]:
        disk = os.statvfs(self.files.dataset.pool.path)
        unit = disk.f_frsize // BLOCK or 1
        numbers = {"f_bsize": 128 << 10, "f_frsize": BLOCK, "f_namemax": 255}
        numbers |= {"f_blocks": disk.f_blocks * unit, "f_bfree": disk.f_bfree * unit, "f_bavail": disk.f_bavail * unit}
        return numbers | {"f_files": 1 << 40, "f_ffree": 1 << 40, "f_favail": 1 << 40}

    # Attributes

    def _at(self, path: str | None, handle: int | None) -> Inode:
        if handle is not None and handle in self._handles:
            return self._handles[handle]
        inside = _inside(path or "")
        return self._hidden.get(inside) or self.files.lookup(inside)

    @answer
    def getattr(self, path: str | None, fh: int | None = None) -> dict[str, int]:
        inode = self._at(path, fh)
        fields = inode.fields
        return {
            "st_ino": inode.number,
            "st_mode": fields.mode,
            "st_nlink": fields.links,
            "st_uid": fields.uid,
            "st_gid": fields.gid,
            "st_size": fields.size,
            "st_rdev": os.makedev(fields.rdev >> 20, fields.rdev & 0xFFFFF),
            "st_blocks": (fields.size + BLOCK - 1) // BLOCK,
            "st_blksize": inode.block,
            "st_atime": fields.atime,
            "st_mtime": fields.mtime,
            "st_ctime": fields.ctime,
        }

    @answer
    def chmod(self, path: str | None, mode: int, fh: int | None = None) -> None:
        self.files.chmod(self._at(path, fh), mode)

    @answer
    def chown(self, path: str | None, uid: int, gid: int, fh: int | None = None) -> None:
        self.files.chown(self._at(path, fh), uid, gid)

    @answer
    def utimens(self, path: str | None, times: tuple[tuple[int, int], ...] | None, fh: int | None = None) -> None:
        """`times`: seconds and nanoseconds of access and of change; None: now."""
        now = time.time_ns()
        found = [_nanoseconds(*each, now) for each in times] if times else [now, now]
        self.files.utimens(self._at(path, fh), *found)

    # Names

    @answer
    def opendir(self, path: str) -> int:
        inode = self.files.lookup(_inside(path))
        if not inode.is_folder:
            fail(errno.ENOTDIR)
        return self._opened(inode)

    @answer
    def readdir(self, path: str | None, fh: int) -> list[tuple[str, dict[str, int], int]]:
        inode = self._at(path, fh)
        own = {"st_ino": inode.number, "st_mode": stat.S_IFDIR}
        entries = self.files.dataset.entries(inode).items()
        found = [(_text(name), {"st_ino": v & (1 << 48) - 1, "st_mode": (v >> 60) << 12}, 0) for name, v in entries]
        return [(".", own, 0), ("..", own, 0), *found]

    @answer
    def releasedir(self, path: str | None, fh: int) -> None:
        self._closed(fh)

    @answer
    def mkdir(self, path: str, mode: int) -> None:
        self._make(path, stat.S_IFDIR | mode & 0o7777)

    def _make(self, path: str, mode: int, rdev: int = 0) -> Inode:
        uid, gid, umask = self._caller()
        return self.files.make(_inside(path), mode, (uid, gid), rdev=rdev, umask=umask if self._acls else 0)

    @answer
    def mknod(self, path: str, mode: int, dev: int) -> None:
        self._make(path, mode, os.major(dev) << 20 | os.minor(dev))

    @answer
    def symlink(self, target: str, source: str) -> None:
        owner = self._caller()[:2]
        self.files.make(_inside(target), stat.S_IFLNK | 0o777, owner, target=_bytes(source))

    @answer
    def readlink(self, path: str) -> str:
        return _text(self._at(path, None).fields.target or b"")

    @answer
    def link(self, target: str, source: str) -> None:
        self.files.link(_inside(source), _inside(target))

    @answer
    def unlink(self, path: str) -> None:
        hidden = self._hidden.pop(_inside(path), None)
        if hidden is not None:
            self.files.release(hidden)
            return
        self.files.unlink(_inside(path))

    @answer
    def rmdir(self, path: str) -> None:
        self.files.rmdir(_inside(path))

    @answer
    def rename(self, old: str, new: str, flags: int = 0) -> None:
        if HIDDEN.fullmatch(_inside(new)) and self._hide(_inside(old), _inside(new)):
            return
        self.files.rename(_inside(old), _inside(new), flags)

    def _hide(self, path: bytes, hidden: bytes) -> bool:
        """Take away the name of a file that is open; what libfuse does next replaces or removes it."""
        inode = self.files.lookup(path)
        if not inode.opens or inode.is_folder or hidden in self._hidden:
            return False
        self.files.open(inode)
        self._hidden[hidden] = inode
        self.files.unlink(path)
        self._hid_at = time.monotonic()
        return True

    # Files

    def _opened(self, inode: Inode) -> int:
        handle = self.next_handle()
        self._handles[handle] = inode
        self.files.open(inode)
        return handle

    def _closed(self, handle: int) -> None:
        inode = self._handles.pop(handle, None)
        if inode is not None:
            self.files.release(inode)

    @answer
    def create(self, path: str, mode: int, flags: int) -> int:
        return self._opened(self._make(path, stat.S_IFREG | mode & 0o7777))

    @answer
    def open(self, path: str, flags: int) -> int:
        return self._opened(self._at(path, None))

    @answer
    def release(self, path: str | None, fh: int) -> None:
        self._closed(fh)

    @answer
    def read(self, path: str | None, size: int, offset: int, fh: int) -> bytes:
        return self.files.read(self._at(path, fh), offset, size)

    @answer
    def write(self, path: str | None, data: bytes, offset: int, fh: int) -> int:
        return self.files.write(self._at(path, fh), data, offset)

    @answer
    def truncate(self, path: str | None, length: int, fh: int | None = None) -> None:
        self.files.truncate(self._at(path, fh), length)

    @answer
    def fallocate(self, path: str | None, mode: int, offset: int, size: int, fh: int) -> None:
        self.files.allocate(self._at(path, fh), mode, offset, size)

    @answer
    def lseek(self, path: str | None, offset: int, whence: int, fh: int | None) -> int:
        return self.files.seek(self._at(path, fh), offset, whence)

    # Extended attributes

    @answer
    def listxattr(self, path: str) -> list[str]:
        return [_text(name) for name in self.files.xattrs.names(self._at(path, None))]

    @answer
    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        return self.files.xattrs.get(self._at(path, None), _bytes(name))

    @answer
    def setxattr(self, path: str, name: str, value: bytes, flags: int, position: int = 0) -> None:
        self.files.xattrs.set(self._at(path, None), _bytes(name), value, flags)

    @answer
    def removexattr(self, path: str, name: str) -> None:
        self.files.xattrs.remove(self._at(path, None), _bytes(name))

    # Durability

    @answer
    def fsync(self, path: str | None, datasync: int, fh: int) -> None:
        self.files.dataset.commit()

    @answer
    def fsyncdir(self, path: str | None, datasync: int, fh: int) -> None:
        self.files.dataset.commit()


def _nanoseconds(seconds: int, rest: int, now: int) -> int | None:
    if rest == OMIT:
        return None
    return now if rest == NOW else seconds * 1_000_000_000 + rest


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _inside(path: str) -> bytes:
    return _bytes(path).strip(b"/")


def ignore_signals() -> None:
    """Let no signal that may be handled end this process any more."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


def caller() -> Caller:
    """Who asks, in an operation that FUSE calls."""
    from zkeep.live.driver import context

    return Caller(*context())


def serve(answers: Operations, folder: str, name: str, options: dict[str, str | bool]) -> None:
    """Mount on a folder, and serve until it is unmounted or a signal ends it.

    Raises:
        Refused: FUSE is not installed.
        OSError: it could not be mounted; libfuse has said why on standard error.
    """
    driver = _driver()
    try:
        driver(
            answers,
            folder,
            encoding="utf-8",
            foreground=True,
            nothreads=True,
            default_permissions=True,
            fsname=name.replace(",", "\\,"),
            subtype="zkeep",
            **options,
        )
    except RuntimeError:
        if not answers.has_begun:
            raise OSError(errno.EIO, "FUSE would not") from None
    finally:
        if answers.has_begun:
            ignore_signals()  # mfusepy has put back that of Ctrl-C


def _driver() -> Any:
    try:
        from zkeep.live.driver import Driver
    except ImportError:
        raise Refused("mounting needs mfusepy, which is not installed: pip install 'zkeep[mount]'") from None
    except OSError:
        raise Refused("mounting needs libfuse, which is not installed (Debian: apt install fuse3)") from None
    return Driver
