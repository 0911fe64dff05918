"""Read access to a snapshot by path, in any order, as a mount needs it.

Programs ask for the same things again, and read on where they read before. So names, attributes and content are cached.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import NamedTuple, Protocol

from zkeep.cache import Cache
from zkeep.format.znode import Znode
from zkeep.names import printable_path
from zkeep.tree.filesystem import Filesystem, Name, NoSuchFile, elsewhere
from zkeep.tree.objects import Objects
from zkeep.tree.windows import NARROW, Content

PATHS, NODES, ENTRIES, PLACES = 16_384, 16_384, 1 << 20, 1 << 20
"How many paths, files, entries of listed folders, and places of folders are cached."
ATTRIBUTES = 64 << 20
"Bytes of extended attributes in the cache."
SMALL = 4096
"A folder with fewer entries is read as a whole when one of them is looked up."


class SnapshotView(Protocol):
    """One snapshot in a mount. Paths are relative to its root, without slashes at either end.

    Raises (all methods):
        NoSuchFile: there is nothing of this path.
        ZkeepError: what is there is damaged, or not authentic.
    """

    def node(self, path: bytes) -> Znode: ...

    def names(self, path: bytes) -> list[Name]: ...

    def look(self, name: Name) -> Znode:
        """Return the attributes of an entry of a folder."""
        ...

    def xattrs(self, path: bytes) -> dict[bytes, bytes]: ...

    def read(self, path: bytes, offset: int, size: int) -> bytes: ...

    @property
    def has_xattrs(self) -> bool:
        """False: no file has extended attributes."""
        ...

    def stored(self, node: Znode) -> int:
        """Bytes that a large file takes without its holes; the size of a small one, where counting is not worth it."""
        ...


class CachedFolder(NamedTuple):
    """The entries of a folder, in the order in which the pool has them: programs look at each after a listing."""

    names: list[Name]
    by_name: dict[bytes, Name]


class FileView:
    """The files of a filesystem."""

    def __init__(self, filesystem: Filesystem, stored: Callable[[int], int | None]) -> None:
        self._filesystem = filesystem
        self._stored = stored
        self._content = Content(filesystem.objects)
        self._paths: Cache[bytes, int] = Cache(PATHS)
        self._nodes: Cache[int, Znode] = Cache(NODES)
        self._folders: Cache[int, CachedFolder] = Cache(ENTRIES, lambda folder: len(folder.names) + 1)
        self._xattrs: Cache[int, dict[bytes, bytes]] = Cache(ATTRIBUTES, _weight)
        self._places: Cache[int, int] = Cache(PLACES)

    def node(self, path: bytes) -> Znode:
        return self._node(self._number(path))

    def _node(self, number: int) -> Znode:
        found = self._nodes.get(number)
        return found or self._nodes.put(number, self._filesystem.znode(number))

    def _number(self, path: bytes) -> int:
        """Find the object number of a path. Links are not followed: the kernel does that itself."""
        # Go up to the longest part of the path that is cached, then down again name by name.
        known, rest = path, []
        while known and self._paths.get(known) is None:
            known, _, name = known.rpartition(b"/")
            rest.append(name)
        number = (self._paths.get(known) if known else None) or self._filesystem.root
        for name in reversed(rest):
            found = self._find(number, name)
            if found is None:
                raise NoSuchFile(f"{printable_path(path)}: no such file or directory")
            self._check_place(number, found)
            number = found.number
            known = known + b"/" + name if known else name
            self._paths.put(known, number)
        return number

    def _check_place(self, above: int, name: Name) -> None:
        """Check that a folder lies where its path says and nowhere else: so a walk through a mount comes to an end.

        Raises:
            BadTree: it lies in another folder, or was found by another name before.
        """
        if not self._node(name.number).is_folder:
            return
        self._filesystem.check_inside(above, name)
        place = hash(name.name)
        if (self._places.get(name.number) or self._places.put(name.number, place)) != place:
            raise elsewhere(above, name)

    def _find(self, folder: int, name: bytes) -> Name | None:
        # A small folder is listed once, for the names to come; in a large one a single name is looked up.
        node = self._node(folder)
        if not node.is_folder:
            return None
        listed = self._folders.get(folder)
        if listed is None and node.size < SMALL:
            listed = self._listed(folder)
        found = listed.by_name.get(name) if listed is not None else None
        return found or self._filesystem.find(folder, name)

    def _listed(self, folder: int) -> CachedFolder:
        found = self._folders.get(folder)
        if found is None:
            names = sorted(self._filesystem.names(folder), key=lambda name: name.number)
            found = self._folders.put(folder, CachedFolder(names, {name.name: name for name in names}))
        return found

    def names(self, path: bytes) -> list[Name]:
        return self._listed(self._number(path)).names

    def look(self, name: Name) -> Znode:
        """The attributes for a listing. They are not cached here: the kernel caches what a listing returns."""
        return self._nodes.get(name.number) or self._filesystem.znode(name.number)

    @property
    def has_xattrs(self) -> bool:
        return self._filesystem.has_xattrs

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        node = self.node(path)
        if not node.packed_xattrs and not node.xattr_folder:
            return {}
        found = self._xattrs.get(node.number)
        return found if found is not None else self._xattrs.put(node.number, self._filesystem.xattrs(node))

    def read(self, path: bytes, offset: int, size: int) -> bytes:
        node = self.node(path)
        return self._content.read(node.number, node.size, offset, size)

    def stored(self, node: Znode) -> int:
        found = self._stored(node.number) if node.is_file and node.size > NARROW else None
        return node.size if found is None else found


def _weight(xattrs: dict[bytes, bytes]) -> int:
    return sum(len(name) + len(value) + 100 for name, value in xattrs.items())


class ImageView:
    """A folder with one file in it: the disk image of a volume."""

    def __init__(self, objects: Objects, data: int, size: int, name: bytes, created: int) -> None:
        """`data`: the number of its object; `created`: seconds since 1970."""
        self.has_xattrs = False
        self._content = Content(objects)
        self._name = Name(name, data, stat.S_IFREG >> 12)
        self._file = synthetic(data, stat.S_IFREG | 0o400, size, created)
        self._folder = synthetic(data + 1, stat.S_IFDIR | 0o500, 1, created)

    def node(self, path: bytes) -> Znode:
        if path in (b"", self._name.name):
            return self._file if path else self._folder
        raise NoSuchFile(f"{printable_path(path)}: no such file or directory")

    def names(self, path: bytes) -> list[Name]:
        return [] if path else [self._name]

    def look(self, name: Name) -> Znode:
        return self._file

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        return {}

    def read(self, path: bytes, offset: int, size: int) -> bytes:
        return self._content.read(self._file.number, self._file.size, offset, size)

    def stored(self, node: Znode) -> int:
        return node.size


def synthetic(number: int, mode: int, size: int, created: int) -> Znode:
    """Make up a file that no snapshot holds: root owns it, and all its times are `created`, in seconds since 1970."""
    at = created * 1_000_000_000
    links = 2 if stat.S_ISDIR(mode) else 1
    return Znode(number, mode, 0, 0, size, links, at, at, at, at, 0, 0, 0, 0, 0, 0)
