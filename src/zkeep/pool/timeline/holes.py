"""Which FREE records the kernel sends for the holes of objects, worked out from what a store of streams knows.

An object is a tree of block pointers. Where nothing lives below a pointer there is one hole as large as the pointer's
span, and a send visits holes as wholes. So the ranges that are freed follow from the live blocks, the shape of the
tree and the ranges that became holes since the source of the increment.

Block numbers and spans are Python integers where they can exceed 64 bits.

Source: OpenZFS module/zfs/dmu_send.c send_cb(), do_dump(), dump_free(); module/zfs/dmu_traverse.c traverse_visitbp();
module/zfs/dmu.c dmu_ot[].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from zkeep.format.objtypes import NEW_METADATA, NEW_TYPE
from zkeep.pool.timeline import spans as sp
from zkeep.pool.timeline.spans import Array, Bools
from zkeep.pool.timeline.table import Table, block_ends

_CONTENT = (19, 23, 25, 26, 27, 49)
"Object types whose blocks are not metadata: files, volumes, others (uint8[], uint64[], ZAP), deduplicated."
DEFAULT_INDBLKSHIFT = 17
"What a receiver takes where an OBJECT says 0."


def holds_metadata(types: Array) -> Bools:
    """Whether blocks of objects of these types are metadata: their holes are sent past the last block, too."""
    return np.where(types & NEW_TYPE, types & NEW_METADATA > 0, ~np.isin(types, _CONTENT))


@dataclass(frozen=True, slots=True)
class Shape:
    """The tree of one object."""

    blksz: int
    fan: int
    "Bits of a block number that one level of indirect blocks resolves."
    levels: int
    width: int
    "Block pointers in the dnode."
    maxblkid: int
    metadata: bool

    @classmethod
    def of(cls, row: Array) -> Shape:
        # An indirect block holds block pointers of 128 (2^7) bytes: with 2^indblkshift bytes it resolves shift - 7
        # bits.
        fan = max((int(row["indblkshift"]) or DEFAULT_INDBLKSHIFT) - 7, 1)
        levels, width = max(int(row["nlevels"]), 1), int(row["nblkptr"])
        # A forged maxblkid beyond the tree would make us walk block by block where nothing can be.
        last = min(int(row["maxblkid"]), max(width << (fan * (levels - 1)), 1) - 1)
        return cls(int(row["blksz"]), fan, levels, width, last, bool(holds_metadata(np.array([row["type"]]))[0]))

    @property
    def blocks(self) -> int:
        """Block numbers that the tree can address."""
        return self.width << (self.fan * (self.levels - 1))

    def node(self, block: int, first: int, end: int) -> tuple[int, int, int]:
        """The largest hole of the tree that has `block` in it and lies in [first, end): its start, end and level.

        With 2 bits of fan and the blocks 0 and 1 live, the gap [2, 16) consists of three sizes of holes:

            level 1   |       |  4-7  |  8-11 | 12-15 |     the largest at 4: 4 blocks, from one pointer of level 1
            level 0   |0|1|2|3|                             the largest at 2: itself
        """
        # From the top down: the aligned range that one pointer of this level spans, if all of it is hole.
        for level in range(self.levels - 1, 0, -1):
            start = block >> (self.fan * level) << (self.fan * level)
            stop = start + (1 << (self.fan * level))
            if start >= first and stop <= end:
                return start, stop, level
        return block, block + 1, 0

    def tail(self, first: int) -> tuple[int, int] | None:
        """The block numbers to free behind the last live block, if nothing lives from `first` on."""
        # Metadata blocks are visited up to the tree's end; contents only up to maxblkid, but that last hole is sent
        # whole.
        if self.metadata:
            return (first, self.blocks) if first < self.blocks else None
        if first > self.maxblkid:
            return None
        return first, self.node(self.maxblkid, first, max(self.blocks, self.maxblkid + 1))[1]

    def nodes(self, first: int, end: int, low: int, high: int) -> tuple[int, int] | None:
        """The holes in the gap [first, end) that meet [low, high), as one stretch of block numbers."""
        limit = self.blocks if self.metadata else self.maxblkid + 1
        start = self.node(low, first, end)[0]
        if start >= limit:
            return None
        return start, self.node(min(high, max(limit, low + 1)) - 1, first, end)[1]

    def bytes(self, stretch: tuple[int, int] | None) -> tuple[int, int] | None:
        """A stretch of block numbers as bytes; nothing where its start cannot be expressed."""
        if stretch is None or stretch[0] * self.blksz > sp.END:
            return None
        return stretch[0] * self.blksz, min(stretch[1] * self.blksz, sp.END)


@dataclass
class Open:
    """A gap that crosses the end of a slice: where it begins, and the new holes in it so far."""

    object: int
    start: int
    holes: Array


class Holes:
    """Finds the ranges to free, slice by slice; a gap that crosses a slice's end is carried over to the next one."""

    def __init__(self) -> None:
        self._open: Open | None = None

    def find(self, state: Table, objects: Array, whole: Bools, born: Array, *, cut: int | None) -> Array:
        """The ranges to free, as a span set.

        `objects`: the OBJECT rows that are sent; `whole`: those whose every hole is sent (all of a full stream's, the
        new ones of an increment). `born`: ranges of the others that became holes since the source. `cut`: the object
        that goes on in the next slice.
        """
        # 1. The gaps between live blocks; the first one continues the gap that the slice before left open.
        carried, self._open = self._open, None
        gaps = _gaps(state.blocks, objects, carried)
        born = sp.union(carried.holes, born) if carried is not None else born
        # 2. The last gap of an object that continues in the next slice, and the holes born in it, wait for that.
        last = gaps["last"]
        if cut is not None:
            tail = last & (gaps["object"] == cut)
            start = int(gaps["start"][tail][0]) if tail.any() else 0
            self._open = Open(cut, start, born[(born["object"] == cut) & (born["end"] > start)])
            born = born[(born["object"] != cut) | (born["end"] <= start)]
            gaps, last = gaps[~tail], last[~tail]
        # 3. Where every hole is sent, all gaps are; else only the holes that contain newly born ranges.
        full = np.isin(gaps["object"], objects["object"][whole])
        inner = gaps[full & ~last]
        found = [sp.spans(inner["object"], inner["start"], inner["end"])]
        found.append(_tails(gaps[full & last], objects))
        found.append(_reborn(gaps[~full], objects, born))
        return sp.union(*found)


