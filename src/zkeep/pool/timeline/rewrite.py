"""Rewrite runs: merge several into one, or drop from one what nothing needs.

Slice by slice of the key space the tables of the runs are merged; then rows that later runs of the same stretch
(tiers.py) killed are dropped, too. The records of the rows that stay are copied, checked against their rows, and
stamped as one running fletcher-4 from zero.

An OBJECT row stays even if its record is dropped, with size 0: streams from a bookmark depend on which objects were
newly created, and on how long they were (holes.unseen).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from zkeep.format.records import HEADER, RecordType
from zkeep.pool.store.port import Store
from zkeep.pool.timeline import spans as sp
from zkeep.pool.timeline.copying import Made, SegmentOutput
from zkeep.pool.timeline.holes import holds_metadata, unseen
from zkeep.pool.timeline.segment import WANT, Key
from zkeep.pool.timeline.spans import Array, Bools
from zkeep.pool.timeline.table import (
    DTYPES,
    FRESH_DATA,
    MAX_SLOTS,
    NOTHING,
    Table,
    content_numbers,
    extents,
    fold,
    logical_bytes,
    merge,
)
from zkeep.pool.timeline.timeline import LAST, Piece, Run, Timeline


@dataclass(frozen=True)
class Drops:
    """The payloads of file contents go. `after`: all runs behind the group, which may have killed some of its rows."""

    after: list[Run]


@dataclass(frozen=True)
class RewriteJob:
    """A rewrite: `group` becomes one run. `before`: all runs that lead to it; `later`: those whose kills are garbage.

    `chosen`: the group itself, or runs with only some of its segments, if the others stay as they are.
    """

    group: list[Run]
    chosen: list[Run]
    before: list[Run]
    later: list[Run]
    raw: bool
    drops: Drops | None = None
    "Set if payloads of file contents are dropped."


def rewrite(store: Store, timeline: Timeline, job: RewriteJob, txg: int, made: Made) -> None:
    """Write the segments of a job, named after `txg`; each is added to `made` when it is durable."""
    segments = [s for run in job.chosen for s in timeline.segments(run)]
    # All segments of a group have one byte order: a run with another one is not grouped with them.
    big = {s.big_endian for s in segments}
    bare = job.drops is not None or any(s.bare for s in segments)
    with SegmentOutput(store, timeline, txg, big_endian=True in big, made=made, bare=bare) as output:
        for table in tables(timeline, job, made):
            output.add(table)
        output.finish()


def tables(timeline: Timeline, job: RewriteJob, made: Made) -> Iterator[Table]:
    """The resulting tables of a job, slice by slice; spans that a slice's end cuts are joined again."""
    joiner = _Joiner()
    late = sp.EMPTY
    for low, high in timeline.slices([*job.chosen, *job.later]):
        # 1. Merge the slice; rows of an object that began in the slice before belong to that.
        parts = timeline.states(job.chosen, low, high)
        whole = fold(parts)
        table = _owned(whole, low, high)
        # 2. Add the holes that an increment over the merged run has, and none of its runs had.
        if job.raw and job.before and len(parts) > 1:
            late = sp.add(late, _late_holes(timeline, job, parts, low))
            table = replace(table, holes=sp.union(table.holes, _inside(late, low, high)))
        # 3. Drop the rows that later runs killed.
        if job.later and table.rows:
            objects = whole.objects if job.chosen is job.group else timeline.state(job.group, low, high).objects
            table = shed(timeline, table, objects, job.later, made)
        # 4. Mark the payloads that are to be dropped.
        if job.drops is not None and len(table.blocks):
            objects = whole.objects if job.chosen is job.group else timeline.state(job.group, low, high).objects
            table = _without_payloads(timeline, table, objects, job.drops, made)
        yield joiner.add(table)
    yield joiner.rest()


def slices_of(timeline: Timeline, runs: list[Run], later: list[Run]) -> Iterator[tuple[Table, Array]]:
    """The runs as one table, slice by slice, each row once; and with each all OBJECT rows that reach into the slice."""
    for low, high in timeline.slices([*runs, *later]):
        table = timeline.state(runs, low, high)
        yield _owned(table, low, high), table.objects


def _owned(table: Table, low: Key, high: Key) -> Table:
    """The table without rows of an object that began in the slice before, and with freed numbers cut to this slice."""
    # slice        low |---------------| high     `low` cuts object 7: its OBJECT row belongs to the slice before,
    # objects    |==== 7 ====|== 8 ==|            its blocks from `low` on belong here
    first = low[0] + 1 if low[1] else low[0]
    beyond = high[0] + 1 if high[1] and high != LAST else high[0]
    freed = table.freed.copy()
    freed["start"] = np.maximum(freed["start"], np.uint64(first))
    freed["end"] = np.minimum(freed["end"], np.uint64(beyond))
    return replace(
        table,
        ranges=table.ranges[table.ranges["object"] >= first],
        objects=table.objects[table.objects["object"] >= first],
        spills=table.spills[table.spills["object"] >= first],
        freed=freed[freed["start"] < freed["end"]],
    )


