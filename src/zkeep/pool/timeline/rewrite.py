"""Rewrite runs: merge several into one, or drop from one what nothing needs.

Slice by slice of the key space the tables of the runs are merged; then rows that later runs of the same stretch
(tiers.py) killed are dropped, too. The records of the rows that stay are copied, checked against their rows, and
stamped as one running fletcher-4 from zero.

An OBJECT row stays even if its record is dropped, with size 0: streams from a bookmark depend on which objects were
newly created, and on how long they were (holes.unseen).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from zkeep.errors import Damaged
from zkeep.format import kernel
from zkeep.format.records import NATIVE
from zkeep.pool.store.port import Draft, Store, segment_name
from zkeep.pool.timeline import segment as seg
from zkeep.pool.timeline import spans as sp
from zkeep.pool.timeline.holes import holds_metadata, unseen
from zkeep.pool.timeline.segment import WANT, Key
from zkeep.pool.timeline.spans import Array, Bools
from zkeep.pool.timeline.table import DTYPES, FRESH_DATA, MAX_SLOTS, NOTHING, Table, concat, extents, fold, merge
from zkeep.pool.timeline.timeline import LAST, Piece, Run, Timeline

CHUNK = 4 << 20
"""Bytes copied at a time; one record may be larger."""
MAX_ROWS = 400_000
"""A segment is closed at this many rows, even if its body is small."""
_RECORDS = ("ranges", "objects", "blocks", "spills")
_STEP = np.dtype(
    [
        ("object", "<u8"),
        ("turn", "u1"),
        ("offset", "<u8"),
        ("pos", "<u8"),
        ("check", "<u8"),
        ("size", "<u4"),
        ("segment", "<u4"),
    ]
)


@dataclass(frozen=True)
class Job:
    """A rewrite: `group` becomes one run. `before`: all runs that lead to it; `later`: those whose kills are garbage.

    `chosen`: the group itself, or runs with only some of its segments, if the others stay as they are.
    """

    group: list[Run]
    chosen: list[Run]
    before: list[Run]
    later: list[Run]
    raw: bool


@dataclass
class Made:
    """The result of a job. `kills`: by the txg of later runs, the stored and logical bytes dropped because of them."""

    segments: list[str] = field(default_factory=list)
    bytes: int = 0
    logical: int = 0
    records: int = 0
    file_bytes: int = 0
    kills: dict[int, list[int]] = field(default_factory=dict)


def rewrite(store: Store, timeline: Timeline, job: Job, txg: int, made: Made) -> None:
    """Write the segments of a job, named after `txg`; each is added to `made` when it is durable."""
    big = {s.big_endian for run in job.chosen for s in timeline.segments(run)}
    with _Output(store, timeline, txg, big_endian=True in big, made=made) as output:
        for table in tables(timeline, job, made):
            output.add(table)
        output.finish()


def tables(timeline: Timeline, job: Job, made: Made) -> Iterator[Table]:
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
            late = _joined(late, _late_holes(timeline, job, parts, low))
            table = replace(table, holes=sp.union(table.holes, _inside(late, low, high)))
        # 3. Drop the rows that later runs killed.
        if job.later and table.rows:
            objects = whole.objects if job.chosen is job.group else timeline.state(job.group, low, high).objects
            table = shed(timeline, table, objects, job.later, made)
        yield joiner.add(table)
    yield joiner.rest()


def slices_of(timeline: Timeline, runs: list[Run], later: list[Run]) -> Iterator[tuple[Table, Array]]:
    """The runs as one table, slice by slice, each row once; and with each all OBJECT rows that reach into the slice."""
    for low, high in timeline.slices([*runs, *later]):
        table = timeline.state(runs, low, high)
        yield _owned(table, low, high), table.objects


def _owned(table: Table, low: Key, high: Key) -> Table:
    """The table without rows of an object that began in the slice before, and with freed numbers cut to this slice."""
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


def _joined(one: Array, other: Array) -> Array:
    return sp.union(one, other) if len(one) and len(other) else other if len(other) else one


class _Joiner:
    """Joins spans that the end of a slice cut: the last span of each table waits for the next slice."""

    _NAMES = ("holes", "died", "freed")

    def __init__(self) -> None:
        self._waiting = {name: sp.EMPTY for name in self._NAMES}

    def add(self, table: Table) -> Table:
        whole = {}
        for name in self._NAMES:
            rows = sp.union(self._waiting[name], getattr(table, name))
            whole[name], self._waiting[name] = rows[:-1], rows[-1:]
        return replace(table, **whole)

    def rest(self) -> Table:
        return replace(NOTHING, **self._waiting)


# Holes that only the merged increment has


def _late_holes(timeline: Timeline, job: Job, parts: list[Table], low: Key) -> Array:
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
    own = _numbers(table)
    objects = _weighed(objects, np.isin(objects["object"], table.objects["object"]))
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
    return replace(
        table,
        ranges=state.ranges[_is_own(state.ranges, own)],
        objects=_ghosts(table.objects, ~np.isin(table.objects["object"], alive)),
        blocks=state.blocks[_is_own(state.blocks, own)],
        spills=state.spills[_is_own(state.spills, own)],
    )


def _weighed(objects: Array, mine: Bools) -> Array:
    """Objects with size 0 where another slice counts them."""
    objects = objects.copy()
    objects["size"][~mine] = 0
    return objects


def _numbers(table: Table) -> Array:
    return sp.unique(np.concatenate([rows["segment"] for rows in table.records()]))


def _is_own(rows: Array, own: Array) -> Bools:
    return np.isin(rows["segment"], own)


def amounts(table: Table, own: Array) -> tuple[int, int]:
    """Stored and logical bytes of the rows in the segments `own`."""
    mine = [rows[_is_own(rows, own)] for rows in table.records()]
    stored = sum(int(rows["size"].sum(dtype=np.uint64)) for rows in mine)
    return stored, sum(int(rows["length"].sum(dtype=np.uint64)) for rows in mine[2:])


def _ghosts(objects: Array, gone: Bools) -> Array:
    objects = objects.copy()
    for name in ("pos", "check", "size"):
        objects[name][gone] = 0
    return objects


def reach(table: Table, objects: Array) -> dict[str, Array]:
    """The key ranges in which rows of later runs can kill rows of `table`."""
    others = [table.ranges["object"], sp.unique(table.blocks["object"]), table.spills["object"]]
    starts = np.concatenate([objects["object"], *others])
    ends = np.concatenate([objects["object"] + np.maximum(objects["slots"], 1), starts[len(objects) :] + 1])
    whole, lines = np.empty(len(starts), WANT), np.empty(len(starts), WANT)
    whole["object"], whole["to_object"] = starts - np.minimum(starts, MAX_SLOTS - 1), ends
    whole["start"], whole["to"] = 0, 0
    lines["object"], lines["start"], lines["to_object"], lines["to"] = 0, starts, 0, ends
    filled = extents(table.blocks)
    blocks = np.empty(len(filled), WANT)
    blocks["object"], blocks["to_object"] = filled["object"], filled["object"]
    blocks["start"], blocks["to"] = filled["start"], filled["end"]
    by_object = {name: whole for name in ("ranges", "objects", "spills")}
    return {**by_object, "blocks": blocks, "holes": blocks, "died": blocks[:0], "freed": lines}


# Copying


class _Output:
    """Writes the new segments. Use as a context manager: leaving it removes an incomplete draft."""

    def __init__(self, store: Store, timeline: Timeline, txg: int, *, big_endian: bool, made: Made) -> None:
        self._store = store
        self._timeline = timeline
        self._txg = txg
        self._big_endian = big_endian
        self._swap = big_endian != (NATIVE == "big")
        self._made = made
        self._buffer = np.empty(0, np.uint8)
        self._draft: Draft | None = None
        self._parts: list[Table] = []
        self._rows = self._records = 0
        self._state = kernel.zero_state()

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *_: object) -> None:
        if self._draft is not None:
            self._draft.discard()
            self._draft = None

    def add(self, table: Table) -> None:
        """Copy the records of a table's rows, and collect the rows for the segment's table."""
        steps, origins = _steps(table)
        first = 0
        while first < len(steps) or (table.rows and not len(steps)):
            last = self._fill(steps[first:]) + first
            done = last >= len(steps)
            piece, table = (table, NOTHING) if done else _split(table, steps[last - 1])
            self._note(piece, steps[first:last], origins[first:last])
            first = last
            if self._full:
                self._close()

    @property
    def _size(self) -> int:
        return self._draft.size if self._draft is not None else seg.HEAD_SIZE

    @property
    def _full(self) -> bool:
        return self._size >= seg.TARGET or self._rows >= MAX_ROWS

    def _fill(self, steps: Array) -> int:
        """Copy steps until the segment is full; returns how many were done, at least one."""
        if self._draft is None:
            self._begin()
        first = 0
        ends = np.cumsum(steps["size"], dtype=np.int64)
        while first < len(steps) and self._size < seg.TARGET and self._rows + first < MAX_ROWS:
            base = int(ends[first - 1]) if first else 0
            last = max(int(np.searchsorted(ends, base + CHUNK, "right")), first + 1)
            last = min(last, first + MAX_ROWS)
            self._copy(steps[first:last])
            first = last
        return first

    def _begin(self) -> None:
        self._draft = self._store.draft(f"{self._txg:x}-{len(self._made.segments):x}")
        self._draft.truncate(0)
        self._draft.write(seg.head((0, 0, 0, 0), big_endian=self._big_endian))
        self._state = kernel.zero_state()

    def _copy(self, steps: Array) -> None:
        draft = self._draft
        assert draft is not None
        # New places: one record behind the other. Rows of size 0 have no record.
        steps["pos"], origins = draft.size, steps["pos"].copy()
        lengths = steps["size"].astype(np.int64)
        offsets = np.cumsum(lengths) - lengths
        steps["pos"] += offsets.astype(np.uint64)
        stored = lengths > 0
        size = int(lengths.sum())
        if len(self._buffer) < size:
            self._buffer = np.empty(max(size, CHUNK), np.uint8)
        buffer: npt.NDArray[np.uint8] = self._buffer[:size]
        steps, origins, offsets, lengths = steps[stored], origins[stored], offsets[stored], lengths[stored]
        # Read, compare each record with its row, stamp the running checksum, write.
        self._read(buffer, steps["segment"], origins.astype(np.int64), offsets, lengths)
        checks, sums = kernel.check(buffer, offsets, lengths, self._swap)
        wrong = np.flatnonzero(checks != steps["check"])
        if len(wrong):
            name = self._timeline.owner(int(steps["segment"][wrong[0]]))[1].name
            raise Damaged(f"{name}: the record at byte {origins[wrong[0]]} is damaged")
        self._state = kernel.stamp(buffer, offsets, lengths, sums, self._swap, self._state)
        draft.write(memoryview(buffer.data))
        self._records += len(steps)

    def _read(
        self, buffer: npt.NDArray[np.uint8], segments: Array, origins: Array, offsets: Array, lengths: Array
    ) -> None:
        """Read records to their places; those that stay adjacent are read in one call."""
        shift = origins - offsets
        turns = np.flatnonzero((shift[1:] != shift[:-1]) | (segments[1:] != segments[:-1])) + 1
        marks = [0, *turns.tolist(), len(offsets)]
        view = memoryview(buffer.data)
        for first, last in pairwise(marks):
            if first < last:
                blob = self._timeline.owner(int(segments[first]))[1].blob
                end = int(offsets[last - 1] + lengths[last - 1])
                blob.readinto(int(origins[first]), view[int(offsets[first]) : end])

    def _note(self, piece: Table, steps: Array, origins: Array) -> None:
        """Collect rows, with their new places."""
        placed = {}
        for turn, name in enumerate(_RECORDS):
            rows = getattr(piece, name).copy()
            rows["pos"] = steps["pos"][origins == turn]
            rows["pos"][rows["size"] == 0] = 0
            rows["segment"] = 0
            placed[name] = rows
        self._parts.append(replace(piece, **placed))
        self._rows += piece.rows

    def _close(self) -> None:
        draft = self._draft
        assert draft is not None
        table = concat(self._parts)
        a, b, c, d = self._state.tolist()
        seg.finish(draft, table, (a, b, c, d), self._records)
        segment_id = f"{self._txg:x}-{len(self._made.segments):x}"
        made = self._made
        made.segments.append(segment_id)
        made.bytes += table.stored
        made.logical += table.logical
        made.records += self._records
        made.file_bytes += draft.size
        draft.publish(segment_name(segment_id))
        self._draft, self._parts, self._rows, self._records = None, [], 0, 0

    def finish(self) -> None:
        if self._rows:
            self._close()
        elif self._draft is not None:
            self._draft.discard()
            self._draft = None


def _steps(table: Table) -> tuple[Array, Array]:
    """The rows with records in the order of the new body, and which of the tables each is from."""
    parts = []
    for turn, rows in enumerate(table.records()):
        steps = np.zeros(len(rows), _STEP)
        steps["turn"] = turn
        for name in ("object", "pos", "check", "size", "segment"):
            steps[name] = rows[name]
        if turn == 2:
            steps["offset"] = rows["offset"]
        parts.append(steps)
    every = np.concatenate(parts)
    every = every[np.lexsort((every["offset"], every["turn"], every["object"]))]
    return every, every["turn"]


def _split(table: Table, last: Array) -> tuple[Table, Table]:
    """Cut a table behind the row of a step."""
    key = int(last["object"]), int(last["turn"]), int(last["offset"])
    before, after = {}, {}
    for name in DTYPES:
        rows = getattr(table, name)
        here = _upto(name, rows, key)
        before[name], after[name] = rows[:here], rows[here:]
    return Table(**before), Table(**after)


def _upto(name: str, rows: Array, key: tuple[int, int, int]) -> int:
    """How many rows of a table do not come after a step's key."""
    number, turn, offset = np.uint64(key[0]), key[1], np.uint64(key[2])
    if name == "freed":
        return int(np.searchsorted(rows["start"], number, "right"))
    low = int(np.searchsorted(rows["object"], number, "left"))
    high = int(np.searchsorted(rows["object"], number, "right"))
    if name in _RECORDS and _RECORDS.index(name) != turn:
        return high if _RECORDS.index(name) < turn else low
    if name == "blocks":
        return low + int(np.searchsorted(rows["offset"][low:high], offset, "right"))
    if name in ("holes", "died"):
        if turn != 2:
            return high if turn > 2 else low
        return low + int(np.searchsorted(rows["start"][low:high], offset, "right"))
    return high
