"""The contents of files: blocks that were written lie over those of the base."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from zkeep.cache import Cache
from zkeep.format.dnode import SLOTS
from zkeep.live.inode import Inode
from zkeep.snapshot.changes import INLINE
from zkeep.snapshot.encrypted import BeginEarly
from zkeep.snapshot.open import TOGETHER, OpenSnapshot
from zkeep.tree.windows import Content

ROWS = 64
"Blocks of dnodes that are remembered, as more of their files may be read."
Buffer = bytes | bytearray | memoryview


class Contents:
    """Reads and writes files. `dirty`: bytes that wait for the next commit; `base` gives what has the others."""

    def __init__(self, recordsize: int, base: Callable[[], OpenSnapshot]) -> None:
        self.dirty = 0
        self.encrypt: BeginEarly | None = None
        "Begins to encrypt a block that is whole and large."
        self.recordsize = recordsize
        self._base = base
        self._rows: Cache[int, bool] = Cache(ROWS)
        "Blocks of dnodes from which a small file was read."
        self._content: tuple[OpenSnapshot, Content] | None = None

    def read(self, inode: Inode, offset: int, size: int) -> bytes:
        """Bytes of a file, zeros where it has holes; fewer where it ends."""
        return bytes(self.view(inode, offset, size))

    def view(self, inode: Inode, offset: int, size: int) -> Buffer:
        """The same, not copied where the base has all of it. What is written later does not change it."""
        end = min(offset + size, inode.fields.size)
        if not inode.blocks and offset < end:
            stored = self._read_base(inode, offset, end)
            if len(stored) == end - offset:
                return stored
        out = bytearray(max(end - offset, 0))
        at = offset
        while at < end:
            number = at // inode.block
            start = number * inode.block
            if number in inode.blocks:
                stop = min(start + inode.block, end)
                part: Buffer = (inode.blocks[number] or b"")[at - start : stop - start]
            else:
                stop = self._clean(inode, number, end)
                part = self._read_base(inode, at, stop)
            out[at - offset : at - offset + len(part)] = part
            at = stop
        return out

    def _clean(self, inode: Inode, number: int, end: int) -> int:
        """Where the blocks end that were not written, from this one on."""
        last = (end - 1) // inode.block
        while number < last and number + 1 not in inode.blocks:
            number += 1
        return min((number + 1) * inode.block, end)

    def _read_base(self, inode: Inode, start: int, stop: int) -> bytes | memoryview:
        """What the base has there; fewer bytes where it has no more, or that was cut off."""
        stop = min(stop, inode.cut * inode.block, (inode.last + 1) * inode.width)
        if not inode.stored or start >= stop:
            return b""
        objects = self._base()
        block = start // inode.width
        if (stop - 1) // inode.width == block and (known := self._known(objects, inode, block)) is not None:
            return memoryview(known)[start - block * inode.width : stop - block * inode.width]
        if self._content is None or self._content[0] is not objects:
            self._content = objects, Content(objects)
        return self._content[1].view(inode.number, (inode.last + 1) * inode.width, start, stop - start)

    def _known(self, objects: OpenSnapshot, inode: Inode, block: int) -> bytes | None:
        """A block that is known without reading it; small files that are read in a row are read together."""
        known = objects.known_block(inode.number, block)
        if known is not None or inode.last > 0 or inode.width > TOGETHER:
            return known
        index = inode.number // SLOTS
        is_in_row = index in self._rows or index - 1 in self._rows
        self._rows.put(index, True)
        if not is_in_row:
            return None
        objects.learn_small_files(index)
        return objects.known_block(inode.number, block)

    def stored(self, inode: Inode, offset: int) -> Iterator[tuple[int, int]]:
        """Stretches of a file that the base has and that are no holes, from the block at `offset` on."""
        if not inode.stored or not inode.width:
            return
        objects = self._base()
        held = objects.object(inode.number)
        for leaves in objects.blocks.leaves(held, offset // inode.width, inode.last + 1):
            for start in leaves["offset"].tolist():
                yield start, start + inode.width

    def load(self, inode: Inode, number: int) -> bytearray:
        """Load a block that is about to be changed, and mark it dirty. Its end may lack zeros."""
        inode.early.pop(number, None)
        found = inode.blocks.get(number)
        if found is None:
            start = number * inode.block
            end = min(start + inode.block, inode.fields.size)
            part = self._read_base(inode, start, end) if number not in inode.blocks else b""
            found = inode.blocks[number] = bytearray(part)
            self.dirty += len(found)
        return found

    def write(self, inode: Inode, data: bytes | memoryview, offset: int) -> None:
        """Put bytes into a file, which grows if need be."""
        at, end = offset, offset + len(data)
        while at < end:
            number = at // inode.block
            start = number * inode.block
            stop = min(start + inode.block, end)
            is_whole = at == start and (stop - start == inode.block or stop >= inode.fields.size)
            if is_whole and number not in inode.blocks:
                inode.blocks[number] = bytearray(data[at - offset : stop - offset])
                self.dirty += stop - start
                at = stop
                self._begin_early(inode, number, stop)
                continue
            content = self.load(inode, number)
            before = len(content)
            if before < at - start:
                content.extend(bytes(at - start - before))
            content[at - start : stop - start] = data[at - offset : stop - offset]
            self.dirty += len(content) - before
            at = stop
            self._begin_early(inode, number, stop)
        inode.fields.size = max(inode.fields.size, end)

    def _begin_early(self, inode: Inode, number: int, end: int) -> None:
        """Encrypt a block of a large file, if what was written ends where it does: mostly nothing more comes for it."""
        content = inode.blocks[number]
        if self.encrypt is None or content is None or number == 0 or len(content) != inode.block:
            return
        if end == (number + 1) * inode.block and inode.block > INLINE:
            inode.early[number] = self.encrypt(content)

    def truncate(self, inode: Inode, size: int) -> None:
        """Give a file this size: what is behind is gone, what is new is a hole."""
        if size < inode.fields.size:
            whole, rest = divmod(size, inode.block)
            if rest:
                content = self.load(inode, whole)
                self.dirty -= max(len(content) - rest, 0)
                inode.blocks[whole] = content[:rest]  # a thread may still read the longer one
            keep = whole + (rest > 0)
            self._drop(inode, [number for number in inode.blocks if number >= keep])
            inode.cut = min(inode.cut, keep)
            if not keep:
                inode.block = self.recordsize  # it begins again, and may have other blocks
        inode.fields.size = size

    def forget(self, inode: Inode) -> None:
        """Drop what was written: nobody can read it any more."""
        self._drop(inode, list(inode.blocks))

    def _drop(self, inode: Inode, numbers: list[int]) -> None:
        for number in numbers:
            inode.early.pop(number, None)
            self.dirty -= len(inode.blocks.pop(number) or b"")

    def punch(self, inode: Inode, offset: int, end: int, stored: Iterator[tuple[int, int]]) -> None:
        """Make a hole; the size stays. `stored`: stretches of the base that are no holes, from `offset` on."""
        end = min(end, inode.fields.size)
        first, last = -(-offset // inode.block), end // inode.block
        if end == inode.fields.size:
            last = -(-end // inode.block)
        if first >= last:
            self._blank(inode, offset, end)
            return
        self._blank(inode, offset, first * inode.block)
        self._blank(inode, last * inode.block, end)
        self._drop(inode, [number for number in inode.blocks if first <= number < last])
        # What is a hole in the base needs no note, however large the file says that it is.
        for number in (start // inode.block for start, _ in stored):
            if number >= min(last, inode.cut):
                break
            if number >= first:
                inode.blocks[number] = None

    def _blank(self, inode: Inode, start: int, end: int) -> None:
        """Zeros within a block or two."""
        if start < end:
            self.write(inode, bytes(end - start), start)

    def data_from(self, inode: Inode, offset: int, stored: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Stretches [start, end) that are not holes, ascending, from `offset` on. `stored`: those of the base."""
        size = inode.fields.size
        found = [(n * inode.block, (n + 1) * inode.block) for n, content in inode.blocks.items() if content is not None]
        for start, end in stored:
            number = start // inode.block
            if number not in inode.blocks and number < inode.cut:
                found.append((start, end))
        for start, end in sorted(found):
            if end > offset and start < size:
                yield max(start, offset), min(end, size)
