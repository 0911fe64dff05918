"""From inodes that changed to the objects that a SnapshotWriter writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from zkeep.format.objtypes import ObjectType
from zkeep.format.zap_writer import BLOCK, FatZap
from zkeep.format.znode_writer import encode_file
from zkeep.live.contents import Contents
from zkeep.live.inode import Inode
from zkeep.snapshot.attributes import Attributes, block_size, fat_blocks, new_directory
from zkeep.snapshot.changes import Block, ObjectChange
from zkeep.snapshot.open import OpenSnapshot
from zkeep.snapshot.writer import SnapshotWriter


@dataclass
class Pending:
    """What a commit writes. `queue`: the numbers of files that have no name, and are open."""

    inodes: list[Inode]
    freed: set[int]
    queue: set[int] | None
    "None: it is as it was."
    queue_number: int
    flags: int
    "The normflags of the folders."
    places: dict[int, tuple[int, int]] = field(default_factory=dict)
    "Block size and last block of each inode that was written."


class CommitWriter:
    """Writes what is pending over `base`. `next_number`: a number behind all objects that there are."""

    def __init__(
        self, pending: Pending, base: OpenSnapshot, contents: Contents, recordsize: int, next_number: int
    ) -> None:
        self._pending = pending
        self._base = base
        self._contents = contents
        self.attributes = Attributes(recordsize, 1, [], pending.flags)
        self.attributes.next_number = next_number

    def write(self, writer: SnapshotWriter) -> None:
        """Give a writer all changes, in the order of their numbers."""
        todo: list[tuple[int, Inode | ObjectChange | None]] = [(inode.number, inode) for inode in self._pending.inodes]
        todo += [(number, None) for number in self._pending.freed]
        if self._pending.queue is not None:
            todo.append((self._pending.queue_number, self._queue(self._pending.queue)))
        for number, what in sorted(todo, key=lambda pair: pair[0]):
            if what is None:
                writer.free(number)
            else:
                writer.write(self._change(what) if isinstance(what, Inode) else what)
        for change in self.attributes.pending:
            writer.write(change)

    def _queue(self, numbers: set[int]) -> ObjectChange:
        """The delete queue, as a kernel writes it: a file's number, in hex, leads to the number."""
        blksz, last, blocks = new_directory({b"%x" % number: number for number in sorted(numbers)})
        kind = ObjectType.DELETE_QUEUE
        return ObjectChange(self._pending.queue_number, kind, blksz, last, blocks, bonustype=0)

    def _change(self, inode: Inode) -> ObjectChange:
        kept = inode.stored
        blocks: Iterable[Block] = []
        if inode.is_folder:
            kind, (width, last, blocks) = ObjectType.DIRECTORY, self._folder(inode)
        elif inode.is_file:
            kind, kept = ObjectType.PLAIN_FILE, inode.stored and inode.cut > 0
            width, last, blocks = self._file(inode, kept)
        else:
            kind, width, last = ObjectType.PLAIN_FILE, 512, 0
        bonus, spill = self._attributes(inode)
        change = ObjectChange(inode.number, kind, width, last, blocks, bonus, spill=spill, keep=kept)
        # A tree never forgets how far it reached, while its object lives with blocks of this size.
        reached = inode.last if kept and inode.width == width else 0
        self._pending.places[inode.number] = width, max(last, reached, 0)
        return change

    def _attributes(self, inode: Inode) -> tuple[bytes, bytes | None]:
        if not inode.new_xattrs:
            return encode_file(inode.fields)
        every = {**inode.fields.xattrs, **(inode.large or {})}
        inode.fields.xattr_folder = 0
        made = self.attributes.encode(inode.number, inode.fields, every)
        inode.large = {name: value for name, value in every.items() if name not in inode.fields.xattrs}
        return made

    # Files

    def _file(self, inode: Inode, kept: bool) -> tuple[int, int, Iterator[Block]]:
        """Block size, last block, and the blocks to be written."""
        size = inode.fields.size
        if kept and inode.last > 0:
            width = inode.width
        elif size > inode.block or any(inode.blocks):
            width = inode.block
        else:
            width = max(block_size(size, inode.block), inode.width if kept else 0)
        if kept and width != inode.width and inode.last >= 0 and 0 not in inode.blocks:
            self._contents.load(inode, 0)  # the block size changes: all blocks are written
        last = max([-(-size // width) - 1, *inode.blocks])
        return width, last, self._blocks(inode, width, kept)

    def _blocks(self, inode: Inode, width: int, kept: bool) -> Iterator[Block]:
        numbers = set(inode.blocks)
        if kept and inode.width == width:
            numbers |= set(self._cut_off(inode))
        for number in sorted(numbers):
            content = inode.blocks.get(number)
            if content is None or len(content) == width:
                # Nothing changes it meanwhile: the dataset's lock is held.
                yield Block(number, content, early=inode.early.get(number))
            else:
                yield Block(number, content.ljust(width, b"\0"))

    def _cut_off(self, inode: Inode) -> Iterator[int]:
        """Blocks that the base has behind where the file was cut off."""
        if inode.cut > inode.last:
            return
        for leaves in self._base.blocks.leaves(self._base.object(inode.number), inode.cut, inode.last + 1):
            yield from (leaves["offset"] // inode.width).tolist()

    # Folders

    def _folder(self, inode: Inode) -> tuple[int, int, list[Block]]:
        if inode.stored and not inode.renamed:
            return inode.width, inode.last, []
        if inode.stored and inode.width == BLOCK and inode.last > 0:
            return fat_blocks(self._fat(inode))
        entries = {name: value for name, value in inode.entries.items() if value is not None}
        return new_directory(entries, self._pending.flags)

    def _fat(self, inode: Inode) -> FatZap:
        """The fat ZAP of the base with the names that changed."""
        zap = FatZap.load(lambda block: self._base.read_block(inode.number, block), BLOCK)
        for name in sorted(inode.renamed):
            value = inode.entries.get(name)
            if value is not None:
                zap.put(name, value)
                continue
            with suppress(KeyError):  # it came and went since the last commit
                zap.remove(name)
        return zap
