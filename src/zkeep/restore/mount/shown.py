"""What a mount shows: a snapshot, all snapshots of a dataset, or those of all datasets below, each in its place.

The newest snapshot of a dataset lies at its place and each below `.zfs/snapshot` there, which no listing shows; a
dataset lies where its name says below the topmost, as zfs mounts it, whatever its parent holds there.

Source: OpenZFS module/os/linux/zfs/zpl_ctldir.c for `.zfs`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from zkeep.cache import Cache
from zkeep.errors import ZkeepError
from zkeep.format.znode import Znode
from zkeep.restore.mount.view import FileView, ImageView, Served, synthetic
from zkeep.snapshot.open import OpenSnapshot
from zkeep.tree.filesystem import Filesystem, Name, NoSuchFile, shown
from zkeep.tree.volume import DATA, Volume

CONTROL = b".zfs/snapshot"
SERVED = 8
"Snapshots beside the topmost that are open at a time."
_CONTROL_NUMBERS = {b".zfs": (1 << 48) - 1, CONTROL: (1 << 48) - 3}
"As the kernel numbers them: ZFSCTL_INO_ROOT, ZFSCTL_INO_SNAPDIR."
_MADE_NUMBER = (1 << 48) - 16
"Folders that only lead to a dataset below have the numbers before it."
PAGE = 256
"Entries that are listed with their attributes at a time."
Seen = tuple[Name, tuple[Znode, int] | None]


@dataclass(frozen=True)
class Offered:
    """A snapshot that can be shown. `open` is called when somebody looks into it. `created`: seconds since 1970."""

    name: str
    created: int
    open: Callable[[], OpenSnapshot]


@dataclass(frozen=True)
class Place:
    """A dataset below the topmost: its path from there, what lies there, and what lies below its .zfs/snapshot."""

    path: bytes
    top: Offered
    others: list[Offered] | None = None


def view_of(opened: OpenSnapshot) -> Served:
    if not opened.is_volume:
        filesystem = Filesystem(opened)
        filesystem.znode(filesystem.root)
        return FileView(filesystem, opened.state.bytes_of)
    volume = Volume(opened)
    name = opened.snapshot.dataset.name.text.rpartition("/")[2] + ".img"
    return ImageView(opened, DATA, volume.size, _bytes(name), int(opened.snapshot.doc["creation"]))


class _Map:
    """Which snapshot lies at which path, and the folders that lead there."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.at: dict[bytes, tuple[int, Offered]] = {}
        "By path: the snapshot, and the number with which the inode numbers there begin."
        self.control: dict[bytes, tuple[int, list[bytes]]] = {}
        "Folders .zfs and .zfs/snapshot: the kernel's number, and what is in them."
        self.leads: dict[bytes, dict[bytes, int]] = {}
        "Names in a folder that are, or lead to, datasets below, and numbers for folders that are made up."
        for place in places:
            self._add(place.path, place.top)
            self._lead(place.path)
        for place in places:
            if place.others is not None:
                self._control(place.path, place.others)

    def _add(self, path: bytes, offered: Offered) -> None:
        self.at[path] = len(self.at), offered

    def _control(self, path: bytes, others: list[Offered]) -> None:
        names = [_bytes(other.name) for other in others]
        for inner, number in _CONTROL_NUMBERS.items():
            self.control[_below(path, inner)] = number, names if inner == CONTROL else [b"snapshot"]
        for name, other in zip(names, others, strict=True):
            self._add(_below(path, CONTROL + b"/" + name), other)

    def _lead(self, path: bytes) -> None:
        while path:
            path, _, name = path.rpartition(b"/")
            number = _MADE_NUMBER - len(self.leads)
            self.leads.setdefault(path, {}).setdefault(name, number)

    def holder(self, path: bytes) -> tuple[bytes, bytes]:
        """The path of the snapshot in which a path lies, and the rest of it.

        Raises:
            NoSuchFile: it is in a control folder, where there is nothing else.
        """
        above, rest = path, b""
        while above not in self.at:
            above, _, name = above.rpartition(b"/")
            rest = _below(name, rest) if rest else name
        if _below(above, b".zfs") in self.control and (rest + b"/").startswith(b".zfs/"):
            raise NoSuchFile(f"{shown(path)}: no such file or directory")
        return above, rest