def _inside(spans: Array, low: Key, high: Key) -> Array:
    """The parts of spans that lie in a slice."""
    spans = spans[(spans["object"] >= low[0]) & (spans["object"] <= high[0])].copy()
    first, last = spans["object"] == low[0], (spans["object"] == high[0]) & (high != LAST)
    spans["start"][first] = np.maximum(spans["start"][first], np.uint64(low[1]))
    spans["end"][last] = np.minimum(spans["end"][last], np.uint64(high[1]))
    return spans[spans["start"] < spans["end"]]


class _Joiner:
    """Joins spans that the end of a slice cut: the last span of each table waits for the next slice."""

    _NAMES = ("holes", "died", "freed")

    def __init__(self) -> None:
        self._waiting = {name: sp.EMPTY for name in self._NAMES}

    def add(self, table: Table) -> Table:
        whole = {}
        for name in self._NAMES:
            # All but the last span are final; the last may go on in the next slice.
            rows = sp.union(self._waiting[name], getattr(table, name))
            whole[name], self._waiting[name] = rows[:-1], rows[-1:]
        return replace(table, **whole)

    def rest(self) -> Table:
        return replace(NOTHING, **self._waiting)


# Holes that only the merged increment has


def _late_holes(timeline: Timeline, job: RewriteJob, parts: list[Table], low: Key) -> Array:
    """The holes that an increment over the whole group has and none of its runs had (FREE_RULES B, rule 22)."""
    # Only files that grew and did not fill what they grew by can have such holes.
    numbers = _sparsely_grown(parts, low)
    if not len(numbers):
        return sp.EMPTY
    # All rows of these objects, of the runs of the group and of those before.
    zero = np.zeros(len(numbers), np.uint64)
    whole = np.empty(len(numbers), WANT)
    whole["object"], whole["start"], whole["to_object"], whole["to"] = numbers, zero, numbers + 1, zero
    reach = whole.copy()
    reach["object"] -= np.minimum(reach["object"], np.uint64(MAX_SLOTS - 1))
    lines = np.empty(len(numbers), WANT)
    lines["object"], lines["start"], lines["to_object"], lines["to"] = 0, numbers, 0, numbers + 1
    wanted = {name: whole for name in DTYPES} | {"objects": reach, "freed": lines}
    names = ("objects", "blocks", "holes", "died", "freed")
    windows = timeline.near(job.group, names, wanted)
    delta = fold(list(windows))
    state = merge(fold(timeline.near(job.before, names, wanted)), delta)
    # New objects send all their holes in any case.
    objects = state.objects[np.isin(state.objects["object"], numbers)]
    begun = delta.objects["object"][delta.objects["fresh"] & FRESH_DATA > 0]
    objects = objects[~np.isin(objects["object"], begun)]
    born = delta.holes[np.isin(delta.holes["object"], objects["object"])]
    return unseen(windows, state, objects, born)


def _sparsely_grown(parts: list[Table], low: Key) -> Array:
    """The objects that grew between runs, and did not fill what they grew by."""
    rows = np.concatenate([part.objects for part in parts])
    rows = rows[~holds_metadata(rows["type"]) & ((rows["object"] > low[0]) | (low[1] == 0))]
    if not len(rows):
        return np.empty(0, np.uint64)
    # Shortest and last length of each object, over all runs.
    rows = rows[np.argsort(rows["object"], kind="stable")]
    first = np.flatnonzero(np.append(True, rows["object"][1:] != rows["object"][:-1]))
    shortest = np.minimum.reduceat(rows["maxblkid"], first)
    last = np.append(first[1:], len(rows)) - 1
    longest, blksz = rows["maxblkid"][last], rows["blksz"][last].astype(np.uint64)
    numbers = rows["object"][first]
    grown = longest > shortest
    numbers, shortest, longest, blksz = numbers[grown], shortest[grown], longest[grown], blksz[grown]
    # Sparse: fewer blocks between the two ends than block numbers.
    blocks = sp.unique(np.concatenate([sp.keys(p.blocks["object"], p.blocks["offset"]) for p in parts]))
    have = np.searchsorted(blocks, sp.keys(numbers, _bytes(longest, blksz)), "right")
    had = np.searchsorted(blocks, sp.keys(numbers, _bytes(shortest, blksz)), "right")
    sparse: Array = numbers[(have - had).astype(np.uint64) < longest - shortest]
    return sparse


