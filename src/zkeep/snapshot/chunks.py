"""The state of a dataset at one txg, in chunks of rows: what a snapshot consists of, and where its records lie.

Each record's header is read at most once per chunk, and only a few chunks are in memory at a time.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from zkeep.cache import Cache
from zkeep.errors import Damaged
from zkeep.format.dnode import SECTOR, SLOTS
from zkeep.format.records import HEADER, MAX_PAYLOAD, RecordFlag, RecordType
from zkeep.pool.timeline.spans import Array, keys, unique
from zkeep.pool.timeline.table import DTYPES, NOTHING, Table, fold
from zkeep.pool.timeline.timeline import LAST, Run, Timeline
from zkeep.snapshot.records import Packed, StoredRecords
from zkeep.snapshot.small_objects import SmallObjects
from zkeep.snapshot.verified import LEAF, with_type

CHUNK_ROWS = 8192
SCATTERED_ROWS = 256
"The same for who reads little, here and there: a header is read of each row of a chunk."
CHUNKS = 12
"Chunks that are cached."
GATHERED_FROM, GATHERED_ROWS, GATHERED_BLOCKS = 1 << 19, 1 << 16, 16
"""Rows of all tables up to which those of some blocks of dnodes are looked for in all of them, how many may be found,
and for how few blocks it is not worth it."""
Key = tuple[int, int]


@dataclass(frozen=True)
class Chunk:
    """The rows between two keys (object, offset)."""

    table: Table
    records: StoredRecords

    @cached_property
    def leaves(self) -> Array:
        """The leaves of all blocks, by object and offset."""
        return _leaves(self.table.blocks, self.records, RecordType.WRITE)

    @cached_property
    def spills(self) -> Array:
        """The leaves of all spill blocks, by object."""
        return _leaves(self.table.spills, self.records, RecordType.SPILL)

    @cached_property
    def objects(self) -> tuple[Array, Packed]:
        """Headers and payloads of the OBJECT records that `table.objects` lists. Their type is not checked here."""
        sizes = np.maximum(self.table.objects["size"].astype(np.int64), HEADER)
        records = self.records.packed(self.table.objects, sizes)
        heads = records.cut(0, np.full(len(sizes), HEADER)).content
        bodies = records.cut(HEADER, sizes - HEADER)
        return self.records.native(heads, self.table.objects, RecordType.OBJECT), bodies

    @cached_property
    def small(self) -> SmallObjects:
        return SmallObjects(self.table, *self.objects, self.leaves)


def _leaves(rows: Array, records: StoredRecords, rtype: RecordType) -> Array:
    leaves = np.zeros(len(rows), LEAF)
    for name in ("object", "offset", "pos", "check", "size", "segment", "kind", "bare"):
        leaves[name] = rows[name]
    # What the table knows of a block: where its record lies. What its record's header has: how it is encrypted.
    leaves["logical"] = rows["length"]
    if rtype == RecordType.SPILL:
        leaves["offset"] = 0
    # Rows of other kinds (embedded, redacted) have no encryption to take from a header.
    mine = rows["kind"] == rtype
    if mine.any():
        rows = rows[mine]
        headers = records.headers(rows, rtype)
        # Check that each row leads to the record of its own block.
        wrong = headers["object"] != rows["object"]
        if rtype == RecordType.WRITE:
            wrong |= headers["offset"] != rows["offset"]
        if wrong.any():
            raise Damaged(f"{records.where(rows[np.flatnonzero(wrong)[0]])}: the record is of another block")
        filled = _filled(leaves[mine], headers, little_of(rows, headers, records), rtype)
        if len(filled) == len(leaves):
            return filled
        leaves[mine] = filled
    return leaves


def little_of(rows: Array, headers: Array, records: StoredRecords) -> Array:
    """Whether each block was in little-endian byte order on the sender's disk."""
    # A segment has the byte order of its stream, and the flag says that the block was written in the other one.
    _, firsts, index = np.unique(rows["segment"], return_index=True, return_inverse=True)
    big = np.array([records.byteorder(row) == "big" for row in rows[firsts]], bool)
    return np.asarray(~big[index] ^ (headers["flags"] & RecordFlag.RAW_BYTESWAP > 0))


