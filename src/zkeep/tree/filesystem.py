"""A filesystem as paths: folders, files, links, and what is known of each. Names are bytes.

Source: OpenZFS module/zfs/zfs_dir.c, module/os/linux/zfs/zfs_vfsops.c zfsvfs_init(), zfs_znode.h ZFS_DIRENT_*.
"""

from __future__ import annotations

import stat
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from operator import attrgetter
from typing import NamedTuple

from zkeep.errors import Refused
from zkeep.format import sa
from zkeep.format.dnode import Dnode
from zkeep.format.objtypes import ObjectType
from zkeep.format.records import ByteOrder
from zkeep.format.zap import BadZap, Zap
from zkeep.format.znode import COLUMNS, Znode, shown_xattr, unpack_xattrs, znode_of, znode_with
from zkeep.tree.folding import folding
from zkeep.tree.objects import Content, Objects

MASTER = 1
OBJECT_BITS = (1 << 48) - 1
MAX_LINKS = 40
MAX_TARGET = 1 << 16
MAX_XATTR = 16 << 20
BLOCKS = 256
"ZAP blocks that are held."


class BadTree(Refused):
    """Authentic, but no filesystem that OpenZFS would have written."""


class NoSuchFile(Refused):
    """There is nothing of this path."""


class Name(NamedTuple):
    """An entry of a folder: `kind` as in d_type, 0 if the folder does not say."""

    name: bytes
    number: int
    kind: int


@dataclass(frozen=True, slots=True)
class Extent:
    """A stretch of a file that is no hole."""

    offset: int
    content: Content


