"""Write the object of one file or folder, as it is now."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from zkeep.capture.ahead import ReadAhead, SmallFile
from zkeep.capture.contents import (
    ATTEMPTS,
    EVERY,
    SMALL,
    Changed,
    Cut,
    SourceError,
    Status,
    birth_of,
    blocks_of,
    fields_of,
    flags_of,
    open_file,
    read_blocks,
    reading,
    same,
    xattrs_of,
)
from zkeep.capture.directories import directory_blocks
from zkeep.capture.earlier import OpenWhole, find_earlier
from zkeep.capture.previous import UNKNOWN, check_of, is_settled
from zkeep.capture.report import Result, Watch
from zkeep.capture.scan import FOLDER, LINK, REGULAR, Folders, Node, ReadProblem, Scan
from zkeep.capture.small_files import SmallFiles
from zkeep.errors import Refused
from zkeep.format.objtypes import ObjectType
from zkeep.format.sa_writer import with_numbers
from zkeep.format.znode_writer import FileFields
from zkeep.names import shown
from zkeep.snapshot.attributes import Attributes, block_size
from zkeep.snapshot.changes import Block, ObjectChange
from zkeep.snapshot.compare import Comparison, write_unless_same
from zkeep.snapshot.open import OpenSnapshot
from zkeep.snapshot.verified import VerifiedObject
from zkeep.snapshot.writer import SnapshotWriter
from zkeep.tree.filesystem import Filesystem


class ObjectWriter:
    """Writes nodes of a scan. `room`: bytes of new data after which a large file is cut; `flags`: of folders' ZAPs."""

    def __init__(
        self,
        scan: Scan,
        folders: Folders,
        recordsize: int,
        generation: int,
        watch: Watch,
        result: Result,
        open_whole: OpenWhole,
        flags: int = 0,
    ) -> None:
        self._scan, self._open_whole = scan, open_whole
        self._folders = folders
        self._recordsize, self._flags = recordsize, flags
        self._generation = generation
        self._watch, self._result = watch, result
        self._base: OpenSnapshot | None = None
        self._tree: Filesystem | None = None
        self._live = np.empty(0, np.uint64)
        self._cut: Cut | None = None
        self._ahead = ReadAhead(folders, (), recordsize)
        self.attributes = Attributes(recordsize, generation, result.extras, flags)
        self.room = 0
        self.names_kept: Counter[int] = Counter()
        "How many names a file has in folders that cannot be read."
        self.moved_out: dict[int, set[bytes]] = {}
        "Names in folders that cannot be read, by the folder's number, of what was found elsewhere."
        self.partial: set[int] = set()
        "New files of which only a part is stored."
        self.restored: set[int] = set()
        "Files that were put back as the last whole snapshot has them."
        self.stale: list[int] = []
        "Objects with extended attributes for the part of a file that was read, before it was put back."
        self.vanished: list[Node] = []
        "New folders that were gone when they were written."
        self._unread: set[int] = set()
        "Objects with extended attributes that could not be read."
        self.missing: list[Node] = []
        "New ones that could not be read; no name may lead to them."

    def open(self, writer: SnapshotWriter, base: OpenSnapshot | None, live: np.ndarray) -> None:
        """What is written next goes to `writer`. `live`: the numbers of the base's objects, ascending."""
        self._writer, self._base, self._live = writer, base, live
        self._tree = Filesystem(base) if base is not None else None
        self._small = SmallFiles(writer, self._generation, self._links, self._scan.started)

    def read_ahead(self, nodes: Iterable[Node]) -> None:
        """What is going to be written, in this order: new files are read before it is their turn.

        Of others only what differs is stored, so they are read block by block.
        """
        files = [node for node in nodes if node.kind == REGULAR and not node.inode]
        known = np.isin(np.fromiter((node.number for node in files), np.uint64, len(files)), self._live)
        new = (node for node, is_known in zip(files, known.tolist(), strict=True) if not is_known)
        self._ahead = ReadAhead(self._folders, new, self._recordsize, self._writer.compress)

    def close(self) -> None:
        """Nothing is read ahead any more."""
        self._ahead.close()

    def count_names(self, node: Node) -> None:
        """Write how many names lead to a file that is stored."""
        if (held := self._held(node)) is not None:
            self._keep(node, held)

    def write(self, node: Node) -> bool:
        """Write one. False: only a part of it, as the room is used up; the rest follows at the next call."""
        if node.kind == FOLDER:
            self._write_folder(node)
            return True
        if (small := self._ahead.take(node)) is not None:
            self._write_small(node, small)
            return True
        # A file can be read by any of its names: one may be gone, another file's by now, or out of reach.
        reason = SourceError(OSError(0, "it has no name"))
        for name in self._folders.as_scanned(self._scan.names_of(node)):
            marks = len(self.attributes.pending), len(self._result.extras), self.attributes.next_number
            try:
                return self._write_file(name)
            except SourceError as error:
                reason = error
                self._take_back(*marks)
        self._cut = None
        self._unreadable(node, reason)
        return True

    def write_pending(self) -> None:
        """Write what was met on the way: it lies behind all others."""
        for change in self.attributes.pending:
            self._writer.write(change)
        self.attributes.pending.clear()

    def _take_back(self, pending: int, extras: int, late: int) -> None:
        del self.attributes.pending[pending:], self._result.extras[extras:]
        self.attributes.next_number = late

    def _unreadable(self, node: Node, error: SourceError) -> None:
        """What the last snapshot has of it stays; of a new one, nothing."""
        held, reason = self._held(node) if node.number not in self.partial else None, error.reason
        if held is None:
            self.missing.append(node)
        else:
            try:
                is_done = self._put_back(node, held)
            except Refused as refused:
                is_done, reason = False, f"{reason}; {refused}"
            if not is_done:
                self._keep(node, held)
        if held is not None or not isinstance(error.__cause__, FileNotFoundError):
            self._report(node, reason)

    def _put_back(self, node: Node, held: VerifiedObject) -> bool:
        """Undo what steps have of a file: it becomes what the last whole snapshot has. False: there is nothing to undo.

        Raises:
            Refused: that is not stored here.
        """
        assert self._base is not None
        earlier = find_earlier(self._base, node.number, self._open_whole) if node.kind == REGULAR else None
        if earlier is None:
            return False
        number, size, kind = node.number, earlier.node.size, ObjectType.PLAIN_FILE
        # Objects with extended attributes: those for the part that was read go, the others come again.
        self.stale += [extra for owner, extra in self._result.extras if owner == number]
        self._result.extras[:] = [pair for pair in self._result.extras if pair[0] != number]
        fields = earlier.fields(self._links(node), _parent(node))
        bonus, spill = self.attributes.encode(number, fields, earlier.xattrs())
        blksz = self._blksz(size, held)
        blocks: Iterable[Block] = earlier.blocks(blksz)
        if held.dnode.blksz == blksz:
            blocks = Comparison(self._base, held, self._writer.compress).changed(blocks)
        last, self._result.names[number] = -(-size // blksz) - 1, (fields.links, fields.parent)
        self._writer.write(ObjectChange(number, kind, blksz, last, blocks, bonus, spill=spill, keep=True))
        self.restored.add(number)
        return True

    def _keep(self, node: Node, held: VerifiedObject) -> None:
        """Leave an object as it was, but for how many names lead to it, and from where."""
        change = self.with_names(held, self._links(node), _parent(node))
        if change is not None:
            self._writer.write(change)

    def with_names(self, held: VerifiedObject, links: int, parent: int) -> ObjectChange | None:
        """An object that stays, with so many names, one of them in this folder; None: so it is."""
        dnode = held.dnode
        self._result.names[dnode.number] = links, parent
        old = dnode.bonus[: dnode.bonuslen]
        # Only two numbers change, in place: everything else of the object stays as it is stored.
        bonus = with_numbers(old, links=links, parent=parent)
        if bonus == old:
            return None
        spill = "keep" if dnode.has_spill else None
        return ObjectChange(dnode.number, dnode.type, dnode.blksz, dnode.maxblkid, (), bonus, spill=spill, keep=True)

    # Files

    def _write_file(self, node: Node) -> bool:
        assert node.parent is not None
        with reading():
            folder = self._folders.fd(node.parent)
        if node.kind != REGULAR:
            self._write_special(node, folder)
            return True
        with reading():
            fd = open_file(node.name, folder)
        try:
            # A file that changes while it is read is read again, up to a few times; the last attempt takes it as it is.
            for attempt in range(ATTEMPTS):
                marks = len(self.attributes.pending), len(self._result.extras), self.attributes.next_number
                try:
                    return self._write_content(node, fd, folder, last=attempt == ATTEMPTS - 1)
                except Changed:
                    # Forget the extended attributes that the attempt had begun.
                    self._take_back(*marks)
        finally:
            os.close(fd)
        raise AssertionError("the last attempt takes the file as it is")

    def _write_small(self, node: Node, small: SmallFile) -> None:
        """Write a new file that was read whole, in one block."""
        self._watch.bytes(small.block)
        self.room -= small.block
        made = self._small.made(node, small, self._ahead)
        if made is not None:
            self._writer.write_made(made[0])
            self._result.rows.add_packed(made[1])
            self._watch.file()
            return
        fields = small.fields(self._links(node), _parent(node), self._generation)
        bonus, spill = self.attributes.encode(node.number, fields, small.xattrs)
        size = small.block
        blocks = (Block(0, small.content, small.compression),) if size else ()
        change = ObjectChange(
            *(node.number, ObjectType.PLAIN_FILE, size or 512, len(blocks) - 1, blocks, bonus), spill=spill
        )
        self._writer.write(change)
        self.partial.discard(node.number)
        self._unread.discard(node.number)
        self._watch.file()
        self._row(node, small)

    def _write_content(self, node: Node, fd: int, folder: int, *, last: bool) -> bool:
        # A file that was cut goes on with the attributes that it had when its reading began.
        cut, self._cut = self._cut, None
        with reading():
            status = os.fstat(fd)
        # Another file may have got its name meanwhile; that one is read from its begin.
        if cut is not None and (status.st_dev, status.st_ino) != (cut.status.st_dev, cut.status.st_ino):
            cut = None
        if cut is None:
            with reading():
                if not stat.S_ISREG(status.st_mode):
                    raise OSError(0, "it is no regular file any more")
                fields = self._fields(node, status, status.st_size, folder)
                fields.flags = flags_of(fd)
                cut = Cut(0, status, *self.attributes.encode(node.number, fields, self._xattrs(node, fd)))
        held, size = self._held(node), cut.status.st_size
        blksz = self._blksz(size, held)
        change = ObjectChange(
            *(node.number, ObjectType.PLAIN_FILE, blksz, -(-size // blksz) - 1),
            self._blocks(node, fd, blksz, cut, held, last),
            cut.bonus,
            spill=cut.spill,
            keep=held is not None,
        )
        write_unless_same(self._writer, self._base, held, change)
        # Whole, or cut again: then no folder may name it yet, and the next capture must not take it for stored.
        is_whole = self._cut is None
        if is_whole:
            self.partial.discard(node.number)
            self._watch.file()
        elif held is None:
            self.partial.add(node.number)
        self._row(node, cut.status, again=not is_whole)
        return is_whole

    def _blocks(
        self, node: Node, fd: int, blksz: int, begun: Cut, held: VerifiedObject | None, last: bool
    ) -> Iterator[Block]:
        """The blocks that have to be stored, until the room is used up.

        Raises Changed: it changed while it was read, before any of it was given.
        """
        size = begun.status.st_size
        source: Iterable[Block] = read_blocks(self._counted(blocks_of(fd, size, blksz, begun.block)))
        # A small file is read before any of it is stored, so that it can be read again if it changed meanwhile.
        if size <= SMALL:
            source = list(source)
            self._check(node, fd, begun.status, last)
        # Blocks whose MACs are those of the last snapshot stay as they are there.
        if held is not None and held.dnode.blksz == blksz:
            assert self._base is not None
            source = Comparison(self._base, held, self._writer.compress).changed(source, begun.block)
        for block in source:
            if self.room <= 0 and size > SMALL:
                self._cut = replace(begun, block=block.number)
                return
            self.room -= blksz if block.content is not None else 0
            yield block
        if size > SMALL:
            self._check(node, fd, begun.status, True)

    def _check(self, node: Node, fd: int, before: os.stat_result, last: bool) -> None:
        """Raises Changed: the file is not as it was `before`; at the `last` attempt that is only reported."""
        with reading():
            if same(before, os.fstat(fd)):
                return
        if not last:
            raise Changed
        self._report(node, "it changed while it was read, and is kept as it was read")

    def _counted(self, blocks: Iterable[Block]) -> Iterator[Block]:
        for block in blocks:
            yield block
            self._watch.bytes(len(block.content or b""))

    def _xattrs(self, node: Node, place: int | str) -> dict[bytes, bytes]:
        """Extended attributes. Of those that cannot be read, the last snapshot's stay, and it is said."""
        found, unread = xattrs_of(place)
        if not unread:
            self._unread.discard(node.number)
            return found
        self._unread.add(node.number)  # so that it is read again whether it changes or not
        for name, reason in unread.items():
            what = f"extended attribute {shown(os.fsdecode(name))}" if name else "extended attributes"
            self._report(node, f"{what} cannot be read: {reason}")
        held = self._tree is not None and self._is_live(node.number)
        before = self._tree.xattrs(self._tree.znode(node.number)) if held and self._tree is not None else {}
        return before | found if EVERY in unread else {n: before[n] for n in unread if n in before} | found

    def _held(self, node: Node) -> VerifiedObject | None:
        """What the base has of it; what is a folder now and was none is a new object under its number."""
        if self._base is None or not self._is_live(node.number):
            return None
        found = self._base.object(node.number)
        wanted = ObjectType.DIRECTORY if node.kind == FOLDER else ObjectType.PLAIN_FILE
        return found if found.dnode.type == wanted else None

    def _is_live(self, number: int) -> bool:
        at = int(self._live.searchsorted(np.uint64(number)))
        return at < len(self._live) and int(self._live[at]) == number

    def _blksz(self, size: int, held: VerifiedObject | None) -> int:
        """Choose the block size as the kernel does: it never shrinks, and with several blocks it never changes."""
        # One block as large as the file, until it is larger than the recordsize.
        wanted = block_size(size, self._recordsize)
        if held is None:
            return wanted
        now = held.dnode.blksz
        if held.dnode.maxblkid > 0 and size > now:
            return now
        return now if size <= now <= self._recordsize and held.dnode.maxblkid == 0 else wanted

    def _write_special(self, node: Node, folder: int) -> None:
        """A link, device, fifo or socket: all of it is attributes."""
        with reading():
            status = os.stat(node.name, dir_fd=folder, follow_symlinks=False)
            # The scan was some time ago: the name may lead to something else by now.
            if stat.S_IFMT(status.st_mode) >> 12 != node.kind:
                raise OSError(0, "something else has its name now")
            target = os.readlink(node.name, dir_fd=folder) if node.kind == LINK else None
            fields = self._fields(node, status, len(target or b""), folder)
            fields.target = target
            # Links and devices cannot be opened for their attributes, so they are named, through the open folder.
            place = f"/proc/self/fd/{folder}/{os.fsdecode(node.name)}"
            bonus, spill = self.attributes.encode(node.number, fields, self._xattrs(node, place))
        self._writer.write(ObjectChange(node.number, ObjectType.PLAIN_FILE, 512, 0, bonus=bonus, spill=spill))
        self._row(node, status)
        self._watch.file()

    def _fields(self, node: Node, status: os.stat_result, size: int, folder: int) -> FileFields:
        return fields_of(
            status,
            size=size,
            links=self._links(node),
            parent=_parent(node),
            generation=self._generation_of(node),
            birth=birth_of(node.name, folder),
        )

    def _links(self, node: Node) -> int:
        return len(self._scan.names_of(node)) + self.names_kept[node.number]

    def _generation_of(self, node: Node) -> int:
        if self._tree is not None and self._held(node) is not None:
            return self._tree.znode(node.number).generation
        return self._generation

    # Folders

    def _write_folder(self, node: Node) -> None:
        # 1. Its status. A folder that went since the scan is written empty, and its name is taken away at the end.
        held = self._held(node)
        try:
            fd = self._folders.fd(node)
            now = os.fstat(fd)
            if now.st_nlink == 0:
                raise FileNotFoundError(2, "it was removed")
            status = node.status or now
        except OSError as error:
            if held is not None and node.children is None:
                if node.number in self.moved_out:
                    self._writer.write(self.without_moved(held))
                return  # it could not be listed either: what the base has of it stays
            fd, status = -1, node.status or os.fstat(self._folders.fd(self._scan.root))
            if held is None and isinstance(error, FileNotFoundError):
                self.vanished.append(node)
            else:
                self._report(node, error.strerror or str(error))
        # 2. Its entries: those of the scan, or None where they are those of last time.
        children = node.children
        if children is None and held is None:
            children = []
        count, folders, blksz, last, blocks = self._entries(node, children, held)
        # 3. Its attributes: the size of a folder is its entries with `.` and `..`, each subfolder links to it.
        fields = fields_of(
            status,
            size=count + 2,
            links=2 + folders,
            parent=_parent(node),
            generation=self._generation_of(node),
            birth=birth_of(b"", fd) if fd >= 0 else 0,
        )
        fields.flags = flags_of(fd) if fd >= 0 else 0
        bonus, spill = self.attributes.encode(node.number, fields, self._xattrs(node, fd) if fd >= 0 else {})
        change = ObjectChange(
            *(node.number, ObjectType.DIRECTORY, blksz, last, blocks, bonus), spill=spill, keep=held is not None
        )
        self._writer.write(change)
        names = UNKNOWN if children is None else check_of([child.name for child in children])
        self._row(node, status, names, again=fd < 0)

    def _entries(
        self, node: Node, children: list[Node] | None, held: VerifiedObject | None
    ) -> tuple[int, int, int, int, list[Block]]:
        """Count of entries and of folders among them, block size, last block, and the blocks that changed."""
        if children is None:
            assert held is not None
            return self._kept_entries(held)
        folders = sum(child.kind == FOLDER for child in children)
        # An entry is the object's number, with the kind of file in the upper 4 bits.
        entries = {child.name: child.number | child.kind << 60 for child in children}
        return len(children), folders, *directory_blocks(entries, held, self._base, self._flags)

    def _kept_entries(self, held: VerifiedObject) -> tuple[int, int, int, int, list[Block]]:
        """The same for a folder that cannot be read: those of the base, without what was found elsewhere."""
        assert self._tree is not None
        before, gone = self._tree.znode(number := held.dnode.number), self.moved_out.get(number, set())
        old = dict(self._tree.zap(number).numbers())
        folders = sum(old[name] >> 60 == FOLDER for name in gone)
        entries = {name: value for name, value in old.items() if name not in gone}
        blocks = directory_blocks(entries, held, self._base, self._flags)
        return before.size - 2 - len(gone), before.links - 2 - folders, *blocks

    def without_moved(self, held: VerifiedObject) -> ObjectChange:
        """A folder that cannot be read, without the names of what was found elsewhere; all else of it stays."""
        assert self._tree is not None
        count, folders, blksz, last, blocks = self._kept_entries(held)
        dnode, parent = held.dnode, self._tree.znode(held.dnode.number).parent
        bonus = with_numbers(dnode.bonus[: dnode.bonuslen], links=2 + folders, parent=parent, size=count + 2)
        spill = "keep" if dnode.has_spill else None
        return ObjectChange(dnode.number, dnode.type, blksz, last, blocks, bonus, spill=spill, keep=True)

    def plan_folders(self, nodes: Iterable[Node]) -> None:
        """Rows of folders that have a number and are not written yet."""
        for node in nodes:
            if node.kind == FOLDER and node.status is not None:
                self._row(node, node.status, UNKNOWN, again=True)

    def _report(self, node: Node, reason: str) -> None:
        self._result.problems.append(ReadProblem(node.path, reason))

    def _row(self, node: Node, status: Status, names: int = UNKNOWN, *, again: bool = False) -> None:
        """Note for the next capture how it is now. `again`: it is to be read once more whatever it is then."""
        changed = status.st_ctime_ns
        safe = not again and node.number not in self._unread and is_settled(changed, self._scan.started)
        links = 1 if node.kind == FOLDER else 0 if node.number in self.partial else self._links(node)
        self._result.rows.add(
            *(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, changed if safe else 0),
            *(node.number, _parent(node), links, names, node.kind),
        )
        self._result.names.pop(node.number, None)


def _parent(node: Node) -> int:
    return node.parent.number if node.parent is not None else node.number
