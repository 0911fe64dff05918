"""A filesystem as paths: folders, files, links, and their attributes. Names are bytes.

A snapshot may be authentic and still hostile: made by a sender who has the key. Each walk ends, and takes time and
memory in proportion to what is stored: a folder lies in one place, a file has no more names than it has links, paths
and extended attributes are bounded.

Source: OpenZFS module/zfs/zfs_dir.c, module/os/linux/zfs/zfs_vfsops.c zfsvfs_init(), zfs_znode.h ZFS_DIRENT_*.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from operator import attrgetter
from typing import NamedTuple

from zkeep.cache import Cache
from zkeep.errors import Damaged, NotAuthentic, Refused, ZkeepError
from zkeep.format import sa
from zkeep.format.dnode import Dnode
from zkeep.format.folding import Naming, folding
from zkeep.format.objtypes import ObjectType
from zkeep.format.records import ByteOrder
from zkeep.format.zap import Zap
from zkeep.format.zap_layout import BadZap
from zkeep.format.znode import COLUMNS, Znode, shown_xattr, unpack_xattrs, znode_of, znode_with
from zkeep.names import printable_path
from zkeep.tree.objects import Content, Objects

MASTER = 1
OBJECT_BITS = (1 << 48) - 1
MAX_LINKS = 40
MAX_TARGET = 4096
"Bytes of a symbolic link's target: no system makes longer ones."
MAX_PATH = 1 << 14
"Bytes of the longest path that is walked: four times what a system call takes."
MAX_SIZE = 1 << 63
MAX_SPILL = 128 << 10
"Bytes of attributes beside a dnode (SPA_OLD_MAXBLOCKSIZE)."
MAX_XATTR = 16 << 20
MAX_XATTRS = 64 << 20
"Bytes of all extended attributes of a file."
MAX_XATTR_HOLES = 1 << 20
"Bytes of holes among them, which take no room in the pool."
BLOCKS = 32 << 20
"Bytes of ZAP blocks that are cached."
ENTRIES = 1 << 18
"Entries of folders that are cached, by name and by number."
PATHS = 16 << 20
"Bytes of paths that are cached."


class BadTree(Refused):
    """The objects are authentic, but not a filesystem that OpenZFS would have written."""


class NoSuchFile(Refused):
    """There is nothing at this path."""


Failed = Callable[[bytes, ZkeepError], object]
"Called with a path that cannot be read, and why."


class Name(NamedTuple):
    """An entry of a folder: `kind` as in d_type, 0 if the folder does not say."""

    name: bytes
    number: int
    kind: int


@dataclass(frozen=True, slots=True)
class Extent:
    """A part of a file that is not a hole."""

    offset: int
    content: Content


class Filesystem:
    """Read-only view of a snapshot's files.

    Raises (all methods):
        BadTree: what is stored makes no sense.
    """

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._blocks: Cache[tuple[int, int], bytes] = Cache(BLOCKS, len)
        self._equal: Cache[int, dict[bytes, Name]] = Cache(ENTRIES, len)
        self._named: Cache[int, dict[int, bytes]] = Cache(ENTRIES, len)
        self._paths: Cache[int, bytes] = Cache(PATHS, len)

    # The master node, and the registry of system attributes

    @cached_property
    def master(self) -> dict[str, int]:
        """ROOT, VERSION, SA_ATTRS, DELETE_QUEUE, normalization, casesensitivity, utf8only, ..."""
        entries = self._entries(MASTER)
        return {name.decode("latin-1"): value for name, value in entries.items() if value is not None}

    @cached_property
    def naming(self) -> Naming:
        """Which names there can be, and which of them are one."""
        return Naming.of(self.master)

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
        """The dataset's attributes and layouts; empty for filesystems that have no system attributes."""
        number = self.master.get("SA_ATTRS")
        if not number:
            return sa.Schema([], [], COLUMNS)
        master = self._entries(number)
        registry, layouts = master.get(b"REGISTRY"), master.get(b"LAYOUTS")
        try:
            # SA_ATTRS names two ZAPs: the registry (attribute -> number, size) and the layouts (number ->
            # attributes).
            known, layered = (self.zap(number) if number else () for number in (registry, layouts))
            return sa.Schema(known, layered, COLUMNS)
        except (BadZap, sa.BadAttributes) as error:
            raise BadTree(f"system attributes: {error}") from None

    @property
    def has_xattrs(self) -> bool:
        """Whether any file may have extended attributes: some layout in this snapshot has a place for them.

        Layouts are added with the first file that needs them, and never taken away.
        """
        return not self.master.get("SA_ATTRS") or bool(self._schema.laid_out & {"ZPL_DXATTR", "ZPL_XATTR"})

    def zap(self, number: int) -> Zap:
        """The ZAP in an object. Raises BadZap if it is none."""
        return Zap(partial(self._block, number), self.objects.dnode(number).blksz)

    def _block(self, number: int, block: int) -> bytes:
        found = self._blocks.get((number, block))
        return found or self._blocks.put((number, block), self.objects.read_block(number, block))

    # Files

    def znode(self, number: int) -> Znode:
        """The attributes of an object that is a file, a folder, a link or the like."""
        # Most files have all attributes in the bonus buffer: then a dnode need not be made.
        bonus = self.objects.bonus(number)
        try:
            if bonus.type == ObjectType.SA and not bonus.has_spill:
                node = znode_with(number, *self._schema.decode_numbers(bonus.content))
            else:
                node = znode_of(number, *self._attributes(self.objects.dnode(number)))
        except sa.BadAttributes as error:
            raise BadTree(f"object {number}: {error}") from None
        if node.is_link and node.target is None:
            # The target of a link from before ZPL version 5, too long for the znode, lies in the first block.
            if node.size > MAX_TARGET:
                raise BadTree(f"object {node.number}: a link of {node.size} bytes")
            node = node._replace(target=self.read(node, 0, node.size))
        return node

    def znode_if_spill_is_lost(self, number: int) -> tuple[Znode, ZkeepError | None]:
        """The attributes of an object; if its spill block cannot be read, those without it, and the error.

        A spill block has extended attributes and ACLs; the content of a file can be read without them.
        """
        try:
            return self.znode(number), None
        except ZkeepError as error:
            dnode = self.objects.dnode(number)
            if not dnode.has_spill or dnode.bonustype != ObjectType.SA:
                raise
            try:
                # Try with the bonus buffer alone: it has everything but what did not fit.
                node = znode_of(number, *self._schema.decode(dnode.bonus))
            except sa.BadAttributes:
                raise error from None
            if not node.mode or (node.is_link and node.target is None):
                raise
            return node, error

    def _attributes(self, dnode: Dnode) -> tuple[sa.Attributes, ByteOrder]:
        if dnode.bonustype == ObjectType.ZNODE:
            return sa.decode_legacy(dnode.bonus, dnode.byteorder), dnode.byteorder
        if dnode.bonustype != ObjectType.SA:
            raise BadTree(f"object {dnode.number} is no file")
        # What does not fit into the bonus buffer is in a spill block, with a layout of its own.
        attributes, order = self._schema.decode(dnode.bonus)
        if dnode.has_spill:
            spill = self.objects.spill_of(dnode.number)
            if spill is not None and len(spill) > MAX_SPILL:
                raise BadTree(f"object {dnode.number}: {len(spill)} bytes of attributes")
            if spill is not None:
                attributes |= self._schema.decode(spill)[0]
        return attributes, order

    def names(self, folder: int) -> list[Name]:
        """The entries of a folder, in no order; without `.` and `..`."""
        try:
            # An entry's value: the object's number in the low 48 bits, the file's type (d_type) in the top four.
            found = [Name(name, value & OBJECT_BITS, value >> 60) for name, value in self.zap(folder).numbers()]
        except BadZap as error:
            raise BadTree(f"folder {folder}: {error}") from None
        self._check_names(folder, found)
        return found

    def _check_names(self, folder: int, found: list[Name]) -> None:
        """Check that each name is legal and occurs once, and that no file has more names in here than links.

        Without the last, a few bytes could name one large file very often.
        """
        names = {name.name for name in found}
        # A name with a slash, or `..`, would lead out of the folder that it is extracted into.
        odd = next((name for name in names if name in (b"", b".", b"..") or b"/" in name), None)
        if odd is not None:
            raise BadTree(f"folder {folder}: there is an entry {odd[:100]!r}")
        if len(names) < len(found):
            raise BadTree(f"folder {folder}: two entries have one name")
        if len({name.number for name in found}) == len(found):
            return
        counts = Counter(name.number for name in found)
        self.objects.expect(sorted(number for number, times in counts.items() if times > 1))
        repeated = {name.number: name for name in found if counts[name.number] > 1}
        for number, name in repeated.items():
            try:
                node = self.znode(number)
            except ZkeepError:  # reported where it is read: it costs its own names, not the others
                continue
            if node.is_folder:
                raise elsewhere(folder, name)
            if node.links < counts[number]:
                raise BadTree(f"folder {folder}: object {number} has more names than links")

    def find(self, folder: int, name: bytes) -> Name | None:
        """The entry of exactly this name, else one that is equal by the dataset's normalization or casesensitivity."""
        try:
            # Most datasets compare bytes; where names are normalized the hash of the typed name may be another.
            zap = self.zap(folder)
            if zap.normalization:
                return self._find_equal(folder, zap.normalization, name)
            entry = zap.get(name)
            return Name(entry.name, entry.number & OBJECT_BITS, entry.number >> 60) if entry else None
        except BadZap as error:
            raise BadTree(f"folder {folder}: {error}") from None

    def _find_equal(self, folder: int, normalization: int, name: bytes) -> Name | None:
        """Find an equal name. The first search in a folder normalizes all its names, for the searches to come."""
        fold = folding(normalization, self.master.get("casesensitivity", 0)) or (lambda name: name)
        known = self._equal.get(folder)
        if known is None:
            names = self.names(folder)
            known = {fold(each.name): each for each in names} | {each.name: each for each in names}
            self._equal.put(folder, known)
        return known.get(name) or known.get(fold(name))

    def lookup(self, path: bytes, *, follow: bool = False) -> Znode:
        """The object of a path from the root; symbolic links on the way are followed inside the filesystem.

        Raises:
            NoSuchFile: there is none.
        """
        return self._walk(self.root, path, follow, [MAX_LINKS], path)

    def _walk(self, start: int, path: bytes, follow: bool, links: list[int], whole: bytes) -> Znode:
        # `trail`: the folders walked through, for `..`; `parts`: names still to be walked, the next one last.
        trail = [start]
        parts = _parts(path)[::-1]
        node = self.znode(start)
        while parts:
            part = parts.pop()
            if part == b"..":
                trail = trail[:-1] or [self.root]
                node = self.znode(trail[-1])
                continue
            found = self.find(trail[-1], part) if node.is_folder else None
            if found is None:
                raise NoSuchFile(f"{printable_path(whole)}: no such file or directory")
            node = self.znode(found.number)
            if node.is_link and (parts or follow):
                links[0] -= 1
                if links[0] < 0:
                    raise NoSuchFile(f"{printable_path(whole)}: too many symbolic links")
                target = node.target or b""
                if len(target) > MAX_TARGET:
                    raise NoSuchFile(f"{printable_path(whole)}: a symbolic link leads to a path of {len(target)} bytes")
                # A link: go on with its target's names before the others, from the root or from the link's folder.
                trail = [self.root] if target.startswith(b"/") else trail
                parts += _parts(target)[::-1]
                node = self.znode(trail[-1])
            else:
                trail.append(found.number)
        return node

    def path_of(self, number: int) -> bytes:
        """A path that leads to an object; BadTree if it is not found."""
        # Walk up from parent to parent, to the root or to a folder whose path is cached, noting the names.
        trail: dict[int, bytes] = {}
        at, path = number, b""
        while at != self.root:
            path = self._paths.get(at) or b""
            if path:
                break
            parent = self.znode(at).parent
            name = self._names_by_number(parent).get(at)
            if name is None or at in trail:
                raise BadTree(f"object {number} has no path")
            trail[at], at = name, parent
        # Then put the names together from the top down, and cache the path of each folder on the way.
        for at, name in reversed(trail.items()):
            path = self._paths.put(at, self.below(path, name))
        return path

    def _names_by_number(self, folder: int) -> dict[int, bytes]:
        found = self._named.get(folder)
        if found is None:
            found = self._named.put(folder, {each.number: each.name for each in reversed(self.names(folder))})
        return found

    def walk(
        self, folder: int, path: bytes = b"", *, as_stored: bool = False, failed: Failed | None = None
    ) -> Iterator[tuple[bytes, Name]]:
        """Everything below a folder, each folder before its entries; sorted by name, or in the order of object numbers.

        `failed` is called with a folder that cannot be read, and the walk goes on; without it the error is raised.
        """
        # A stack instead of recursion: folders may lie deeper than Python calls can.
        stack = [(folder, len(path), iter(self.ordered(folder, as_stored=as_stored)))]
        while stack:
            number, length, items = stack[-1]
            path = path[:length]
            name = next(items, None)
            if name is None:
                stack.pop()
                continue
            inner = self.below(path, name.name)
            yield inner, name
            try:
                if not self.is_folder(name):
                    continue
                # Each folder lies in one other: else a walk down might never end.
                self.check_inside(number, name)
                names = self.ordered(name.number, as_stored=as_stored)
            except (Damaged, NotAuthentic, Refused) as error:
                if failed is None:
                    raise
                failed(inner, error)
                continue
            path = inner
            stack.append((name.number, len(inner), iter(names)))

    def below(self, path: bytes, name: bytes) -> bytes:
        """The path of an entry of a folder; BadTree if it is longer than any that is shown."""
        inner = path + b"/" + name if path else name
        if len(inner) > MAX_PATH:
            raise BadTree(f"{printable_path(path[:100])}...: folders lie deeper than a path of {MAX_PATH} bytes tells")
        return inner

    def check_inside(self, folder: int, name: Name) -> None:
        """Check that a folder's parent is `folder`: then a walk through all folders ends.

        Raises:
            BadTree: its parent is another one.
        """
        if name.number == self.root or self.znode(name.number).parent != folder:
            raise elsewhere(folder, name)

    def ordered(self, folder: int, *, as_stored: bool = False) -> list[Name]:
        """The entries of a folder, sorted by name, or by object number: that is the order in the pool."""
        return sorted(self.names(folder), key=attrgetter("number" if as_stored else "name"))

    def is_folder(self, name: Name) -> bool:
        if name.kind:
            return name.kind == stat.S_IFDIR >> 12
        return self.znode(name.number).is_folder

    # Content

    def read(self, node: Znode, start: int, size: int) -> bytes:
        """Bytes of a file, holes as zeros; fewer where it ends."""
        self.check_size(node)
        end = min(start + size, node.size)
        # Zeros where no block comes: those are holes.
        out = bytearray(max(end - start, 0))
        for offset, content in self.objects.data(node.number, start, end):
            low, high = max(offset, start), min(offset + len(content), end)
            out[low - start : high - start] = memoryview(content)[low - offset : high - offset]
        return bytes(out)

    def extents(self, node: Znode) -> Iterator[Extent]:
        """A file's data without holes, cut off at its size."""
        self.check_size(node)
        for offset, content in self.objects.data(node.number, 0, node.size):
            if offset + len(content) > node.size:
                yield Extent(offset, memoryview(content)[: node.size - offset])
            else:
                yield Extent(offset, content)

    def check_size(self, node: Znode) -> None:
        """Raises BadTree: a file is larger than any system can tell."""
        if node.size >= MAX_SIZE:
            raise BadTree(f"object {node.number}: a file of {node.size} bytes")

    def xattrs(self, node: Znode) -> dict[bytes, bytes]:
        """Extended attributes as Linux shows them: those among the system attributes, and those that are files."""
        try:
            stored = unpack_xattrs(node.packed_xattrs)
        except sa.BadAttributes as error:
            raise BadTree(f"object {node.number}: {error}") from None
        if node.xattr_folder:
            stored = {**dict(self._xattr_files(node)), **stored}
        named = ((shown_xattr(name), value) for name, value in stored.items())
        return {name: value for name, value in named if name is not None}

    def _xattr_files(self, node: Znode) -> Iterator[tuple[bytes, bytes]]:
        """The extended attributes that are files, in a folder that must belong to this file alone."""
        if self.znode(node.xattr_folder).parent != node.number:
            raise BadTree(f"object {node.number}: its extended attributes are another's")
        size = zeros = 0
        for entry in self.names(node.xattr_folder):
            each = self.znode(entry.number)
            # Bounded in sum, for many names can lead to one large file, and holes take no room in the pool.
            size += each.size
            if each.size > MAX_XATTR or size > MAX_XATTRS:
                raise BadTree(f"object {node.number}: {max(each.size, size)} bytes of extended attributes")
            value = bytearray(each.size)
            zeros += each.size
            for extent in self.extents(each):
                value[extent.offset : extent.offset + len(extent.content)] = extent.content
                zeros -= len(extent.content)
            if zeros > MAX_XATTR_HOLES:
                raise BadTree(f"object {node.number}: extended attributes of {zeros} bytes that are not stored")
            yield entry.name, bytes(value)


def elsewhere(folder: int, name: Name) -> BadTree:
    return BadTree(f"folder {folder}: {printable_path(name.name)} is a folder that lies elsewhere, too")


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")]
