"""Snapshots as a read-only folder, through FUSE.

One snapshot, or all of a dataset: the newest at the top and each below `.zfs/snapshot`, which no listing shows, as at
the source. Only authenticated bytes are given. What is damaged or not authentic is EIO for whoever asks for just that,
and a line in the log.

A mount shows what was there when it began. While it stands, compaction gives no space back (pool.datasets.leftovers).

Source: OpenZFS module/os/linux/zfs/zpl_ctldir.c for `.zfs`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from itertools import islice
from typing import Any, ParamSpec, TypeVar

from zkeep.errors import Refused, ZkeepError
from zkeep.format.znode import Znode
from zkeep.restore.mount.view import BadBlock, FileView, ImageView, Served, synthetic
from zkeep.snapshot.open import OpenSnapshot
from zkeep.tree.filesystem import Filesystem, Name, NoSuchFile, shown
from zkeep.tree.volume import DATA, Volume

FOREVER = 86_400.0
"Seconds for which the system may hold what it was told: nothing changes in a snapshot."
CONTROL = b".zfs/snapshot"
SERVED = 8
"Snapshots below .zfs that are open at a time."
_CONTROL_NUMBERS = {b".zfs": (1 << 48) - 1, CONTROL: (1 << 48) - 3}
"As the kernel numbers them: ZFSCTL_INO_ROOT, ZFSCTL_INO_SNAPDIR."
BLOCK = 512
LONGEST_NAME = 1023
PAGE = 256
"Entries that are listed with their attributes at a time."
AUTO = 1 << 14
"FUSE_CAP_READDIRPLUS_AUTO: list attributes with the first few entries alone. Whoever lists mostly looks at all."

P = ParamSpec("P")
R = TypeVar("R")
Log = Callable[[str], object]


@dataclass(frozen=True)
class Offered:
    """A snapshot that can be shown. `open` is called when somebody looks into it. `created`: seconds since 1970."""

    name: str
    created: int
    open: Callable[[], OpenSnapshot]


def _device(node: Znode) -> int:
    """As stat() tells it; 0 for what is none, and for numbers for which FUSE has no room (12 and 20 bits)."""
    major, minor = node.device
    is_device = stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode)
    return os.makedev(major, minor) if is_device and major < 1 << 12 else 0


def view_of(opened: OpenSnapshot) -> Served:
    if not opened.is_volume:
        filesystem = Filesystem(opened)
        filesystem.znode(filesystem.root)
        return FileView(filesystem, opened.state.bytes_of)
    volume = Volume(opened)
    name = opened.snapshot.dataset.name.text.rpartition("/")[2] + ".img"
    return ImageView(opened, DATA, volume.size, _bytes(name), int(opened.snapshot.doc["creation"]))


class Shown:
    """Paths of the mount. Close it, or use it as a context manager.

    `top` lies at the root; with `others`, each of them lies below .zfs/snapshot. The inode numbers there are those of
    the source with the snapshot's place above bit 48: who copies them all must not take files of two snapshots for
    links of one another.
    """

    def __init__(self, top: Offered, others: list[Offered] | None = None) -> None:
        self._stack = ExitStack()
        self._top = view_of(self._stack.enter_context(top.open()))
        self._created = top.created
        self._others = others
        self._places = {_bytes(other.name): at for at, other in enumerate(others or [], 1)}
        self._open: OrderedDict[bytes, tuple[ExitStack, Served]] = OrderedDict()

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *_: object) -> None:
        for stack, _served in self._open.values():
            stack.close()
        self._stack.close()

    def _route(self, path: bytes) -> tuple[Served | None, bytes, int]:
        """Who has a path, its name there, and what its inode numbers begin with; None: it is of the control folder."""
        if self._others is None or not (path == b".zfs" or path.startswith(b".zfs/")):
            return self._top, path, 0
        name, _, rest = path.removeprefix(CONTROL).removeprefix(b"/").partition(b"/")
        if path in _CONTROL_NUMBERS:
            return None, path, 0
        if not path.startswith(CONTROL + b"/") or name not in self._places:
            raise NoSuchFile(f"{shown(path)}: no such file or directory")
        return self._snapshot(name), rest, self._places[name] << 48

    def _snapshot(self, name: bytes) -> Served:
        found = self._open.get(name)
        if found is None:
            assert self._others is not None
            with ExitStack() as stack:
                opened = stack.enter_context(self._others[self._places[name] - 1].open())
                found = stack, view_of(opened)
                self._open[name] = stack.pop_all(), found[1]
            if len(self._open) > SERVED:
                self._open.popitem(last=False)[1][0].close()
        self._open.move_to_end(name)
        return found[1]

    def node(self, path: bytes) -> tuple[Znode, int]:
        """What lies at a path, and the bytes that it takes."""
        if (closed := self._unopened(path)) is not None:
            return closed, 0
        served, rest, base = self._route(path)
        if served is None:
            return synthetic(_CONTROL_NUMBERS[path], stat.S_IFDIR | 0o555, 2, self._created), 0
        node = served.node(rest)
        number = node.number | base if rest else base
        return node._replace(number=number) if base else node, served.stored(node)

    def _unopened(self, path: bytes) -> Znode | None:
        """What the folder of a snapshot looks like before somebody goes in: the newest root, made with the snapshot.

        To list snapshots with their attributes opens none.
        """
        folder, _, name = path.rpartition(b"/")
        if folder != CONTROL or name not in self._places or name in self._open:
            return None
        assert self._others is not None
        at = self._places[name]
        seconds = self._others[at - 1].created
        folder_of = synthetic(at << 48, stat.S_IFDIR | 0o555, 2, seconds)
        root = self._top.node(b"")
        return folder_of._replace(mode=root.mode, uid=root.uid, gid=root.gid)

    def names(self, path: bytes) -> Iterator[Name]:
        served, rest, base = self._route(path)
        if served is not None:
            for name in served.names(rest):
                yield name._replace(number=name.number | base) if base else name
        elif path == CONTROL:
            yield from (Name(name, at << 48, stat.S_IFDIR >> 12) for name, at in self._places.items())
        else:
            yield Name(b"snapshot", _CONTROL_NUMBERS[CONTROL], stat.S_IFDIR >> 12)

    def page(self, path: bytes, first: int) -> list[tuple[Name, tuple[Znode, int] | None]]:
        """Some of names(), from the first-th on, each with what node() tells of it.

        None: to be asked for by itself.
        """
        served, rest, base = self._route(path)
        if served is None:
            return [(name, None) for name in islice(self.names(path), first, first + PAGE)]
        return [_seen(served, name, base) for name in served.names(rest)[first : first + PAGE]]

    @property
    def has_xattrs(self) -> bool:
        """False: nothing of the newest snapshot, nor of older ones, has extended attributes."""
        return self._top.has_xattrs

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        served, rest, _ = self._route(path)
        return served.xattrs(rest) if served else {}

    def read(self, path: bytes, offset: int, size: int) -> bytes:
        served, rest, _ = self._route(path)
        if served is None:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        return served.read(rest, offset, size)


def _seen(served: Served, name: Name, base: int) -> tuple[Name, tuple[Znode, int] | None]:
    entry = name._replace(number=name.number | base) if base else name
    try:
        node = served.look(name)
    except ZkeepError:
        return entry, None
    return entry, (node._replace(number=entry.number) if base else node, served.stored(node))


def answer(method: Callable[P, R]) -> Callable[P, R]:
    """Turns what goes wrong into an errno; the first argument is the path."""

    @wraps(method)
    def answered(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            me, path = args[:2]
            assert isinstance(me, Answers)
            number = me.trouble(str(path), error)
        raise OSError(number, os.strerror(number))

    return answered


class Answers:
    """What FUSE asks, answered; the methods are named as mfusepy wants it. Nothing of it is written to."""

    use_ns = True
    flag_nullpath_ok = flag_nopath = 0

    def __init__(self, files: Shown, size: int, log: Log, begun: Callable[[], object]) -> None:
        """`size`: of the whole, in bytes; `begun` is called when the folder shows what is in it."""
        self._files = files
        self._size = size
        self._begin = begun
        self.has_begun = False
        self._log = log
        self._told: set[tuple[str, int]] = set()

    def trouble(self, path: str, error: Exception) -> int:
        """Tell of it, of each place once; returns what whoever asked is told."""
        if isinstance(error, NoSuchFile):
            return errno.ENOENT
        if isinstance(error, OSError) and error.errno:
            return error.errno
        place = (path, error.offset) if isinstance(error, BadBlock) else (path, -1)
        if place not in self._told:
            self._told.add(place)
            where = f", offset {error.offset}" if isinstance(error, BadBlock) else ""
            text = str(error) if isinstance(error, ZkeepError) else f"unexpected {type(error).__name__}: {error}"
            self._log(f"{shown(_bytes(path))}{where}: {text}")
        return errno.EIO

    def init_with_config(self, connection: Any, config: Any) -> None:
        connection.want &= ~AUTO
        if config is not None:
            config.use_ino = 1
            config.kernel_cache = 1
            config.entry_timeout = config.negative_timeout = config.attr_timeout = FOREVER
        self.has_begun = True
        self._begin()

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

        Entries that are in trouble are listed; who asks for them is told.
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
    """What a listing tells of an entry."""
    return {"st_ino": name.number, "st_mode": name.kind << 12}


_NO_XATTR = getattr(errno, "ENOATTR", None) or errno.ENODATA


def _bytes(text: str) -> bytes:
    """As mfusepy writes and reads names, whatever the system's locale."""
    return text.encode("utf-8", "surrogateescape")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _inside(path: str) -> bytes:
    return _bytes(path).strip(b"/")


def serve(answers: Answers, folder: str, name: str, options: dict[str, str | bool]) -> None:
    """Show it in a folder until it is unmounted, or SIGTERM, SIGINT or SIGHUP come.

    Raises:
        Refused: FUSE is not here.
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
            ro=True,
            fsname=name.replace(",", "\\,"),
            subtype="zkeep",
            **options,
        )
    except RuntimeError:
        if not answers.has_begun:
            raise OSError(errno.EIO, "FUSE would not") from None


def _driver() -> Any:
    try:
        from zkeep.restore.mount.readdirplus import Driver
    except ImportError:
        raise Refused("mounting needs mfusepy, which is not installed: pip install 'zkeep[mount]'") from None
    except OSError:
        raise Refused("mounting needs libfuse, which is not installed (Debian: apt install fuse3)") from None
    return Driver