def _bytes(blocks: Array, blksz: Array) -> Array:
    """Offsets of blocks, at most END."""
    return np.where(blocks <= np.uint64(sp.END) // np.maximum(blksz, 1), blocks * blksz, np.uint64(sp.END))


# What later runs killed


def shed(timeline: Timeline, table: Table, objects: Array, later: list[Run], made: Made | None = None) -> Table:
    """Drop the rows that the later runs, taken together, kill.

    `objects`: all OBJECT rows of the runs of `table`, those that it leaves to its neighbours included.
    """
    # An object that the slice shares with its neighbour counts only in one of them.
    own = sp.unique(np.concatenate([rows["segment"] for rows in table.records()]))
    objects = objects.copy()
    objects["size"][~np.isin(objects["object"], table.objects["object"])] = 0
    wanted = reach(table, objects)
    state = replace(table, objects=objects)
    # Merge with one later run after the other: what each step removes is what that run killed.
    before = amounts(state, own)
    for run in later:
        state = merge(state, timeline.nearby(Piece([run]), wanted))
        after = amounts(state, own)
        if made is not None:
            kills = made.kills.setdefault(run.txg, [0, 0])
            kills[0] += before[0] - after[0]
            kills[1] += before[1] - after[1]
        before = after
    # Records of dead objects go, their rows stay.
    alive = state.objects["object"][_is_own(state.objects, own)]
    left = table.objects.copy()
    for name in ("pos", "check", "size"):
        left[name][~np.isin(left["object"], alive)] = 0
    return replace(
        table,
        ranges=state.ranges[_is_own(state.ranges, own)],
        objects=left,
        blocks=state.blocks[_is_own(state.blocks, own)],
        spills=state.spills[_is_own(state.spills, own)],
    )


def _is_own(rows: Array, own: Array) -> Bools:
    return np.isin(rows["segment"], own)


def amounts(table: Table, own: Array) -> tuple[int, int]:
    """Stored and logical bytes of the rows in the segments `own`."""
    mine = [rows[_is_own(rows, own)] for rows in table.records()]
    stored = sum(int(rows["size"].sum(dtype=np.uint64)) for rows in mine)
    return stored, sum(logical_bytes(rows) for rows in mine[2:])


def reach(table: Table, objects: Array) -> dict[str, Array]:
    """The key ranges in which rows of later runs can kill rows of `table`."""
    others = [table.ranges["object"], sp.unique(table.blocks["object"]), table.spills["object"]]
    # An object dies by an OBJECT or FREEOBJECTS of any of its slots, from up to 31 numbers before it ...
    starts = np.concatenate([objects["object"], *others])
    ends = np.concatenate([objects["object"] + np.maximum(objects["slots"], 1), starts[len(objects) :] + 1])
    whole, lines = np.empty(len(starts), WANT), np.empty(len(starts), WANT)
    whole["object"], whole["to_object"] = starts - np.minimum(starts, MAX_SLOTS - 1), ends
    whole["start"], whole["to"] = 0, 0
    lines["object"], lines["start"], lines["to_object"], lines["to"] = 0, starts, 0, ends
    # ... a block by a block or a hole over its own range.
    filled = extents(table.blocks)
    blocks = np.empty(len(filled), WANT)
    blocks["object"], blocks["to_object"] = filled["object"], filled["object"]
    blocks["start"], blocks["to"] = filled["start"], filled["end"]
    by_object = {name: whole for name in ("ranges", "objects", "spills")}
    return {**by_object, "blocks": blocks, "holes": blocks, "died": blocks[:0], "freed": lines}


# Payloads


def _without_payloads(timeline: Timeline, table: Table, objects: Array, drops: Drops, made: Made) -> Table:
    """Mark the blocks of file contents as `bare`; they still have the size of the record that is there."""
    rows = table.blocks
    mine = np.isin(rows["object"], content_numbers(objects))
    mine &= (rows["kind"] == RecordType.WRITE) & (rows["size"] > HEADER)
    if not mine.any():
        return table
    payloads = rows[mine]
    payloads["size"] -= np.uint32(HEADER)
    made.dropped[0] += int(payloads["size"].sum(dtype=np.uint64))
    made.dropped[1] += logical_bytes(payloads)
    # Runs behind the group say how many bytes they killed of it: as many less as are in payloads.
    weightless = objects.copy()
    weightless["size"] = 0
    killed = Made(kills=made.lost)
    shed(timeline, replace(NOTHING, objects=weightless, blocks=payloads), weightless, drops.after, killed)
    rows = rows.copy()
    rows["bare"][mine] = 1
    return replace(table, blocks=rows)
