"""What one or more transaction groups did to a dataset, as sorted arrays, and how two such tables add up.

A table says, over some key range: these metadnode blocks, objects, blocks and spill blocks were written, these ranges
became holes, these object numbers were freed. The state of a dataset at a snapshot is the merge of the tables of all
its runs up to it; an increment is the merge of the runs in between; destroying a snapshot means that two runs may be
replaced by their merge. One operation, and it is associative.

Rows of records have their place (`segment`, `pos`, `size`) and `check`, the checksum that identifies their bytes. The
timeline that loaded the table knows which segment a number in `segment` means.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np

from zkeep.format.dnode import SLOTS
from zkeep.format.objtypes import ObjectType
from zkeep.pool.timeline import spans as sp
from zkeep.pool.timeline.spans import Array, Bools

# A row has 24 to 64 bytes and is stored as it is here (little-endian, packed). _PLACE says where its record lies:
#
# pos (8)      byte of the record in its segment
# check (8)    the first word of its fletcher-4, with which a copy is compared
# size (4)     of header and payload; 0: there is no record
# segment (4)  a number that the timeline gives to the segment when it is loaded; 0 in the file
_PLACE = [("pos", "<u8"), ("check", "<u8"), ("size", "<u4"), ("segment", "<u4")]

RANGE = np.dtype([("object", "<u8"), *_PLACE, ("slots", "<u4"), ("pad", "<u4")])
"An OBJECT_RANGE: one metadnode block, which holds the dnodes of `slots` object numbers from `object`."

OBJECT = np.dtype(
    [
        ("object", "<u8"),
        *_PLACE,
        ("maxblkid", "<u8"),
        ("tail", "<u8"),
        ("blksz", "<u4"),
        ("bonuslen", "<u4"),
        ("type", "u1"),
        ("bonustype", "u1"),
        ("slots", "u1"),
        ("indblkshift", "u1"),
        ("nlevels", "u1"),
        ("nblkptr", "u1"),
        ("flags", "u1"),
        ("fresh", "u1"),
    ]
)
"An OBJECT. `tail`: where its FREE to the end starts. `fresh`: what of an older object is not this one's."

BLOCK = np.dtype(
    [
        ("object", "<u8"),
        ("offset", "<u8"),
        *_PLACE,
        ("length", "<u4"),
        ("kind", "u1"),
        ("bare", "u1"),
        ("pad", "V2"),
    ]
)
"""A WRITE, WRITE_EMBEDDED, REDACT (kind = its record type) or, in a table of their own, a SPILL.