GAP = np.dtype([("object", "<u8"), ("start", "<u8"), ("end", "<u8"), ("last", "?")])


def _gaps(blocks: Array, objects: Array, carried: Open | None) -> Array:
    """The ranges between live blocks, and the one behind the last, of each object (one row even if it is empty)."""
    # A block's row: the gap before it. An object's row (`tails`): the gap behind its last block. Both in order.
    mine = blocks[np.isin(blocks["object"], objects["object"])]
    ends = block_ends(mine)
    n, m = len(mine), len(objects)
    gaps = np.empty(n + m, GAP)
    after = np.searchsorted(mine["object"], objects["object"], "right")
    at = np.arange(n) + np.searchsorted(objects["object"], mine["object"], "left")
    tails = after + np.arange(m)
    gaps["object"][at], gaps["object"][tails] = mine["object"], objects["object"]
    gaps["end"][at], gaps["end"][tails] = mine["offset"], sp.END
    gaps["last"][at], gaps["last"][tails] = False, True
    # A gap starts where the block of the row before ends, and at 0 in the first row of each object.
    gaps["start"] = 0
    gaps["start"][at + 1] = ends
    gaps["start"][tails[:-1] + 1] = 0
    if carried is not None:
        first = np.searchsorted(gaps["object"], carried.object)
        if first < len(gaps) and gaps["object"][first] == carried.object:
            gaps["start"][first] = carried.start
    return gaps[gaps["last"] | (gaps["start"] < gaps["end"])]


def _rows_of(objects: Array, numbers: Array) -> Array:
    return objects[np.searchsorted(objects["object"], numbers)]


