"""Turn a scanned folder into the objects of a snapshot, in ascending order of their numbers."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from zkeep.capture.attributes import Attributes, fat_blocks, new_directory
from zkeep.capture.contents import (
    ATTEMPTS,
    SMALL,
    Changed,
    SourceError,
    birth_of,
    block_size,
    blocks_of,
    fields_of,
    flags_of,
    open_file,
    read_blocks,
    reading,
    same,
)
from zkeep.capture.previous import EXTRA, ROW, Previous
from zkeep.capture.report import Watch, file_changes
from zkeep.capture.scan import FOLDER, LINK, Folders, Node, Problem, Scan
from zkeep.format.objtypes import ObjectType
from zkeep.format.zap_writer import BLOCK, FatZap
from zkeep.format.znode_writer import FileFields, encode_file
from zkeep.snapshot.changes import Block, ObjectChange
from zkeep.snapshot.new_filesystem import FIRST_FREE, ROOT, fixed_objects
from zkeep.snapshot.open import OpenSnapshot
from zkeep.snapshot.verified import VerifiedObject
from zkeep.snapshot.writer import SnapshotWriter
from zkeep.tree.filesystem import Filesystem

FIXED = frozenset(range(1, FIRST_FREE)) - {ROOT}


@dataclass
class Result:
    """What was written: rows for the cache, and what could not be stored as it is."""

    rows: list[tuple[int, ...]] = field(default_factory=list)
    extras: list[tuple[int, int]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    kept: set[int] = field(default_factory=set)
    "Objects that could not be read and stay as they were."
    missing: list[Node] = field(default_factory=list)
    "New ones that could not be read; their names lead to an empty file until they are taken away."


class FolderWriter:
    """Writes what a scan found, as changes against the last snapshot."""

    def __init__(
        self,
        scan: Scan,
        folders: Folders,
        previous: Previous,
        recordsize: int,
        generation: int,
        watch: Watch | None = None,
    ) -> None:
        self._scan = scan
        self._folders = folders
        self._previous = previous
        self._recordsize = recordsize
        self._generation = generation
        self._watch = watch or Watch()
        self._vanished: set[int] = set()
        "Nodes, by id(), of what went before its folder was written."
        self._base: OpenSnapshot | None = None
        self._tree: Filesystem | None = None
        self._numbers: Iterator[int] = iter(())
        self.result = Result()
        self._attributes = Attributes(recordsize, generation, self.result.extras)

    def write(self, writer: SnapshotWriter, base: OpenSnapshot | None) -> None:
        """Give all changes to a writer."""
        self._base = base
        self._tree = Filesystem(base) if base is not None else None
        if self._watch.change is not None:
            for found in file_changes(self._scan, self._tree):
                self._watch.change(found)
        self._watch.start(self._scan.bytes)
        live = _live_objects(base)
        self._numbers = _free_numbers(live)
        self._assign()
        gone = self._gone(live)
        changes: list[tuple[int, Node | ObjectChange | None]] = [(node.number, node) for node in self._scan.written]
        changes += [(number, None) for number in gone]
        if base is None:
            changes += [(change.number, change) for change in fixed_objects()]
        changes.sort(key=lambda pair: pair[0])
        self._attributes.next_number = max([int(live[-1]), changes[-1][0] if changes else 0]) + 1
        for number, what in changes:
            if what is None:
                writer.free(number)
            elif isinstance(what, ObjectChange):
                writer.write(what)
            else:
                self._write_node(writer, what)
        for change in self._attributes.pending:
            writer.write(change)

    def _assign(self) -> None:
        """Give each new file a number; the names of one file share theirs."""
        for names in self._scan.links.values():
            known = next((name.number for name in names if name.number), 0)
            for name in names:
                name.number = known
        for node in self._scan.written:
            if not node.number:
                node.number = ROOT if node.parent is None else next(self._numbers)
        for names in self._scan.links.values():
            for name in names:
                name.number = names[0].number

    def _gone(self, live: np.ndarray) -> list[int]:
        """Objects of the last snapshot that nothing leads to any more."""
        seen = self._scan.seen
        keep = seen | self._previous.extras_of(seen) | FIXED | {ROOT}
        mask = ~np.isin(live, np.fromiter(keep, np.uint64, len(keep)))
        return [int(number) for number in live[mask].tolist()]

    # Objects

    def _write_node(self, writer: SnapshotWriter, node: Node) -> None:
        if self._vanished and self._is_gone(node):
            return
        try:
            if node.kind == FOLDER:
                self._write_folder(writer, node)
            else:
                self._write_file(writer, node)
        except SourceError as error:
            self._unreadable(writer, node, error)

    def _is_gone(self, node: Node | None) -> bool:
        while node is not None and id(node) not in self._vanished:
            node = node.parent
        return node is not None

    def _unreadable(self, writer: SnapshotWriter, node: Node, error: SourceError) -> None:
        """What the last snapshot has of it stays; a new one becomes an empty file for now."""
        self.result.problems.append(Problem(node.path, error.reason))
        if self._held(node) is not None:
            self.result.kept.add(node.number)
            return
        self.result.missing.append(node)
        target = b"." if node.kind == LINK else None
        size = len(target or b"")
        fields = FileFields(node.kind << 12, 0, 0, size, 1, 0, 0, 0, 0, _parent(node), self._generation, target=target)
        bonus, spill = encode_file(fields)
        writer.write(ObjectChange(node.number, ObjectType.PLAIN_FILE, 512, 0, bonus=bonus, spill=spill))

    def _write_file(self, writer: SnapshotWriter, node: Node) -> None:
        assert node.parent is not None
        with reading():
            folder = self._folders.fd(node.parent)
        if node.kind != stat.S_IFREG >> 12:
            self._write_special(writer, node, folder)
            return
        with reading():
            fd = open_file(node.name, folder)
        try:
            for attempt in range(ATTEMPTS):
                try:
                    self._write_content(writer, node, fd, last=attempt == ATTEMPTS - 1)
                    return
                except Changed:
                    continue
        finally:
            os.close(fd)

    def _write_content(self, writer: SnapshotWriter, node: Node, fd: int, *, last: bool) -> None:
        with reading():
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise OSError(0, "it is no regular file any more")
        held = self._held(node)
        size = before.st_size
        blksz = self._blksz(size, held)
        count = -(-size // blksz)
        keeps = held is not None and held.dnode.blksz == blksz

        def blocks() -> Iterator[Block]:
            source: Iterable[Block] = read_blocks(self._counted(blocks_of(fd, size, blksz)))
            if size <= SMALL:
                source = list(source)
                check()
            yield from self._changed(source, held) if keeps and held is not None else source
            if size > SMALL:
                check()

        def check() -> None:
            with reading():
                if same(before, os.fstat(fd)):
                    return
            if not last:
                raise Changed
            self.result.problems.append(Problem(node.path, "it changed while it was read, and is kept as it was read"))

        with reading():
            fields = self._fields(node, before, size, self._folders.fd(node.parent) if node.parent else -1)
            fields.flags = flags_of(fd)
            bonus, spill = self._attributes.encode(node.number, fields, fd)
        change = ObjectChange(
            node.number,
            ObjectType.PLAIN_FILE,
            blksz,
            count - 1,
            blocks(),
            bonus,
            spill=spill,
            keep=held is not None,
        )
        writer.write(change)
        self._row(node, before, len_entries=0)
        self._watch.file()

    def _counted(self, blocks: Iterable[Block]) -> Iterator[Block]:
        for block in blocks:
            yield block
            self._watch.bytes(len(block.content or b""))

    def _held(self, node: Node) -> VerifiedObject | None:
        """What the base has of it; an inode that became another kind of file is a new object under its number."""
        if self._base is None or node.number not in self._scan.seen:
            return None
        found = self._base.object(node.number)
        wanted = ObjectType.DIRECTORY if node.kind == FOLDER else ObjectType.PLAIN_FILE
        return found if found.dnode.type == wanted else None

    def _blksz(self, size: int, held: VerifiedObject | None) -> int:
        """As the kernel chooses it: of a file with several blocks it never changes, and it never shrinks."""
        wanted = block_size(size, self._recordsize)
        if held is None:
            return wanted
        now = held.dnode.blksz
        if held.dnode.maxblkid > 0 and size > now:
            return now
        return now if size <= now <= self._recordsize and held.dnode.maxblkid == 0 else wanted

    def _changed(self, source: Iterable[Block], held: VerifiedObject) -> Iterator[Block]:
        """Only the blocks that are not as the last snapshot has them; what became a hole is one."""
        assert self._base is not None
        base, blksz = self._base, held.dnode.blksz
        there: dict[int, int] = {}
        for part in base.blocks.leaves(held, 0, 1 << 54):
            there.update(dict.fromkeys((part["offset"] // np.uint64(blksz)).tolist(), 1))
        for block in source:
            if there.pop(block.number, None) and block.content == base.read_block(held.dnode.number, block.number):
                continue
            # What lies before this block and was not met is a hole now.
            yield block
        for number in sorted(there):
            yield Block(number, None)

    def _write_special(self, writer: SnapshotWriter, node: Node, folder: int) -> None:
        """A link, device, fifo or socket: all of it is attributes."""
        with reading():
            status = os.stat(node.name, dir_fd=folder, follow_symlinks=False)
            if stat.S_IFMT(status.st_mode) >> 12 != node.kind:
                raise OSError(0, "it is another kind of file now")
            target = os.readlink(node.name, dir_fd=folder) if node.kind == LINK else None
            fields = self._fields(node, status, len(target or b""), folder)
            fields.target = target
            place = f"/proc/self/fd/{folder}/{os.fsdecode(node.name)}"
            bonus, spill = self._attributes.encode(node.number, fields, place)
        writer.write(ObjectChange(node.number, ObjectType.PLAIN_FILE, 512, 0, bonus=bonus, spill=spill))
        self._row(node, status, len_entries=0)
        self._watch.file()

    def _fields(self, node: Node, status: os.stat_result, size: int, folder: int) -> FileFields:
        links = len(self._scan.links[node.inode]) if node.inode in self._scan.links and node.inode else 1
        return fields_of(
            status,
            size=size,
            links=links,
            parent=_parent(node),
            generation=self._generation_of(node),
            birth=birth_of(node.name, folder),
        )

    def _generation_of(self, node: Node) -> int:
        if self._tree is not None and self._held(node) is not None:
            return self._tree.znode(node.number).generation
        return self._generation

    # Folders

    def _write_folder(self, writer: SnapshotWriter, node: Node) -> None:
        fd = self._folder_fd(node)
        held = self._held(node)
        children = node.children
        if children is None:
            assert held is not None
            assert self._tree is not None
            before = self._tree.znode(node.number)
            entries, folders = before.size - 2, before.links - 2
            blksz, last = held.dnode.blksz, held.dnode.maxblkid
            blocks: list[Block] = []
        else:
            children = [child for child in children if not self._went(child, fd)]
            entries, folders = len(children), sum(child.kind == FOLDER for child in children)
            blksz, last, blocks = self._directory(node, children, held)
        fields, status = self._folder_fields(node, fd, entries, folders)
        with reading():
            bonus, spill = self._attributes.encode(node.number, fields, fd) if fd >= 0 else encode_file(fields)
        change = ObjectChange(
            node.number,
            ObjectType.DIRECTORY,
            blksz,
            last,
            blocks,
            bonus,
            spill=spill,
            keep=held is not None,
        )
        writer.write(change)
        if status is not None:
            self._row(node, status, len_entries=entries)

    def _folder_fd(self, node: Node) -> int:
        """-1: it went after it was scanned, and is stored as it was met, since files in it may have been stored."""
        try:
            return self._folders.fd(node)
        except OSError as error:
            self.result.problems.append(Problem(node.path, error.strerror or str(error)))
            return -1

    def _went(self, child: Node, folder: int) -> bool:
        """Whether a new entry is gone already. What the last snapshot has stays, and is reported when it is read."""
        if child.number in self._scan.seen or child.inode is not None or folder < 0:
            return False
        try:
            os.stat(child.name, dir_fd=folder, follow_symlinks=False)
        except OSError:
            self._vanished.add(id(child))
            return True
        return False

    def _folder_fields(
        self, node: Node, fd: int, entries: int, folders: int
    ) -> tuple[FileFields, os.stat_result | None]:
        generation, links = self._generation_of(node), 2 + folders
        if fd >= 0:
            status = os.fstat(fd)
            birth, parent = birth_of(b"", fd), _parent(node)
            fields = fields_of(
                status, size=entries + 2, links=links, parent=parent, generation=generation, birth=birth
            )
            fields.flags = flags_of(fd)
            return fields, status
        if self._tree is not None and self._held(node) is not None:
            old = self._tree.znode(node.number)
            owner, times = (old.mode, old.uid, old.gid), (old.atime, old.mtime, old.ctime, old.crtime)
        else:
            owner, times = (stat.S_IFDIR | 0o700, os.geteuid(), os.getegid()), (self._scan.started,) * 4
        return FileFields(*owner, entries + 2, links, *times, _parent(node), generation), None

    def _directory(self, node: Node, children: list[Node], held: VerifiedObject | None) -> tuple[int, int, list[Block]]:
        """Block size, last block, and the blocks that changed."""
        entries = {child.name: child.number | child.kind << 60 for child in children}
        if held is None or held.dnode.blksz != BLOCK or held.dnode.maxblkid == 0:
            return new_directory(entries)
        return fat_blocks(self._updated(node.number, entries))

    def _updated(self, number: int, entries: dict[bytes, int]) -> FatZap:
        """The fat ZAP of the last snapshot with what changed in it."""
        assert self._base is not None
        assert self._tree is not None
        base = self._base
        zap = FatZap.load(lambda block: base.read_block(number, block), BLOCK)
        old = dict(self._tree.zap(number).numbers())
        for name in old.keys() - entries.keys():
            zap.remove(name)
        for name, value in entries.items():
            if old.get(name) != value:
                zap.put(name, value)
        return zap

    def _row(self, node: Node, status: os.stat_result, *, len_entries: int) -> None:
        safe = status.st_ctime_ns < self._scan.started
        self.result.rows.append(
            (
                status.st_dev,
                status.st_ino,
                status.st_size,
                status.st_mtime_ns,
                status.st_ctime_ns if safe else 0,
                node.number,
                _parent(node),
                status.st_nlink,
                len_entries,
            )
        )

    def next_rows(self) -> Previous:
        """What the next capture compares with: rows of what was written, and of all that stayed."""
        fresh = np.array(self.result.rows, ROW)
        old = self._previous.rows
        stays = np.isin(old["object"], np.fromiter(self._scan.seen, np.uint64, len(self._scan.seen)))
        stays &= ~np.isin(old["object"], fresh["object"])
        stayed = self._scan.seen - {int(number) for number in fresh["object"].tolist()}
        kept = [pair for pair in self._previous.extras.tolist() if pair[0] in stayed]
        extras = np.array(kept + self.result.extras, EXTRA)
        return Previous(np.concatenate([old[stays], fresh]), extras, ROOT)


def _parent(node: Node) -> int:
    return node.parent.number if node.parent is not None else node.number


def _live_objects(base: OpenSnapshot | None) -> np.ndarray:
    """The numbers of all objects of a snapshot, ascending."""
    if base is None:
        return np.array(sorted(FIXED), np.uint64)
    parts = [chunk.table.objects["object"] for chunk in base.state.chunks()]
    found: np.ndarray = np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint64)
    return found


def _free_numbers(live: np.ndarray) -> Iterator[int]:
    """Object numbers for new files: gaps first, so that blocks of dnodes stay full."""
    last = int(live[-1]) if len(live) else FIRST_FREE
    gaps = np.setdiff1d(np.arange(FIRST_FREE, last, dtype=np.uint64), live)
    yield from gaps.tolist()
    number = max(last + 1, FIRST_FREE)
    while True:
        yield number
        number += 1