`bare`: 1 if the record's payload was dropped (datasets/contents.py): only the WRITE's header is stored.
"""

MAX_SLOTS = SLOTS
"A dnode takes at most this many object numbers."

FRESH_DATA = 1
"A new object: blocks and holes of older tables are not its own."
FRESH_SPILL = 2
"A spill block of older tables is not this object's."

TAILLESS = sp.END
"The `tail` of an OBJECT that came without a FREE to its end."


@dataclass(frozen=True, slots=True)
class Table:
    """Sorted by (object, offset). `holes`, `died` are span sets, `freed` one over object numbers (spans.lines)."""

    ranges: Array
    objects: Array
    blocks: Array
    spills: Array
    holes: Array
    "Ranges that became (or, in a full stream, were) holes; includes `died`."
    died: Array
    "The holes where a block lived before."
    freed: Array
    "FREEOBJECTS as they came."

    @property
    def rows(self) -> int:
        return sum(len(getattr(self, f.name)) for f in fields(self))

    def records(self) -> tuple[Array, Array, Array, Array]:
        """The arrays whose rows stand for stored bytes."""
        return self.ranges, self.objects, self.blocks, self.spills

    @property
    def stored(self) -> int:
        """Bytes of all its records, headers and payloads."""
        return sum(int(part["size"].sum(dtype=np.uint64)) for part in self.records())

    @property
    def hull(self) -> tuple[int, int]:
        """The smallest and the largest object number that any row touches; (1, 0) if there is no row."""
        lows = [int(self.freed["start"][0])] if len(self.freed) else []
        highs = [int(self.freed["end"][-1]) - 1] if len(self.freed) else []
        for name in DTYPES:
            rows = getattr(self, name)
            # Plus MAX_SLOTS: an object or a metadnode block takes numbers behind its own.
            if name != "freed" and len(rows):
                lows.append(int(rows["object"][0]))
                highs.append(int(rows["object"][-1]) + MAX_SLOTS)
        return (min(lows), max(highs)) if lows else (1, 0)

    @property
    def logical(self) -> int:
        """Bytes of the blocks before compression, as far as they are stored."""
        return sum(logical_bytes(part) for part in (self.blocks, self.spills))


def content_numbers(objects: Array) -> Array:
    """The numbers of the objects whose blocks are contents of files and disks.

    A file with an old kind of bonus (before version 5 of the filesystem) may be a link whose block is the target: that
    is none.
    """
    files = (objects["type"] == ObjectType.PLAIN_FILE) & (objects["bonustype"] == ObjectType.SA)
    numbers: Array = objects["object"][files | (objects["type"] == ObjectType.ZVOL)]
    return numbers


def logical_bytes(rows: Array) -> int:
    """Bytes before compression of the blocks whose payloads are stored."""
    return int(rows["length"][rows["bare"] == 0].sum(dtype=np.uint64))


DTYPES = {
    "ranges": RANGE,
    "objects": OBJECT,
    "blocks": BLOCK,
    "spills": BLOCK,
    "holes": sp.SPAN,
    "died": sp.SPAN,
    "freed": sp.SPAN,
}
NOTHING = Table(**{name: np.empty(0, dtype) for name, dtype in DTYPES.items()})


def concat(tables: Iterable[Table]) -> Table:
    """One table of several whose records follow one another.

    What an object lost by becoming shorter lies with its OBJECT, though behind what the next table frees of it.
    """
    every = [t for t in tables if t is not NOTHING]
    if len(every) < 2:
        return every[0] if every else NOTHING
    made = {name: sp.join([getattr(t, name) for t in every]) for name in DTYPES}
    return Table(**{**made, "holes": sp.ordered(made["holes"]), "died": sp.ordered(made["died"])})


def fold(tables: list[Table]) -> Table:
    """Add up tables, oldest first. Neighbours first, so that many small ones do not drag a large one along."""
    while len(tables) > 1:
        # ((1+2)+(3+4))+((5+6)+(7+8)): each row is copied log2(n) times instead of n times.
        pairs = [tables[i : i + 2] for i in range(0, len(tables), 2)]
        tables = [merge(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return tables[0] if tables else NOTHING


def block_ends(blocks: Array) -> Array:
    return sp.reach(blocks["offset"], blocks["length"].astype(np.uint64))


def extents(blocks: Array) -> Array:
    """The ranges that blocks fill, as a span set."""
    return sp.union(sp.spans(blocks["object"], blocks["offset"], block_ends(blocks))) if len(blocks) else sp.EMPTY


@dataclass(frozen=True, slots=True)
class Toll:
    """Which rows of an older table survive a newer one (masks over the older one's arrays)."""

    ranges: Bools
    objects: Bools
    blocks: Bools
    spills: Bools
    holes: Bools
    died: Bools
    lost: Array
    "Object numbers that the older table's dropped rows had taken, beyond what the newer one says itself."


def toll(old: Table, new: Table) -> Toll:
    """Find out which rows of `old` survive what `new` did."""
    # Objects die when one of their slots is freed or becomes part of another object.
    # An object of n slots takes the numbers from its own to its own + n - 1: `inner` are those past the first.
    inner = _inner(new.objects)
    taken = sp.union(new.freed, inner) if len(inner) else new.freed
    covered = overlapped(old.objects, new.objects["object"])
    rewritten = sp.is_in(old.objects["object"], new.objects["object"])
    numbers, zero = old.objects["object"], np.zeros(len(old.objects), np.uint64)
    touched = sp.meets(taken, zero, numbers, numbers + np.maximum(old.objects["slots"], 1))
    gone = np.where(rewritten, sp.on_lines(taken, numbers), touched) | covered
    # Blocks and holes die with their object, or when it is created again; spill blocks likewise.
    dead = np.concatenate([new.objects["object"][new.objects["fresh"] & FRESH_DATA > 0], old.objects["object"][gone]])
    dead_spill = np.concatenate(
        [new.objects["object"][new.objects["fresh"] & FRESH_SPILL > 0], old.objects["object"][gone]]
    )

    def alive(rows: Array, dead: Array) -> Bools:
        return ~(sp.is_in(rows["object"], dead) | sp.on_lines(taken, rows["object"]))

    # Blocks also die under a new block that is not shorter, and inside of new holes.
    blocks = alive(old.blocks, dead)
    blocks &= ~_replaced(old.blocks, new.blocks)
    blocks &= ~sp.within(new.holes, old.blocks["object"], old.blocks["offset"], block_ends(old.blocks))
    return Toll(
        ranges=_ranges_alive(old.ranges, new),
        objects=~(gone | rewritten),
        blocks=blocks,
        spills=alive(old.spills, dead_spill) & ~sp.is_in(old.spills["object"], new.spills["object"]),
        holes=alive(old.holes, dead),
        died=alive(old.died, dead),
        lost=_lost(old.objects, gone & ~rewritten, rewritten, new.objects),
    )


def merge(old: Table, new: Table) -> Table:
    """The table that says at once what `old` and then `new` say."""
    if not old.rows:
        return new
    if not new.rows:
        return old
    # 1. Drop the older rows that the newer table overwrote or freed.
    kept = toll(old, new)
    # 2. A hole of the older table that a new block fills is a hole no longer.
    filled = extents(new.blocks)
    # 3. Numbers freed before are free unless a new object of several slots takes them.
    inner = _inner(new.objects)
    before = sp.union(old.freed, kept.lost) if len(kept.lost) else old.freed
    if len(inner):
        before = sp.subtract(before, inner)
    return Table(
        ranges=interleave(old.ranges[kept.ranges], new.ranges),
        objects=interleave(old.objects[kept.objects], _inherit_fresh(old.objects, new.objects)),
        blocks=interleave_blocks(old.blocks[kept.blocks], new.blocks),
        spills=interleave(old.spills[kept.spills], new.spills),
        holes=sp.add(sp.subtract(old.holes[kept.holes], filled), new.holes),
        died=sp.add(sp.subtract(old.died[kept.died], filled), new.died),
        freed=sp.add(before, new.freed),
    )


def _inner(objects: Array) -> Array:
    """The object numbers that objects of several slots take beyond their own."""
    wide = objects["slots"] > 1
    first = objects["object"][wide]
    return sp.lines(first + 1, first + objects["slots"][wide])


def overlapped(old: Array, numbers: Array) -> Bools:
    """Old objects of several slots in whose inner slots a new object starts."""
    first = np.searchsorted(numbers, old["object"], "right")
    last = np.searchsorted(numbers, old["object"] + np.maximum(old["slots"], 1), "left")
    return np.asarray(last > first)


def _lost(old: Array, gone: Bools, rewritten: Bools, new: Array) -> Array:
    """Slots that old objects had taken from still older ones, and that no new row accounts for."""
    whole, inner = old[gone], old[rewritten & (old["slots"] > 1)]
    # An object that was written again with fewer slots gave the others back.
    if len(inner):
        now = new["slots"][np.searchsorted(new["object"], inner["object"])]
        inner = inner[inner["slots"] > now]
    starts = np.concatenate([whole["object"], inner["object"] + 1])
    ends = np.concatenate([whole["object"] + np.maximum(whole["slots"], 1), inner["object"] + inner["slots"]])
    return sp.lines(starts, ends)


def _replaced(old: Array, new: Array) -> Bools:
    """Old blocks at whose offset a new one lies that is not shorter."""
    if not len(new) or not len(old):
        return np.zeros(len(old), bool)
    have = sp.keys(new["object"], new["offset"])
    want = sp.keys(old["object"], old["offset"])
    at = np.minimum(np.searchsorted(have, want), len(new) - 1)
    return np.asarray((have[at] == want) & (new["length"][at] >= old["length"]))


def _ranges_alive(old: Array, new: Table) -> Bools:
    """A metadnode block dies when it is written again or when all its object numbers are freed."""
    # `freed` is disjoint: the range that starts at or before a block's first number must reach to its last.
    row = np.searchsorted(new.freed["start"], old["object"], "right") - 1
    at = np.maximum(row, 0)
    emptied = np.zeros(len(old), bool)
    if len(new.freed):
        emptied = (row >= 0) & (new.freed["end"][at] >= old["object"] + old["slots"])
    return ~(emptied | sp.is_in(old["object"], new.ranges["object"]))


def _inherit_fresh(old: Array, new: Array) -> Array:
    """Newer rows of an object inherit `fresh` from its older row."""
    if not len(old) or not len(new):
        return new
    at = np.minimum(np.searchsorted(old["object"], new["object"]), len(old) - 1)
    fresh = np.where(old["object"][at] == new["object"], old["fresh"][at], 0)
    if not fresh.any():
        return new
    merged = new.copy()
    merged["fresh"] |= fresh.astype(np.uint8)
    return merged


def interleave(old: Array, new: Array) -> Array:
    if not len(old) or not len(new):
        return new if len(new) else old
    return np.insert(old, np.searchsorted(old["object"], new["object"]), new)


def interleave_blocks(old: Array, new: Array) -> Array:
    if not len(old) or not len(new):
        return new if len(new) else old
    place = np.searchsorted(sp.keys(old["object"], old["offset"]), sp.keys(new["object"], new["offset"]), "right")
    return np.insert(old, place, new)