def _filled(leaves: Array, headers: Array, little: Array, rtype: RecordType) -> Array:
    logical = headers["logical_size" if rtype == RecordType.WRITE else "length"]
    physical = np.where(headers["compressed_size"] > 0, headers["compressed_size"], logical)
    wrong = (physical != leaves["size"].astype(np.uint64) - HEADER) & (headers["compressed_size"] > 0)
    wrong &= leaves["bare"] == 0
    for length in (logical, physical):  # the pointer has sizes in sectors only
        wrong |= (length % np.uint64(SECTOR) > 0) | (length < SECTOR) | (length > MAX_PAYLOAD)
    if wrong.any():
        first = leaves["object"][np.flatnonzero(wrong)[0]]
        raise Damaged(f"object {first}: a block is not as long as its record says")
    leaves["logical"] = logical
    leaves["compression"] = headers["compressiontype"]
    leaves["type"] = headers["type"]
    leaves["salt"] = np.ascontiguousarray(headers["salt"]).view("V8").reshape(-1)
    leaves["iv"] = np.ascontiguousarray(headers["iv"]).view("V12").reshape(-1)
    leaves["pointer"]["prop"] = _prop(headers, logical, physical, little)
    leaves["pointer"]["mac"] = np.ascontiguousarray(headers["mac"]).view("V16").reshape(-1)
    return leaves


def _prop(headers: Array, logical: Array, physical: Array, little: Array) -> Array:
    """format.dnode.pointer_prop() for columns of blocks."""
    # size - 1 in sectors (16 bits), stored size - 1 (16), compression (8 of 16), type at 48, "encrypted" at 61, order
    # at 63
    one = np.uint64(1)
    prop = ((logical >> np.uint64(9)) - one) & np.uint64(0xFFFF)
    prop |= (((physical >> np.uint64(9)) - one) & np.uint64(0xFFFF)) << np.uint64(16)
    prop |= headers["compressiontype"].astype(np.uint64) << np.uint64(32)
    prop |= headers["type"].astype(np.uint64) << np.uint64(48)
    prop |= one << np.uint64(61)
    return np.asarray(prop | little.astype(np.uint64) << np.uint64(63))