class Filesystem:
    """Read-only view of a snapshot's files.

    Raises (all methods):
        BadTree: what is stored makes no sense.
    """

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._blocks: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    # What the dataset says of itself

    @cached_property
    def master(self) -> dict[str, int]:
        """ROOT, VERSION, SA_ATTRS, DELETE_QUEUE, normalization, casesensitivity, utf8only, ..."""
        entries = self._entries(MASTER)
        return {name.decode("latin-1"): value for name, value in entries.items() if value is not None}

    def _entries(self, number: int) -> dict[bytes, int | None]:
        try:
            return {e.name: e.number if e.width == 8 and len(e.data) == 8 else None for e in self.zap(number)}
        except BadZap as error:
            raise BadTree(f"object {number}: {error}") from None

    @cached_property
    def root(self) -> int:
        if "ROOT" not in self.master:
            raise BadTree("the filesystem has no root")
        return self.master["ROOT"]

    @cached_property
    def _schema(self) -> sa.Schema:
        """An empty one for filesystems that have no system attributes."""
        number = self.master.get("SA_ATTRS")
        if not number:
            return sa.Schema([], [], COLUMNS)
        master = self._entries(number)
        registry, layouts = master.get(b"REGISTRY"), master.get(b"LAYOUTS")
        try:
            known, layered = (self.zap(number) if number else () for number in (registry, layouts))
            return sa.Schema(known, layered, COLUMNS)
        except (BadZap, sa.BadAttributes) as error:
            raise BadTree(f"system attributes: {error}") from None

    @property
    def has_xattrs(self) -> bool:
        """False: no layout has a place for extended attributes, in this snapshot or in one before it.

        Layouts are added with the first file that needs them, and never taken away.
        """
        return not self.master.get("SA_ATTRS") or bool(self._schema.laid_out & {"ZPL_DXATTR", "ZPL_XATTR"})

    def zap(self, number: int) -> Zap:
        """Raises BadZap if it is none."""
        return Zap(partial(self._block, number), self.objects.dnode(number).blksz)

    def _block(self, number: int, block: int) -> bytes:
        found = self._blocks.get((number, block))
        if found is None:
            found = self.objects.read_block(number, block)
            self._blocks[number, block] = found
            if len(self._blocks) > BLOCKS:
                self._blocks.popitem(last=False)
        return found

    # Files

    def znode(self, number: int) -> Znode:
        """What is known of an object that is a file, a folder or the like."""
        bonus = self.objects.bonus(number)
        try:
            if bonus.type == ObjectType.SA and not bonus.has_spill:
                node = znode_with(number, *self._schema.decode_numbers(bonus.content))
            else:
                node = znode_of(number, *self._attributes(self.objects.dnode(number)))
        except sa.BadAttributes as error:
            raise BadTree(f"object {number}: {error}") from None
        if node.is_link and node.target is None:
            node = node._replace(target=self._long_target(node))
        return node

    def _attributes(self, dnode: Dnode) -> tuple[sa.Attributes, ByteOrder]:
        if dnode.bonustype == ObjectType.ZNODE:
            return sa.decode_legacy(dnode.bonus), dnode.byteorder
        if dnode.bonustype != ObjectType.SA:
            raise BadTree(f"object {dnode.number} is no file")
        attributes, order = self._schema.decode(dnode.bonus)
        if dnode.has_spill:
            spill = self.objects.spill_of(dnode.number)
            if spill is not None:
                attributes |= self._schema.decode(spill)[0]
        return attributes, order

    def _long_target(self, node: Znode) -> bytes:
        """Of filesystems before ZPL version 5: a target too long for the znode lies in the file's first block."""
        if node.size > MAX_TARGET:
            raise BadTree(f"object {node.number}: a link of {node.size} bytes")
        return self.read(node, 0, node.size)

    def names(self, folder: int) -> Iterator[Name]:
        """The entries of a folder, in no order; without `.` and `..`."""
        try:
            for name, value in self.zap(folder).numbers():
                if name in (b".", b"..") or b"/" in name or not name:
                    raise BadTree(f"folder {folder}: there is an entry {name!r}")
                yield Name(name, value & OBJECT_BITS, value >> 60)
        except BadZap as error:
            raise BadTree(f"folder {folder}: {error}") from None

    def find(self, folder: int, name: bytes) -> Name | None:
        """The entry of this name: exactly this, else one that the dataset's normalization or case makes equal."""
        try:
            zap = self.zap(folder)
            entry = zap.get(name)
            fold = folding(zap.normalization, self.master.get("casesensitivity", 0)) if entry is None else None
            if fold is not None:
                wanted = fold(name)
                entry = next((entry for entry in zap if fold(entry.name) == wanted), None)
            return Name(entry.name, entry.number & OBJECT_BITS, entry.number >> 60) if entry else None
        except BadZap as error:
            raise BadTree(f"folder {folder}: {error}") from None

    def lookup(self, path: bytes, *, follow: bool = False) -> Znode:
        """The object of a path from the root; symbolic links on the way are followed inside the filesystem.

        Raises:
            NoSuchFile: there is none.
        """
        return self._walk(self.root, path, follow, [MAX_LINKS], path)

    def _walk(self, start: int, path: bytes, follow: bool, links: list[int], whole: bytes) -> Znode:
        trail = [start]
        parts = [part for part in path.split(b"/") if part not in (b"", b".")]
        node = self.znode(start)
        while parts:
            part = parts.pop(0)
            if part == b"..":
                trail = trail[:-1] or [self.root]
                node = self.znode(trail[-1])
                continue
            found = self.find(trail[-1], part) if node.is_folder else None
            if found is None:
                raise NoSuchFile(f"{shown(whole)}: no such file or directory")
            node = self.znode(found.number)
            if node.is_link and (parts or follow):
                links[0] -= 1
                if links[0] < 0:
                    raise NoSuchFile(f"{shown(whole)}: too many symbolic links")
                target = node.target or b""
                trail = [self.root] if target.startswith(b"/") else trail
                parts = [p for p in target.split(b"/") if p not in (b"", b".")] + parts
                node = self.znode(trail[-1])
            else:
                trail.append(found.number)
        return node

    def path_of(self, number: int) -> bytes:
        """A path that leads to an object; BadTree if it is not found. For telling of trouble, not for speed."""
        parts: list[bytes] = []
        seen = set()
        at = number
        while at != self.root:
            seen.add(at)
            parent = self.znode(at).parent
            name = next((n.name for n in self.names(parent) if n.number == at), None)
            if name is None or parent in seen:
                raise BadTree(f"object {number} has no path")
            parts.append(name)
            at = parent
        return b"/".join(reversed(parts))

    def walk(self, folder: int, path: bytes = b"", *, as_stored: bool = False) -> Iterator[tuple[bytes, Name]]:
        """Everything below a folder, folders before what they hold; names sorted, or as they lie in the pool."""
        stack = [(folder, iter(self.sorted_names(folder, path, as_stored=as_stored)), set[int]())]
        while stack:
            number, items, seen = stack[-1]
            item = next(items, None)
            if item is None:
                stack.pop()
                continue
            yield item
            if self.is_folder(item[1]):
                self.check_inside(number, item[1], seen)
                inner = self.sorted_names(item[1].number, item[0], as_stored=as_stored)
                stack.append((item[1].number, iter(inner), set()))

    def check_inside(self, folder: int, name: Name, seen: set[int]) -> None:
        """That a folder lies in another one, and there once: so whoever goes through all of them comes to an end.

        `seen`: those in the same folder that were looked at before.

        Raises:
            BadTree: it is another one's, or has two names.
        """
        if name.number == self.root or name.number in seen or self.znode(name.number).parent != folder:
            raise BadTree(f"folder {folder}: {shown(name.name)} is a folder that lies elsewhere, too")
        seen.add(name.number)

    def sorted_names(self, folder: int, path: bytes = b"", *, as_stored: bool = False) -> list[tuple[bytes, Name]]:
        """Paths and entries of a folder, by name, or in the order in which what they name lies in the pool."""
        prefix = path + b"/" if path else b""
        names = sorted(self.names(folder), key=attrgetter("number" if as_stored else "name"))
        return [(prefix + n.name, n) for n in names]

    def is_folder(self, name: Name) -> bool:
        if name.kind:
            return name.kind == stat.S_IFDIR >> 12
        return self.znode(name.number).is_folder

    # Content

    def read(self, node: Znode, start: int, size: int) -> bytes:
        """Bytes of a file, holes as zeros; fewer where it ends."""
        end = min(start + size, node.size)
        out = bytearray(max(end - start, 0))
        for offset, content in self.objects.data(node.number, start, end):
            low, high = max(offset, start), min(offset + len(content), end)
            out[low - start : high - start] = memoryview(content)[low - offset : high - offset]
        return bytes(out)

    def extents(self, node: Znode) -> Iterator[Extent]:
        """What a file holds, without its holes, cut off at its size."""
        for offset, content in self.objects.data(node.number, 0, node.size):
            if offset + len(content) > node.size:
                yield Extent(offset, memoryview(content)[: node.size - offset])
            else:
                yield Extent(offset, content)

    def xattrs(self, node: Znode) -> dict[bytes, bytes]:
        """Extended attributes as Linux shows them: those in the inode, and those that are files of their own."""
        try:
            stored = unpack_xattrs(node.packed_xattrs)
        except sa.BadAttributes as error:
            raise BadTree(f"object {node.number}: {error}") from None
        if node.xattr_folder:
            for entry in self.names(node.xattr_folder):
                each = self.znode(entry.number)
                if each.size > MAX_XATTR:
                    raise BadTree(f"object {each.number}: an extended attribute of {each.size} bytes")
                stored.setdefault(entry.name, self.read(each, 0, each.size))
        named = ((shown_xattr(name), value) for name, value in stored.items())
        return {name: value for name, value in named if name is not None}


def shown(path: bytes) -> str:
    """A path for a person: printable, whatever it holds."""
    text = path.decode("utf-8", "surrogateescape")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text) or "/"
