"""The layout of a mount: which snapshot lies at which path.

A mount shows one snapshot, or all snapshots of a dataset, or those of all datasets below it. The newest snapshot of a
dataset lies at the dataset's path, and each one below `.zfs/snapshot` there, which no listing shows. A child dataset
lies where its name says, as zfs mounts it, and hides what its parent holds at that path.

Source: OpenZFS module/os/linux/zfs/zpl_ctldir.c for `.zfs`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

from zkeep.cache import Cache
from zkeep.errors import ZkeepError
from zkeep.format.znode import Znode
from zkeep.names import printable_path
from zkeep.restore.mount.view import FileView, ImageView, SnapshotView, synthetic
from zkeep.snapshot.open import OpenSnapshot
from zkeep.tree.filesystem import Filesystem, Name, NoSuchFile
from zkeep.tree.volume import DATA, Volume

CONTROL = b".zfs/snapshot"
OPEN = 8
"Snapshots beside the top one that are open at the same time."
_CONTROL_NUMBERS = {b".zfs": (1 << 48) - 1, CONTROL: (1 << 48) - 3}
"The inode numbers that the kernel gives them: ZFSCTL_INO_ROOT, ZFSCTL_INO_SNAPDIR."
_MADE_NUMBER = (1 << 48) - 16
"Folders that exist only because a dataset lies below them count down from this inode number."
PAGE = 256
"Entries that are listed with their attributes in one call."
Seen = tuple[Name, tuple[Znode, int] | None]
"An entry, and its attributes with the bytes that it takes; None: they have to be asked for."


@dataclass(frozen=True)
class LazySnapshot:
    """A snapshot that is opened by `open` when it is first looked into. `created`: seconds since 1970."""

    name: str
    created: int
    open: Callable[[], AbstractContextManager[OpenSnapshot]]


@dataclass(frozen=True)
class MountPlace:
    """A dataset in the mount: its path from the top, the snapshot shown there, and those below its .zfs/snapshot."""

    path: bytes
    top: LazySnapshot
    others: list[LazySnapshot] | None = None


def view_of(opened: OpenSnapshot) -> SnapshotView:
    if not opened.is_volume:
        filesystem = Filesystem(opened)
        filesystem.znode(filesystem.root)
        return FileView(filesystem, opened.state.bytes_of)
    volume = Volume(opened)
    name = opened.snapshot.dataset.name.text.rpartition("/")[2] + ".img"
    return ImageView(opened, DATA, volume.size, _bytes(name), int(opened.snapshot.doc["creation"]))


class _Map:
    """Maps paths to snapshots, and knows the folders on the way to them that no snapshot has."""

    def __init__(self, places: Sequence[MountPlace]) -> None:
        self.at: dict[bytes, tuple[int, LazySnapshot]] = {}
        "By path: the snapshot, and its place in the list, which goes above bit 48 of the inode numbers there."
        self.control: dict[bytes, tuple[int, list[bytes]]] = {}
        "Folders .zfs and .zfs/snapshot: their inode number, and the names in them."
        self.leads: dict[bytes, dict[bytes, int]] = {}
        "By folder: names that are child datasets or lead to one, and the inode number if the folder has to be made up."
        for place in places:
            self._add(place.path, place.top)
            path = place.path
            while path:
                path, _, name = path.rpartition(b"/")
                number = _MADE_NUMBER - len(self.leads)
                self.leads.setdefault(path, {}).setdefault(name, number)
        for place in places:
            if place.others is not None:
                self._control(place.path, place.others)

    def _add(self, path: bytes, lazy: LazySnapshot) -> None:
        self.at[path] = len(self.at), lazy

    def _control(self, path: bytes, others: list[LazySnapshot]) -> None:
        names = [_bytes(other.name) for other in others]
        for inner, number in _CONTROL_NUMBERS.items():
            self.control[_below(path, inner)] = number, names if inner == CONTROL else [b"snapshot"]
        for name, other in zip(names, others, strict=True):
            self._add(_below(path, CONTROL + b"/" + name), other)

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
            raise NoSuchFile(f"{printable_path(path)}: no such file or directory")
        return above, rest


class MountLayout:
    """Answers for every path of a mount. Use it as a context manager.

    `top` lies at the root; with `others`, each of them lies below .zfs/snapshot. The inode numbers in each snapshot are
    those of the source with the snapshot's place above bit 48. A FUSE mount has one device number for all snapshots, so
    without this `cp -a` would take the same file in two snapshots for hard links of one file.
    """

    def __init__(
        self, top: LazySnapshot, others: list[LazySnapshot] | None = None, below: Sequence[MountPlace] = ()
    ) -> None:
        self._map = _Map([MountPlace(b"", top, others), *below])
        self._stack = ExitStack()
        self._top = view_of(self._stack.enter_context(top.open()))
        self._created = top.created
        self._open: Cache[bytes, tuple[ExitStack, SnapshotView]] = Cache(OPEN, on_drop=lambda opened: opened[0].close())

    def __enter__(self) -> MountLayout:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()
        self._stack.close()

    def _route(self, path: bytes) -> tuple[SnapshotView, bytes, int]:
        """Find the snapshot that has a path, the path within it, and the bits to add to its inode numbers."""
        above, rest = self._map.holder(path)
        return self._snapshot(above), rest, self._map.at[above][0] << 48

    def _snapshot(self, path: bytes) -> SnapshotView:
        if not path:
            return self._top
        # Snapshots are opened when somebody looks into them, and the least used are closed again.
        found = self._open.get(path)
        if found is None:
            with ExitStack() as stack:
                opened = stack.enter_context(self._map.at[path][1].open())
                view = view_of(opened)
                found = self._open.put(path, (stack.pop_all(), view))
        return found[1]

    def node(self, path: bytes) -> tuple[Znode, int]:
        """Return the attributes of a path, and the bytes that it takes."""
        # .zfs and .zfs/snapshot: made up, read-only.
        if path in self._map.control:
            return synthetic(self._map.control[path][0], stat.S_IFDIR | 0o555, 2, self._created), 0
        if (number := self._made_up(path)) is not None:
            return synthetic(number, stat.S_IFDIR | 0o555, 2, self._created), 0
        # Listing .zfs/snapshot must not open every snapshot: until it is entered, a folder stands for it.
        if (closed := self._unopened(path)) is not None:
            return closed, 0
        view, rest, base = self._route(path)
        node = view.node(rest)
        # Two snapshots have the same object numbers; the place in the list makes them different inodes.
        number = node.number | base if rest else base
        return node._replace(number=number) if base else node, view.stored(node)

    def _unopened(self, path: bytes) -> Znode | None:
        """Attributes of a snapshot's folder that was not looked into yet: those of the newest root, with its own times.

        So `ls -l .zfs/snapshot` opens no snapshot.
        """
        folder = path.rpartition(b"/")[0]
        if folder not in self._map.control or path not in self._map.at or path in self._open:
            return None
        place, lazy = self._map.at[path]
        root = self._snapshot(folder.removesuffix(CONTROL).rstrip(b"/")).node(b"")
        made = synthetic(place << 48, stat.S_IFDIR | 0o555, 2, lazy.created)
        return made._replace(mode=root.mode, uid=root.uid, gid=root.gid)

    def _made_up(self, path: bytes) -> int | None:
        """The inode number of a folder that exists only because a dataset lies below it; None for all other paths."""
        if path in self._map.at or path not in self._map.leads:
            return None
        above, _, name = path.rpartition(b"/")
        try:
            view, rest, _ = self._route(path)
            # The parent's snapshot has a folder of this name, so nothing has to be made up.
            if view.node(rest).is_folder:
                return None
        except NoSuchFile:
            pass
        return self._map.leads[above][name]

    def names(self, path: bytes) -> list[Name]:
        stored, more, _, base = self._listed(path)
        return [*(_based(name, base) for name in stored), *more]

    def page(self, path: bytes, first: int) -> list[Seen]:
        """Return up to PAGE of names(), from index `first` on, each with what node() returns for it.

        None in place of that: the attributes have to be asked for one by one.
        """
        stored, more, view, base = self._listed(path)
        leads = self._map.leads.get(path, {})
        found: list[Seen] = []
        for name in stored[first : first + PAGE]:
            # Where a dataset is mounted, its own attributes are shown, not those of the folder below it.
            alone = view is None or name.name in leads
            found.append((_based(name, base), None) if alone or view is None else _seen(view, name, base))
        start = max(first - len(stored), 0)
        found += [(name, None) for name in more[start : start + PAGE - len(found)]]
        return found

    def _listed(self, path: bytes) -> tuple[list[Name], list[Name], SnapshotView | None, int]:
        """Names that the snapshot stores in a folder, names that the layout adds; the snapshot, and its inode bits."""
        # .zfs and .zfs/snapshot exist only here.
        if path in self._map.control:
            return [], list(self._control_names(path)), None, 0
        leads = self._map.leads.get(path, {})
        # So does a folder that only leads to a dataset further down.
        if self._made_up(path) is not None:
            return [], [_folder(name, number) for name, number in leads.items()], None, 0
        view, rest, base = self._route(path)
        # Everywhere else the snapshot says what is there; mounted children replace the folders of their names.
        stored = view.names(rest)
        if leads:
            stored = [_folder(each.name, each.number) if each.name in leads else each for each in stored]
        here = {each.name for each in stored} if leads else set()
        return stored, [_folder(name, number) for name, number in leads.items() if name not in here], view, base

    def _control_names(self, path: bytes) -> Iterator[Name]:
        for name in self._map.control[path][1]:
            inner = _below(path, name)
            number = self._map.control[inner][0] if inner in self._map.control else self._map.at[inner][0] << 48
            yield _folder(name, number)

    @property
    def has_xattrs(self) -> bool:
        """False: no file of the newest snapshot, nor of an older one, has extended attributes."""
        return self._top.has_xattrs or bool(self._map.leads)

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        if path in self._map.control or self._made_up(path) is not None:
            return {}
        view, rest, _ = self._route(path)
        return view.xattrs(rest)

    def read(self, path: bytes, offset: int, size: int) -> bytes:
        if path in self._map.control or self._made_up(path) is not None:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        view, rest, _ = self._route(path)
        return view.read(rest, offset, size)


def _seen(view: SnapshotView, name: Name, base: int) -> Seen:
    entry = _based(name, base)
    try:
        node = view.look(name)
    except ZkeepError:
        return entry, None
    return entry, (node._replace(number=entry.number) if base else node, view.stored(node))


def _based(name: Name, base: int) -> Name:
    return name._replace(number=name.number | base) if base else name


def _folder(name: bytes, number: int) -> Name:
    return Name(name, number, stat.S_IFDIR >> 12)


def _below(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