def _tails(gaps: Array, objects: Array) -> Array:
    """The ranges to free behind the last live block, of objects whose every hole is sent."""
    rows = _rows_of(objects, gaps["object"])
    # Contents have nothing to free past their last block; metadata has, up to the end of the tree.
    past = gaps["start"] > rows["maxblkid"] * rows["blksz"]
    wanted = holds_metadata(rows["type"]) | ~past
    found = []
    for gap, row in zip(gaps[wanted], rows[wanted], strict=True):
        shape = Shape.of(row)
        freed = shape.bytes(shape.tail(-(-int(gap["start"]) // shape.blksz)))
        if freed:
            found.append((int(gap["object"]), *freed))
    return np.array(found, sp.SPAN)


def _reborn(gaps: Array, objects: Array, born: Array) -> Array:
    """The holes of the tree that contain the newly born ranges."""
    if not len(born) or not len(gaps):
        return sp.EMPTY
    # The gap that holds a born range is the last one that starts at or before it.
    at = np.searchsorted(sp.keys(gaps["object"], gaps["start"]), sp.keys(born["object"], born["start"]), "right") - 1
    found = []
    for index, span in zip(at, born, strict=True):
        gap = gaps[max(index, 0)]
        if gap["object"] != span["object"]:
            continue
        shape = Shape.of(_rows_of(objects, gap["object"]))
        # From bytes to block numbers: a gap's start is rounded up (a block that is partly live is no hole), the born
        # range outward, because a hole is born with any part of it.
        first, end = -(-int(gap["start"]) // shape.blksz), _block_end(shape, gap)
        low = max(int(span["start"]) // shape.blksz, first)
        high = end if int(span["end"]) == sp.END else min(-(-int(span["end"]) // shape.blksz), end)
        freed = shape.bytes(shape.nodes(first, end, low, high) if low < high else None)
        if freed:
            found.append((int(span["object"]), *freed))
    return np.array(found, sp.SPAN)


def _block_end(shape: Shape, gap: Array) -> int:
    """The gap's end as a block number; the last one has none, so that every level's hole fits."""
    if gap["last"]:
        return max(shape.blocks, shape.maxblkid + 1)
    return int(gap["end"]) // shape.blksz


def unseen(runs: list[Table], state: Table, objects: Array, born: Array) -> Array:
    """Holes that no increment in between had, because they lay past the end of a file that grew later.

    An indirect block was written in one of `runs` when the file still ended before one of the block's holes; the kernel
    finds no birth in such a hole and sends it. Not so where a block ever lived (FREE_RULES B, rule 22). `state` and
    `objects` are those at the end of `runs`; `born` are the ranges known to have become holes in them.
    """
    found = []
    for row in _grown(runs, objects):
        # Candidates: holes of today's tree that start past the file's shortest end.
        windows = _windows(runs, int(row["object"]))
        shape = Shape.of(row)
        for start, stop, level in _late_holes(shape, state, row, min(w[0] for w in windows)):
            # Known as born, or once a block: sent by other rules.
            low, high = shape.bytes((start, stop)) or (0, 0)
            here = np.array([row["object"]]), np.array([low], np.uint64), np.array([high], np.uint64)
            if sp.meets(born, *here)[0] or sp.meets(state.died, *here)[0]:
                continue
            # Sent if the parent was written, and the file ended before the hole each time that it was.
            seen = [end for end, births in windows if _visited(shape, births, start, level)]
            if seen and all(end < start for end in seen):
                found.append((int(row["object"]), low, high))
    return sp.union(np.array(found, sp.SPAN)) if found else sp.EMPTY


def _grown(runs: list[Table], objects: Array) -> Iterator[Array]:
    """Objects with content that were longer at the end of the runs than in one of them."""
    files = objects[~holds_metadata(objects["type"])]
    grown = np.zeros(len(files), bool)
    for table in runs:
        rows = table.objects
        if len(rows):
            # searchsorted() finds where the number would stand; equality says whether it is there.
            at = np.minimum(np.searchsorted(rows["object"], files["object"]), len(rows) - 1)
            grown |= (rows["object"][at] == files["object"]) & (rows["maxblkid"][at] < files["maxblkid"])
    yield from files[grown]


def _windows(runs: list[Table], number: int) -> list[tuple[int, Array]]:
    """For each run that wrote the object: its maxblkid then, and the ranges born then."""
    found = []
    for table in runs:
        rows = table.objects[table.objects["object"] == number]
        # A birth is a block that was written or a hole that was made: either makes the kernel write the indirect
        # block above.
        if len(rows):
            blocks = table.blocks[table.blocks["object"] == number]
            births = sp.spans(blocks["object"], blocks["offset"], block_ends(blocks))
            holes = table.holes[table.holes["object"] == number]
            found.append((int(rows["maxblkid"][0]), np.concatenate([births, holes])))
    return found


def _late_holes(shape: Shape, state: Table, row: Array, after: int) -> Iterator[tuple[int, int, int]]:
    """The tree's holes that start past block `after` and not past the object's last."""
    blocks = state.blocks[state.blocks["object"] == row["object"]]
    for gap in _gaps(blocks, np.array([row]), None):
        first, end = -(-int(gap["start"]) // shape.blksz), _block_end(shape, gap)
        at = max(first, after + 1)
        # Step from hole to hole: node() gives the largest that the tree has at this block.
        while at < min(end, shape.maxblkid + 1):
            start, stop, level = shape.node(at, first, end)
            if start > after:
                yield start, stop, level
            at = stop


def _visited(shape: Shape, births: Array, start: int, level: int) -> bool:
    """Whether the parent of the hole at block `start` of `level` was written together with these births."""
    if level >= shape.levels - 1:
        return True
    shift = shape.fan * (level + 1)
    low = (start >> shift << shift) * shape.blksz
    high = low + (shape.blksz << shift)
    return any(int(b["start"]) < high and int(b["end"]) > low for b in births)
