"""Resolve a new table against the past.

A stream says what changed; some of it follows only from what was there before: an object whose shape changed loses its
old blocks, a file that became shorter lost blocks. This is resolved once, when a segment of the new run is closed, so
that the merge of tables needs no rules about shapes. The same search of the past gives what the new run kills: the
figures for space accounting.

Source: OpenZFS module/zfs/dmu_recv.c, receive_handle_existing_object(), receive_object(), flush_write_batch_impl().
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from zkeep.format.limits import pointers_beside
from zkeep.format.objtypes import ObjectType
from zkeep.pool.timeline import spans as sp
from zkeep.pool.timeline.segment import WANT
from zkeep.pool.timeline.spans import Array, Bools
from zkeep.pool.timeline.table import (
    FRESH_DATA,
    FRESH_SPILL,
    MAX_SLOTS,
    TAILLESS,
    Table,
    Toll,
    block_ends,
    extents,
    fold,
    logical_bytes,
    overlapped,
    toll,
)
from zkeep.pool.timeline.timeline import Piece, Run, Timeline

Dead = dict[int, list[int]]
"The stored and logical bytes of records that died, by the txg of the older run that wrote them."


@dataclass(frozen=True)
class Kind:
    """The features of the stream that matter here."""

    raw: bool
    grows_blocks: bool = False
    "The first stream with large blocks onto a dataset without: files keep their old blocks."


def beginning(new: Table) -> Table:
    """A table with no past: every object is new."""
    objects = new.objects.copy()
    objects["fresh"] = FRESH_DATA | FRESH_SPILL
    return replace(new, objects=objects)


def resolve(new: Table, timeline: Timeline, past: list[Run], kind: Kind) -> tuple[Table, Dead]:
    """Resolve `new` against the runs `past`; returns the resolved table, and what it kills of them."""
    if not past:
        return beginning(new), {}
    pieces = timeline.pieces(past)
    # 1. The older objects with the numbers of new ones: a new shape means that old blocks are not the new object's.
    shapes = look_back(timeline, pieces, Shapes(touched(new, kind), kind.raw))
    new = replace(new, objects=_mark_fresh(new, shapes, kind))
    # 2. The older blocks in the ranges that the new table overwrites, frees or cuts off.
    content = look_back(timeline, pieces, _Content(new, shapes, kind))
    # 3. Where they die without being replaced, they leave holes. 4. What died is counted by the run that wrote it.
    old = replace(content, objects=shapes.objects, ranges=shapes.ranges, freed=shapes.freed)
    new = _add_died(old, new, kind)
    return new, _dead(lambda number: timeline.owner(number)[0].txg, old, toll(old, new))


def resolve_beside(
    new: Table, old: Table, kind: Kind, txg_of: Callable[[int], int], unknown: Array
) -> tuple[Table, Dead, Toll] | None:
    """Resolve `new` where all that lives of the objects that it touches is known: `old`.

    `txg_of`: the run of a row, by its `segment`. `unknown`: numbers of objects whose blocks are not in `old`; None if
    they are needed. Also returns which rows of `old` live on.
    """
    new = replace(new, objects=_mark_fresh(new, old, kind))
    if len(unknown) and sp.on_lines(unknown, _Content(new, old, kind).objects).any():
        return None
    new = _add_died(old, new, kind)
    kept = toll(old, new)
    return new, _dead(txg_of, old, kept), kept


class Search(Protocol):
    """A search of older runs, newest first; it remembers what has not been found yet."""

    def wanted(self) -> dict[str, Array]:
        """The key ranges still to be searched, by table (rows of WANT); empty when the search is complete."""
        ...

    def settle(self, found: Table) -> None:
        """Note what a run had: older runs need not be searched for the same."""
        ...


def look_back(timeline: Timeline, pieces: list[Piece], search: Search) -> Table:
    """Search piece after piece, newest first, until the search is complete: most of what changes changed lately."""
    found = []
    wanted = search.wanted()
    for piece in reversed(pieces):
        if not wanted:
            break
        table = _inside(timeline.nearby(piece, wanted), wanted)
        if table.rows:
            found.append(table)
            search.settle(table)
            wanted = search.wanted()
    return fold(found[::-1])


def _inside(found: Table, wanted: dict[str, Array]) -> Table:
    """The found rows without records that touch nothing wanted: what newer runs did to those was not searched for."""
    kept = {}
    for name in ("ranges", "objects", "blocks", "spills"):
        rows = getattr(found, name)
        if not len(rows):
            continue
        lows = np.sort(sp.keys(wanted[name]["object"], wanted[name]["start"]))
        highs = np.sort(sp.keys(wanted[name]["to_object"], wanted[name]["to"]))
        starts = rows["offset"] if name == "blocks" else np.zeros(len(rows), np.uint64)
        ends = block_ends(rows) if name == "blocks" else np.ones(len(rows), np.uint64)
        # The first wanted range that ends behind the row's start must begin before the row's end.
        at = np.searchsorted(highs, sp.keys(rows["object"], starts), "right")
        begun = np.searchsorted(lows, sp.keys(rows["object"], ends), "left")
        kept[name] = rows[at < begun]
    return replace(found, **kept) if kept else found


def _wants(objects: Array, starts: Array, to_objects: Array, to: Array) -> Array:
    made = np.empty(len(objects), WANT)
    made["object"], made["start"], made["to_object"], made["to"] = objects, starts, to_objects, to
    return made


def by_object(lines: Array) -> Array:
    """The key ranges of all rows of the objects in a set of numbers."""
    zero = np.zeros(len(lines), np.uint64)
    return _wants(lines["start"], zero, lines["end"], zero)


def by_number(lines: Array) -> Array:
    """The key ranges of freed numbers in a set of numbers."""
    zero = np.zeros(len(lines), np.uint64)
    return _wants(zero, lines["start"], zero, lines["end"])


def touched(new: Table, kind: Kind) -> Array:
    """The object numbers of which older rows may be replaced, as a set of numbers."""
    objects = new.objects["object"]
    starts = np.concatenate([objects, new.freed["start"], new.ranges["object"]])
    ends = np.concatenate([objects + new.objects["slots"], new.freed["end"], new.ranges["object"] + 1])
    # An object of several slots may have begun before the number that is overwritten: look back as far as one can.
    reach = starts % MAX_SLOTS if kind.raw else np.minimum(starts, MAX_SLOTS - 1)
    return sp.union(sp.lines(starts - reach, ends)) if len(starts) else sp.EMPTY


class Shapes:
    """Searches for the older objects and metadnode blocks that new ones replace.

    In a raw stream a metadnode block covers all its objects, present or not; else each object is searched by itself.
    """

    def __init__(self, numbers: Array, raw: bool) -> None:
        self._open = numbers
        self._raw = raw

    def wanted(self) -> dict[str, Array]:
        if not len(self._open):
            return {}
        rows = by_object(self._open)
        return {"ranges": rows, "objects": rows, "freed": by_number(self._open)}

    def settle(self, found: Table) -> None:
        # A number is settled when its newest row was found, or a run freed it: older rows of it are dead already.
        rows = found.ranges if self._raw else found.objects
        covered = sp.lines(rows["object"], rows["object"] + rows["slots"])
        self._open = sp.subtract(self._open, sp.join([covered, found.freed]))


class _Content:
    """Searches for the blocks that the new table may kill: by overwriting, a hole, a new end, or with their object."""

    def __init__(self, new: Table, shapes: Table, kind: Kind) -> None:
        # Objects that lose everything: one with inner slots taken by a new one, a freed one, one with a new shape.
        covered = shapes.objects[overlapped(shapes.objects, new.objects["object"])]["object"]
        freed = shapes.objects["object"][sp.on_lines(new.freed, shapes.objects["object"])]
        fresh = new.objects["object"][new.objects["fresh"] & FRESH_DATA > 0]
        whole = np.concatenate([covered, freed, fresh[sp.is_in(fresh, shapes.objects["object"])]])
        # Ranges of the others that lose something, and objects whose spill block may be replaced.
        everything = sp.spans(whole, np.zeros(len(whole), np.uint64), np.full(len(whole), sp.END, np.uint64))
        self._open = sp.union(everything, _cut_off(new, shapes, kind), extents(new.blocks), new.holes)
        mine = sp.is_in(shapes.objects["object"], np.concatenate([whole, new.objects["object"]]))
        self._spills = sp.unique(shapes.objects["object"][mine])

    @property
    def objects(self) -> Array:
        """The objects of which blocks are searched for."""
        found: Array = self._open["object"]
        return found

    def wanted(self) -> dict[str, Array]:
        ranges = _wants(self._open["object"], self._open["start"], self._open["object"], self._open["end"])
        rows = by_object(sp.union(sp.lines(self._spills, self._spills + 1))) if len(self._spills) else ranges[:0]
        if not len(ranges) and not len(rows):
            return {}
        # The OBJECT rows and freed numbers of the same objects are needed, too: they say where the search ends.
        numbers = sp.union(sp.lines(ranges["object"], ranges["object"] + 1), sp.lines(self._spills, self._spills + 1))
        objects, freed = by_object(numbers), by_number(numbers)
        return {"objects": objects, "freed": freed, "blocks": ranges, "holes": ranges, "died": ranges, "spills": rows}

    def settle(self, found: Table) -> None:
        # An object that a run created has nothing older; neither has a range that it wrote or made a hole.
        begun = found.objects["object"][found.objects["fresh"] & FRESH_DATA > 0]
        bare = found.objects["object"][found.objects["fresh"] & FRESH_SPILL > 0]
        gone = sp.is_in(self._open["object"], begun) | sp.on_lines(found.freed, self._open["object"])
        self._open = sp.subtract(self._open[~gone], sp.join([extents(found.blocks), found.holes]))
        self._spills = self._spills[
            ~sp.is_in(self._spills, np.concatenate([found.spills["object"], bare]))
            & ~sp.on_lines(found.freed, self._spills)
        ]


def _cut_off(new: Table, shapes: Table, kind: Kind) -> Array:
    """The ranges behind the new end of objects that became shorter."""
    old = shapes.objects
    if not len(old):
        return sp.EMPTY
    # Pair each new OBJECT with the older one of its number, where there is one.
    at = np.minimum(np.searchsorted(old["object"], new.objects["object"]), len(old) - 1)
    ends, were = ends_of(new.objects, kind), ends_of(old, kind)[at]
    shorter = (old["object"][at] == new.objects["object"]) & (ends < were)
    return sp.spans(new.objects["object"][shorter], ends[shorter], were[shorter])


def _mark_fresh(new: Table, shapes: Table, kind: Kind) -> Array:
    """The new OBJECT rows, with `fresh` set where data or spill of the older object do not live on (FREE_RULES E)."""
    objects = new.objects.copy()
    old = shapes.objects
    at = np.minimum(np.searchsorted(old["object"], objects["object"]), max(len(old) - 1, 0))
    if not len(old):
        objects["fresh"] = FRESH_DATA | FRESH_SPILL
        return objects
    # An object without an older one, or one whose number was freed before, is fresh altogether.
    was = old[at]
    known = (was["object"] == objects["object"]) & ~sp.on_lines(new.freed, objects["object"])
    slots = was["slots"] != objects["slots"]
    # The kernel frees the old content if the new dnode has other slots, fewer pointers or another block size ...
    data = slots | (_nblkptr(objects) < _nblkptr(was)) | _blocks_resized(was, objects, kind)
    spill = slots
    # ... and, in a raw stream, if the tree changes in a way that MACs could not survive.
    if kind.raw:
        indirect = was["indblkshift"] != objects["indblkshift"]
        lower = objects["nlevels"] < was["nlevels"]
        data |= indirect | lower
        spill |= lower | (indirect & (was["nlevels"] > 1))
    data, spill = data | ~known, spill | ~known
    objects["fresh"] |= np.where(data, FRESH_DATA, 0).astype(np.uint8)
    objects["fresh"] |= np.where(spill, FRESH_SPILL, 0).astype(np.uint8)
    return objects


def _blocks_resized(was: Array, objects: Array, kind: Kind) -> Bools:
    differs: Bools = was["blksz"] != objects["blksz"]
    if kind.raw or not kind.grows_blocks:
        return differs
    # A stream with large blocks onto a dataset without them names a larger block size for files that keep their
    # blocks.
    files = (was["type"] == ObjectType.PLAIN_FILE) & (objects["type"] == ObjectType.PLAIN_FILE)
    return np.asarray(differs & ~(files & (was["tail"] > was["blksz"]) & (objects["blksz"] > was["blksz"])))


def _nblkptr(objects: Array) -> Array:
    return pointers_beside(objects["bonustype"], objects["bonuslen"], objects["slots"])


def ends_of(objects: Array, kind: Kind) -> Array:
    """Where each object's blocks end now."""
    if not kind.raw:
        return objects["tail"]
    # Raw OBJECTs name their last block; plain ones are followed by a FREE to the end, whose start is in `tail`.
    # An end past 2^64 is no end.
    ends = (objects["maxblkid"] + 1) * objects["blksz"]
    return np.where(objects["maxblkid"] < np.uint64(sp.END) // np.maximum(objects["blksz"], 1), ends, TAILLESS)


def _add_died(old: Table, new: Table, kind: Kind) -> Table:
    """Add to `new` the holes that dead blocks of living objects leave (`died`)."""
    cut = _cut_off(new, old, kind)  # the search covered only a part of what lies beyond
    if not len(cut) and not len(new.holes):
        return new
    # Blocks of objects that live on, before holes and new blocks are applied.
    alive = toll(old, replace(new, holes=sp.EMPTY, blocks=new.blocks[:0])).blocks
    blocks = old.blocks[alive]
    cut = cut[~sp.is_in(cut["object"], new.objects["object"][new.objects["fresh"] & FRESH_DATA > 0])]
    # They die in a hole that came, or behind the new end; but not where a new block replaces them.
    ends = block_ends(blocks)
    dead = sp.within(new.holes, blocks["object"], blocks["offset"], ends)
    dead |= sp.within(cut, blocks["object"], blocks["offset"], ends)
    died = sp.union(sp.spans(blocks["object"][dead], blocks["offset"][dead], ends[dead])) if dead.any() else sp.EMPTY
    died = sp.subtract(died, extents(new.blocks))
    return replace(new, died=died, holes=sp.union(new.holes, died) if len(died) else new.holes)


def _dead(txg_of: Callable[[int], int], old: Table, kept: Toll) -> Dead:
    stored: dict[int, int] = defaultdict(int)
    logical: dict[int, int] = defaultdict(int)
    for rows, alive in (
        (old.ranges, kept.ranges),
        (old.objects, kept.objects),
        (old.blocks, kept.blocks),
        (old.spills, kept.spills),
    ):
        # Count what died by the run that brought it; its document says how much of it later runs killed.
        gone = rows[~alive]
        for number in sp.unique(gone["segment"]):
            txg = txg_of(int(number))
            mine = gone[gone["segment"] == number]
            stored[txg] += int(mine["size"].sum(dtype=np.uint64))
            if "length" in (rows.dtype.names or ()):
                logical[txg] += logical_bytes(mine)
    return {txg: [stored[txg], logical[txg]] for txg in stored}
