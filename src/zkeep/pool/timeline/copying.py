"""Copying records into new segments, in the order of their keys, each checked against its row.

Of a record whose row is `bare`, and that has its payload still, only the header is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from zkeep.errors import Damaged
from zkeep.format import kernel
from zkeep.format.records import HEADER, NATIVE
from zkeep.pool.store.port import Draft, Store, segment_name
from zkeep.pool.timeline import segment as seg
from zkeep.pool.timeline.spans import Array, Bools
from zkeep.pool.timeline.table import DTYPES, NOTHING, Table, concat
from zkeep.pool.timeline.timeline import Timeline

CHUNK = 4 << 20
"Bytes copied at a time; one record may be larger."
MAX_ROWS = 400_000
"A segment is closed at this many rows, even if its body is small."
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
        ("drop", "?"),
    ]
)


@dataclass
class Made:
    """The result of a job. `kills`: by the txg of later runs, the stored and logical bytes dropped because of them.

    `dropped`: stored and logical bytes of payloads that went; `lost`: what of them the runs behind the group had
    killed, by their txg. `bare`: the records that have no payload now.
    """

    segments: list[str] = field(default_factory=list)
    bytes: int = 0
    logical: int = 0
    records: int = 0
    file_bytes: int = 0
    kills: dict[int, list[int]] = field(default_factory=dict)
    bare: int = 0
    dropped: list[int] = field(default_factory=lambda: [0, 0])
    lost: dict[int, list[int]] = field(default_factory=dict)


class SegmentOutput:
    """Writes the new segments. Use as a context manager: leaving it removes an incomplete draft."""

    def __init__(
        self, store: Store, timeline: Timeline, txg: int, *, big_endian: bool, made: Made, bare: bool = False
    ) -> None:
        self._store = store
        self._timeline = timeline
        self._txg = txg
        self._big_endian = big_endian
        self._swap = big_endian != (NATIVE == "big")
        self._made = made
        self._bare = bare
        self._buffer = np.empty(0, np.uint8)
        self._draft: Draft | None = None
        self._parts: list[Table] = []
        self._rows = self._records = 0
        self._state = kernel.zero_state()

    def __enter__(self) -> SegmentOutput:
        return self

    def __exit__(self, *_: object) -> None:
        if self._draft is not None:
            self._draft.discard()
            self._draft = None

    def add(self, table: Table) -> None:
        """Copy the records of a table's rows, and collect the rows for the segment's table."""
        # A table may be larger than a segment: fill one, cut the table behind the last row that fitted, go on.
        steps, origins = _steps(table)
        first = 0
        while first < len(steps) or (table.rows and not len(steps)):
            last = self._fill(steps[first:]) + first
            done = last >= len(steps)
            piece, table = (table, NOTHING) if done else _split(table, steps[last - 1])
            self._note(piece, steps[first:last], origins[first:last])
            first = last
            if self._size >= seg.TARGET or self._rows >= MAX_ROWS:
                self._close()

    @property
    def _size(self) -> int:
        return self._draft.size if self._draft is not None else seg.HEAD_SIZE

    def _fill(self, steps: Array) -> int:
        """Copy steps until the segment is full; returns how many were done, at least one."""
        if self._draft is None:
            self._draft = self._store.draft(f"{self._txg:x}-{len(self._made.segments):x}")
            self._draft.truncate(0)
            self._draft.write(seg.head((0, 0, 0, 0), big_endian=self._big_endian, bare=self._bare))
            self._state = kernel.zero_state()
        # Copy in chunks of bounded size; `ends` finds how many steps fit into one without a loop over them.
        first = 0
        ends = np.cumsum(steps["size"], dtype=np.int64)
        while first < len(steps) and self._size < seg.TARGET and self._rows + first < MAX_ROWS:
            base = int(ends[first - 1]) if first else 0
            last = max(int(np.searchsorted(ends, base + CHUNK, "right")), first + 1)
            last = min(last, first + MAX_ROWS)
            self._copy(steps[first:last])
            first = last
        return first

    def _copy(self, steps: Array) -> None:
        draft = self._draft
        assert draft is not None
        # Read, and compare each record with its row. Rows of size 0 have no record.
        stored = np.flatnonzero(steps["size"] > 0)
        origins, lengths = steps["pos"][stored].astype(np.int64), steps["size"][stored].astype(np.int64)
        buffer, offsets, checks, sums = self._fetch(steps[stored], origins, lengths)
        # Of records whose payloads are dropped only the header is written.
        drops = steps["drop"][stored]
        if drops.any():
            buffer, offsets, lengths, checks, sums = self._cut(buffer, offsets, lengths, checks, sums, drops)
            steps["check"][stored], steps["size"][stored] = checks, lengths
        # New places: one record behind the other. Stamp the running checksum, write.
        ends = np.cumsum(steps["size"], dtype=np.int64)
        steps["pos"] = np.uint64(draft.size) + (ends - steps["size"]).astype(np.uint64)
        self._state = kernel.stamp(buffer, offsets, lengths, sums, self._swap, self._state)
        draft.write(memoryview(buffer.data))
        self._records += len(stored)

    def _fetch(self, steps: Array, origins: Array, lengths: Array) -> tuple[npt.NDArray[np.uint8], Array, Array, Array]:
        """Read records, one behind the other: (buffer, where each begins, checks, sums of payloads)."""
        size = int(lengths.sum())
        if len(self._buffer) < size:
            self._buffer = np.empty(max(size, CHUNK), np.uint8)
        buffer: npt.NDArray[np.uint8] = self._buffer[:size]
        offsets = np.cumsum(lengths) - lengths
        self._read(buffer, steps["segment"], origins, offsets, lengths)
        checks, sums = kernel.check(buffer, offsets, lengths, self._swap)
        wrong = np.flatnonzero(checks != steps["check"])
        if len(wrong):
            name = self._timeline.owner(int(steps["segment"][wrong[0]]))[1].name
            raise Damaged(f"{name}: the record at byte {origins[wrong[0]]} is damaged")
        return buffer, offsets, checks, sums

    def _cut(
        self, buffer: npt.NDArray[np.uint8], offsets: Array, lengths: Array, checks: Array, sums: Array, drops: Bools
    ) -> tuple[npt.NDArray[np.uint8], Array, Array, Array, Array]:
        """The same records, one behind the other, with the headers alone of those that `drops` says."""
        short = np.where(drops, HEADER, lengths)
        at = np.cumsum(short) - short
        made = np.empty(int(short.sum()), np.uint8)
        for source, to, size in zip(offsets.tolist(), at.tolist(), short.tolist(), strict=True):
            made[to : to + size] = buffer[source : source + size]
        checks, sums = checks.copy(), sums.copy()
        checks[drops], sums[drops] = kernel.check(made, at[drops], short[drops], self._swap)
        return made, at, short, checks, sums

    def _read(
        self, buffer: npt.NDArray[np.uint8], segments: Array, origins: Array, offsets: Array, lengths: Array
    ) -> None:
        """Read records to their places; those that stay adjacent are read in one call."""
        # Two neighbours can be read together if they lie as far apart on disk as in the buffer, in one segment:
        #
        # disk     ..|A|B|..|C|..     shift(A) = shift(B): one call
        # buffer   |A|B|C|           shift(C) differs: another call
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
        # `steps` has the rows of all four tables in one order; `origins` says which table each came from.
        for turn, name in enumerate(_RECORDS):
            rows = getattr(piece, name).copy()
            for column in ("pos", "check", "size"):
                rows[column] = steps[column][origins == turn]
            # A row without a record (an OBJECT that was killed) has no place.
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
        made.bare += int(np.count_nonzero(table.blocks["bare"]))
        made.file_bytes += draft.size
        # Only now readers can see the segment: its body, tables and footer are complete.
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
            # A block that is marked `bare` and still has more than a header loses its payload on the way.
            steps["drop"] = (rows["bare"] > 0) & (rows["size"] > HEADER)
        parts.append(steps)
    # The order of a stream: by object; its OBJECT before its blocks, blocks by offset, its spill block last.
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
    # Freed numbers have no object of their own; what starts up to the step's object goes before.
    if name == "freed":
        return int(np.searchsorted(rows["start"], number, "right"))
    # Rows [low, high) belong to the step's object. Tables that stand before the step's own in the order of a stream
    # are done with that object, those behind it have not begun it; within its own table the offset decides.
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