class Shown:
    """Paths of the mount. Close it, or use it as a context manager.

    `top` lies at the root; with `others`, each of them lies below .zfs/snapshot. The inode numbers in each snapshot are
    those of the source with the snapshot's place above bit 48: who copies them all must not take files of two of them
    for links of one another.
    """

    def __init__(self, top: Offered, others: list[Offered] | None = None, below: Sequence[Place] = ()) -> None:
        self._map = _Map([Place(b"", top, others), *below])
        self._stack = ExitStack()
        self._top = view_of(self._stack.enter_context(top.open()))
        self._created = top.created
        self._open: Cache[bytes, tuple[ExitStack, Served]] = Cache(SERVED, on_drop=lambda opened: opened[0].close())

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()
        self._stack.close()

    def _route(self, path: bytes) -> tuple[Served, bytes, int]:
        """The snapshot that has a path, the path in it, and what its inode numbers begin with."""
        above, rest = self._map.holder(path)
        return self._snapshot(above), rest, self._map.at[above][0] << 48

    def _snapshot(self, path: bytes) -> Served:
        if not path:
            return self._top
        found = self._open.get(path)
        if found is None:
            with ExitStack() as stack:
                opened = stack.enter_context(self._map.at[path][1].open())
                view = view_of(opened)
                found = self._open.put(path, (stack.pop_all(), view))
        return found[1]

    def node(self, path: bytes) -> tuple[Znode, int]:
        """What lies at a path, and the bytes that it takes."""
        if path in self._map.control:
            return synthetic(self._map.control[path][0], stat.S_IFDIR | 0o555, 2, self._created), 0
        if (number := self._made_up(path)) is not None:
            return synthetic(number, stat.S_IFDIR | 0o555, 2, self._created), 0
        if (closed := self._unopened(path)) is not None:
            return closed, 0
        served, rest, base = self._route(path)
        node = served.node(rest)
        number = node.number | base if rest else base
        return node._replace(number=number) if base else node, served.stored(node)

    def _unopened(self, path: bytes) -> Znode | None:
        """What the folder of a snapshot looks like before somebody goes in: the newest root, made with the snapshot.

        To list snapshots with their attributes opens none.
        """
        folder = path.rpartition(b"/")[0]
        if folder not in self._map.control or path not in self._map.at or path in self._open:
            return None
        place, offered = self._map.at[path]
        root = self._snapshot(folder.removesuffix(CONTROL).rstrip(b"/")).node(b"")
        made = synthetic(place << 48, stat.S_IFDIR | 0o555, 2, offered.created)
        return made._replace(mode=root.mode, uid=root.uid, gid=root.gid)

    def _made_up(self, path: bytes) -> int | None:
        """The number of a folder that leads to a dataset below where its parent holds none; None if it is no such."""
        if path in self._map.at or path not in self._map.leads:
            return None
        above, _, name = path.rpartition(b"/")
        try:
            served, rest, _ = self._route(path)
            if served.node(rest).is_folder:
                return None
        except NoSuchFile:
            pass
        return self._map.leads[above][name]

    def names(self, path: bytes) -> list[Name]:
        stored, more, _, base = self._listed(path)
        return [*(_based(name, base) for name in stored), *more]

    def page(self, path: bytes, first: int) -> list[Seen]:
        """Some of names(), from the first-th on, each with what node() tells of it.

        None: to be asked for by itself.
        """
        stored, more, served, base = self._listed(path)
        leads = self._map.leads.get(path, {})
        found: list[Seen] = []
        for name in stored[first : first + PAGE]:
            alone = served is None or name.name in leads
            found.append((_based(name, base), None) if alone or served is None else _seen(served, name, base))
        start = max(first - len(stored), 0)
        found += [(name, None) for name in more[start : start + PAGE - len(found)]]
        return found

    def _listed(self, path: bytes) -> tuple[list[Name], list[Name], Served | None, int]:
        """What a snapshot has in a folder, and what else is there; the snapshot, and what its numbers begin with."""
        if path in self._map.control:
            return [], list(self._control_names(path)), None, 0
        leads = self._map.leads.get(path, {})
        if self._made_up(path) is not None:
            return [], [_folder(name, number) for name, number in leads.items()], None, 0
        served, rest, base = self._route(path)
        stored = served.names(rest)
        if leads:
            stored = [_folder(each.name, each.number) if each.name in leads else each for each in stored]
        here = {each.name for each in stored} if leads else set()
        return stored, [_folder(name, number) for name, number in leads.items() if name not in here], served, base

    def _control_names(self, path: bytes) -> Iterator[Name]:
        for name in self._map.control[path][1]:
            inner = _below(path, name)
            number = self._map.control[inner][0] if inner in self._map.control else self._map.at[inner][0] << 48
            yield _folder(name, number)

    @property
    def has_xattrs(self) -> bool:
        """False: nothing of the newest snapshot, nor of older ones, has extended attributes."""
        return self._top.has_xattrs or bool(self._map.leads)

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        if path in self._map.control or self._made_up(path) is not None:
            return {}
        served, rest, _ = self._route(path)
        return served.xattrs(rest)

    def read(self, path: bytes, offset: int, size: int) -> bytes:
        if path in self._map.control or self._made_up(path) is not None:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        served, rest, _ = self._route(path)
        return served.read(rest, offset, size)


def _seen(served: Served, name: Name, base: int) -> Seen:
    entry = _based(name, base)
    try:
        node = served.look(name)
    except ZkeepError:
        return entry, None
    return entry, (node._replace(number=entry.number) if base else node, served.stored(node))


def _based(name: Name, base: int) -> Name:
    return name._replace(number=name.number | base) if base else name


def _folder(name: bytes, number: int) -> Name:
    return Name(name, number, stat.S_IFDIR >> 12)


def _below(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
