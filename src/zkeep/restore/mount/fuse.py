"""FUSE operations for a read-only mount; restore.mount.layout says what lies where.

Only authenticated bytes are returned. A request that meets damaged or forged data fails with EIO and adds a line to the
log; all others succeed. A mount shows the snapshots that existed when it began. While it stands, compaction deletes no
files, so that no space comes back (pool.datasets.orphans).
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from zkeep.errors import Refused, ZkeepError
from zkeep.format.znode import Znode
from zkeep.names import printable_path
from zkeep.pool.datasets.contents import NotHere
from zkeep.restore.mount.layout import MountLayout
from zkeep.tree.filesystem import Name, NoSuchFile
from zkeep.tree.windows import BadBlock

FOREVER = 86_400.0
"Seconds for which the kernel may cache names and attributes: nothing changes in a snapshot."
BLOCK = 512
LONGEST_NAME = 1023
MAX_LOGGED = 10_000
"Places that are remembered as told in the log."
AUTO = 1 << 14
"FUSE_CAP_READDIRPLUS_AUTO: attributes come with the first few entries only. We switch it off: most callers want all."

P = ParamSpec("P")
R = TypeVar("R")
Log = Callable[[str], object]


def _device(node: Znode) -> int:
    """The device number for stat(); 0 for other files, and where it does not fit into FUSE's 12 and 20 bits."""
    major, minor = node.device
    is_device = stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode)
    return os.makedev(major, minor) if is_device and major < 1 << 12 else 0


def answer(method: Callable[P, R]) -> Callable[P, R]:
    """Decorate an operation whose first argument is a path: every exception becomes an OSError with an errno."""

    @wraps(method)
    def answered(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            me, path = args[:2]
            assert isinstance(me, ReadOnlyOperations)
            number = me.errno_of(str(path), error)
        raise OSError(number, os.strerror(number))

    return answered


class ReadOnlyOperations:
    """The operations that mfusepy calls, by the names that it expects. All are read-only."""

    use_ns = True
    flag_nullpath_ok = flag_nopath = 0

    def __init__(self, files: MountLayout, size: int, log: Log, on_mounted: Callable[[], object]) -> None:
        """`size`: bytes that statfs() reports; `on_mounted` is called once the folder shows its content."""
        self._files = files
        self._size = size
        self._on_mounted = on_mounted
        self.has_begun = False
        self._log = log
        self._logged: set[tuple[str, int]] = set()

    def errno_of(self, path: str, error: Exception) -> int:
        """Return the errno for an exception; what is not a plain OSError is logged, once for each place."""
        if isinstance(error, NoSuchFile):
            return errno.ENOENT
        if isinstance(error, OSError) and error.errno:
            return error.errno
        place = (path, error.offset) if isinstance(error, BadBlock) else (path, -1)
        if isinstance(error, BadBlock) and isinstance(error.why, NotHere):
            place = (error.why.name, -1)  # one line for a snapshot, not one for each block
        if place not in self._logged:
            if len(self._logged) >= MAX_LOGGED:
                self._logged.clear()
            self._logged.add(place)
            where = f", offset {error.offset}" if isinstance(error, BadBlock) else ""
            text = str(error) if isinstance(error, ZkeepError) else f"unexpected {type(error).__name__}: {error}"
            self._log(f"{printable_path(_bytes(path))}{where}: {text}")
        return errno.EIO

    def init_with_config(self, connection: Any, config: Any) -> None:
        connection.want &= ~AUTO
        if config is not None:
            config.use_ino = 1
            config.kernel_cache = 1
            config.entry_timeout = config.negative_timeout = config.attr_timeout = FOREVER
        self.has_begun = True
        self._on_mounted()

    @answer
    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        return self._status(*self._files.node(_inside(path)))

    def _status(self, node: Znode, stored: int) -> dict[str, int]:
        return {
            "st_ino": node.number,
            "st_mode": node.mode,
            "st_nlink": node.links,
            "st_uid": node.uid,
            "st_gid": node.gid,
            "st_size": node.size,
            "st_rdev": _device(node),
            "st_blocks": (stored + BLOCK - 1) // BLOCK,
            "st_blksize": 128 << 10,
            "st_atime": node.atime,
            "st_mtime": node.mtime,
            "st_ctime": node.ctime,
        }

    @answer
    def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, int], int]]:
        names = [*self._dots(path), *self._files.names(_inside(path))]
        return [(_text(name.name), _hint(name), 0) for name in names]

    def _dots(self, path: str) -> list[Name]:
        own = self._files.node(_inside(path))[0].number
        return [Name(b".", own, stat.S_IFDIR >> 12), Name(b"..", own, stat.S_IFDIR >> 12)]

    @answer
    def readdir_plus(self, path: str, first: int) -> list[tuple[str, dict[str, int], bool]]:
        """Some entries from the first-th on, with their attributes, and whether these are all; none: there are no more.

        An entry that cannot be read is listed all the same; a request for its attributes gets the error.
        """
        dots = [(name, None) for name in self._dots(path)] if first < 2 else []
        page = [*dots[first:], *self._files.page(_inside(path), max(first - 2, 0))]
        return [(_text(name.name), self._status(*seen) if seen else _hint(name), bool(seen)) for name, seen in page]

    @answer
    def readlink(self, path: str) -> str:
        return _text(self._files.node(_inside(path))[0].target or b"")

    @answer
    def open(self, path: str, flags: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return 0

    @answer
    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return self._files.read(_inside(path), offset, size)

    @answer
    def listxattr(self, path: str) -> list[str]:
        return [_text(name) for name in self._files.xattrs(_inside(path))]

    @answer
    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        if not self._files.has_xattrs:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))  # so that the system never asks again
        found = self._files.xattrs(_inside(path)).get(_bytes(name))
        if found is None:
            raise OSError(_NO_XATTR, os.strerror(_NO_XATTR))
        return found

    def statfs(self, path: str) -> dict[str, int]:
        blocks = self._size // BLOCK
        return {"f_bsize": 128 << 10, "f_frsize": BLOCK, "f_blocks": blocks, "f_namemax": LONGEST_NAME}