class State:
    """One dataset's state, in chunks that are made when they are asked for."""

    def __init__(self, timeline: Timeline, runs: list[Run], rows: int = CHUNK_ROWS) -> None:
        self.timeline = timeline
        self.runs = runs
        self.records = StoredRecords(timeline)
        self._rows = rows
        self._chunks: Cache[int, Chunk] = Cache(CHUNKS)
        self._gathered: Chunk | None = None
        self._gathered_blocks: frozenset[int] = frozenset()

    @cached_property
    def _marks(self) -> list[Key]:
        """Keys between which chunks lie. To find them, all segments are looked at."""
        return [(0, 0), *self.timeline.cuts(self.runs, self._rows), LAST]

    def gather(self, indices: Array) -> None:
        """Find the rows of these blocks of dnodes at once: over() gives them as one chunk.

        That takes a pass over all rows, so where there are many, or few blocks are asked for, nothing is done.
        """
        wanted = unique(indices)
        if len(wanted) < GATHERED_BLOCKS or self.timeline.rows(self.runs) > GATHERED_FROM:
            return
        parts = self.timeline.parts(self.runs, lambda segment: _picked(segment.table(), wanted))
        table = fold(parts)
        # A large file would bring rows of all its blocks, of which few are read: it is looked up as it is needed.
        # Each block of dnodes once, and how many rows it has.
        values = table.blocks["object"] // np.uint64(SLOTS)
        starts = np.flatnonzero(np.append(True, values[1:] != values[:-1])) if len(values) else np.empty(0, np.int64)
        indices, counts = values[starts], np.diff(np.append(starts, len(values)))
        wanted = wanted[~_are_in(wanted, indices[counts > SCATTERED_ROWS])]
        table = _picked(table, wanted)
        if len(table.objects) + len(table.blocks) <= GATHERED_ROWS:
            self._gathered, self._gathered_blocks = Chunk(table, self.records), frozenset(wanted.tolist())

    def chunk(self, index: int) -> Chunk:
        found = self._chunks.get(index)
        if found is None:
            low, high = self._marks[index], self._marks[index + 1]
            found = self._chunks.put(index, Chunk(self.timeline.state(self.runs, low, high), self.records))
        return found

    def over(self, low: Key, high: Key) -> Iterator[Chunk]:
        """The chunks that may have rows between two keys, in order."""
        # Rows that were gathered for this block of dnodes serve; else the chunks that the keys fall into.
        index = low[0] // SLOTS
        if self._gathered is not None and index in self._gathered_blocks and high <= ((index + 1) * SLOTS, 0):
            yield self._gathered
            return
        first = bisect_right(self._marks, low) - 1
        last = bisect_left(self._marks, high)
        for index in range(max(first, 0), min(last, len(self._marks) - 1)):
            yield self.chunk(index)

    def chunks(self) -> Iterator[Chunk]:
        """All chunks, in order."""
        for index in range(len(self._marks) - 1):
            yield self.chunk(index)

    def ranges(self) -> Array:
        """The rows of all OBJECT_RANGE records, without making chunks."""
        # Rows of metadnode blocks, and freed numbers, by which such blocks die.
        parts = self.timeline.parts(
            self.runs, lambda segment: replace(NOTHING, ranges=segment.rows("ranges"), freed=segment.rows("freed"))
        )
        return fold(parts).ranges

    def numbers(self) -> Array:
        """The numbers of all objects, ascending, without making chunks."""
        parts = self.timeline.parts(
            self.runs, lambda segment: replace(NOTHING, objects=segment.rows("objects"), freed=segment.rows("freed"))
        )
        numbers: Array = fold(parts).objects["object"]
        return numbers

    def leaves(self, number: int, first: int, end: int) -> Array:
        """An object's blocks with first <= offset < end."""
        found = list(self.leaves_by_chunk(number, first, end))
        return np.concatenate(found) if found else np.empty(0, LEAF)

    def leaves_by_chunk(self, number: int, first: int, end: int) -> Iterator[Array]:
        """The same in several arrays: a large object has more blocks than fit in memory."""
        for chunk in self.over((number, first), (number, end)):
            blocks = chunk.table.blocks
            ends = np.array([[number, first], [number, min(end, LAST[1])]], np.uint64)
            low, high = np.searchsorted(keys(blocks["object"], blocks["offset"]), keys(ends[:, 0], ends[:, 1]))
            yield chunk.leaves[low:high]

    def spill(self, number: int, bonustype: int) -> Array:
        """The leaf of an object's spill block, an array of one or none."""
        for chunk in self.over((number, 0), (number + 1, 0)):
            found = chunk.spills[_rows_between(chunk.table.spills, number, 1)]
            if len(found):
                return with_type(found[-1:].copy(), bonustype)
        return np.empty(0, LEAF)

    def bytes_of(self, number: int, count: int = 1) -> int | None:
        """Bytes of the blocks' records of `count` objects from `number` on; None if they lie in many chunks."""
        first, last = bisect_right(self._marks, (number, 0)) - 1, bisect_left(self._marks, (number + count, 0))
        if last - first > CHUNKS:
            return None
        blocks = (chunk.table.blocks for chunk in self.over((number, 0), (number + count, 0)))
        return sum(int(rows["size"][_rows_between(rows, number, count)].sum(dtype=np.uint64)) for rows in blocks)


def _rows_between(rows: Array, number: int, count: int) -> slice:
    first, end = np.searchsorted(rows["object"], np.array([number, number + count], np.uint64))
    return slice(int(first), int(end))


def _picked(table: Table, wanted: Array) -> Table:
    """The rows about these blocks of dnodes; and all that say what was freed."""
    found = {}
    for name in DTYPES.keys() - {"freed"}:
        rows = getattr(table, name)
        found[name] = rows[_are_in(rows["object"] // np.uint64(SLOTS), wanted)]
    return replace(table, **found)


def _are_in(values: Array, wanted: Array) -> Array:
    """np.isin() for values to look for that ascend; without importing numpy.ma."""
    if not len(wanted):
        return np.zeros(len(values), bool)
    return np.asarray(wanted[np.minimum(wanted.searchsorted(values), len(wanted) - 1)] == values)