def _hint(name: Name) -> dict[str, int]:
    """The attributes that a listing without readdirplus has room for: inode number and type."""
    return {"st_ino": name.number, "st_mode": name.kind << 12}


_NO_XATTR = getattr(errno, "ENOATTR", None) or errno.ENODATA


def _bytes(text: str) -> bytes:
    """Encode a name as mfusepy does, whatever the locale of the system."""
    return text.encode("utf-8", "surrogateescape")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _inside(path: str) -> bytes:
    return _bytes(path).strip(b"/")


def serve(answers: ReadOnlyOperations, folder: str, name: str, options: dict[str, str | bool]) -> None:
    """Mount on a folder, and serve until it is unmounted or SIGTERM, SIGINT or SIGHUP arrives.

    Raises:
        Refused: FUSE is not installed.
        OSError: it could not be mounted; libfuse has said why on standard error.
    """
    driver, cache_options = _driver()
    try:
        driver(
            answers,
            folder,
            encoding="utf-8",
            foreground=True,
            nothreads=True,
            ro=True,
            fsname=name.replace(",", "\\,"),
            subtype="zkeep",
            **cache_options(FOREVER),
            **options,
        )
    except RuntimeError:
        if not answers.has_begun:
            raise OSError(errno.EIO, "FUSE would not") from None


def _driver() -> tuple[Any, Callable[[float], dict[str, str | bool]]]:
    try:
        from zkeep.restore.mount.readdirplus import Driver, cache_options
    except ImportError:
        # This very Python needs it, wherever its environment lies.
        way = f"{shlex.quote(sys.executable)} -m pip install mfusepy"
        raise Refused(f"mounting needs mfusepy, which is not installed: {way}") from None
    except OSError:
        raise Refused("mounting needs libfuse, which is not installed (Debian: apt install fuse3)") from None
    return Driver, cache_options
