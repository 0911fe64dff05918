"""Stored records, read from where a timeline's rows say they lie: headers alone, or whole.

Records that lie near one another are read together, others one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from zkeep.crypto.mactree import runs_of
from zkeep.errors import Damaged
from zkeep.format import kernel
from zkeep.format.records import HEADER, LAYOUTS, NATIVE, ByteOrder, RecordType
from zkeep.pool.timeline.spans import Array, unique
from zkeep.pool.timeline.timeline import Timeline
from zkeep.snapshot.errors import BadRecord

GAP = 8 << 10
"Bytes between two records that are read along, rather than beginning another read."
PIECE = 1 << 20
"Bytes of one read at most, unless a record is larger."


class Packed(NamedTuple):
    """Pieces of bytes, back to back: where each starts, and how many bytes it has."""

    content: Array
    starts: Array
    sizes: Array

    @classmethod
    def of(cls, sizes: Array) -> Packed:
        """Allocate room for pieces of these sizes."""
        ends = np.cumsum(sizes, dtype=np.int64)
        return cls(np.empty(int(ends[-1]) if len(ends) else 0, np.uint8), ends - sizes, sizes)

    def at(self, index: int) -> memoryview:
        start = int(self.starts[index])
        return self.content.data[start : start + int(self.sizes[index])]

    def cut(self, skip: int, sizes: Array) -> Packed:
        """Copy `sizes` bytes of each piece, without its first `skip`."""
        found = Packed.of(sizes)
        _copy(self.content, self.starts + skip, found.content, found.starts, sizes)
        return found


class StoredRecords:
    """The stored records of one timeline. May be used by several threads."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline

    def byteorder(self, row: Array) -> ByteOrder:
        """The byte order of the record that a row stands for."""
        return "big" if self._timeline.owner(int(row["segment"]))[1].big_endian else "little"

    def where(self, row: Array) -> str:
        """The record's place as text for an error."""
        return f"{self._timeline.owner(int(row['segment']))[1].name}, byte {row['pos']}"

    def headers(self, rows: Array, rtype: RecordType) -> Array:
        """The headers of rows' records, in this machine's byte order, as an array of the type's dtype.

        Raises:
            Damaged: a record is of another type.
        """
        headers = self.native(self.packed(rows, np.full(len(rows), HEADER)).content, rows, rtype)
        wrong = np.flatnonzero(headers["rtype"] != rtype)
        if len(wrong):
            raise Damaged(f"{self.where(rows[wrong[0]])}: there is no {rtype.name} record")
        return headers

    def native(self, raw: Array, rows: Array, rtype: RecordType) -> Array:
        """Convert headers, read back to back, to this machine's byte order."""
        layout = LAYOUTS[rtype]
        headers: Array = raw.view(layout.dtype(NATIVE))
        # Each segment has one byte order; most pools have only this machine's.
        for number in unique(rows["segment"]):
            order: ByteOrder = "big" if self._timeline.owner(int(number))[1].big_endian else "little"
            if order != NATIVE:
                mine = rows["segment"] == number
                headers = headers.copy()
                headers[mine] = raw.view(layout.dtype(order))[mine].astype(layout.dtype(NATIVE))
        return headers

    def whole(self, rows: Array, *, check: bool = True, slack: int = 0) -> list[memoryview]:
        """The records themselves, with their payloads, and `slack` bytes to write on behind each.

        What is written there may fall on the next record's header.

        Raises:
            Damaged: `check` is set and one is not what was received.
        """
        found: list[memoryview] = [memoryview(b"")] * len(rows)
        sizes = rows["size"].astype(np.int64)
        if len(rows) == 1 and not check:
            size = int(sizes[0])
            room = bytearray(size + slack)
            alone = memoryview(room)
            self._timeline.owner(int(rows[0]["segment"]))[1].blob.readinto(int(rows[0]["pos"]), alone[:size])
            return [alone]
        # One read for neighbours; each record is a view of its part.
        for mine, buffer, starts in self.pieces(rows, sizes, slack):
            view = buffer.data
            ends = (starts + sizes[mine] + slack).tolist()
            for index, start, end in zip(mine.tolist(), starts.tolist(), ends, strict=True):
                found[index] = view[start:end]
            if check:
                self._check(rows[mine], buffer, starts, sizes[mine])
        return found

    def packed(self, rows: Array, sizes: Array) -> Packed:
        """The first `sizes` bytes of rows' records, unchecked."""
        if len(sizes) and int(sizes.min()) < HEADER:
            raise Damaged("a row leads to no record")
        packed = Packed.of(sizes)
        # Neighbours are read together and copied to their places; lone records are read right there.
        alone = _are_alone(rows, sizes)
        near = np.flatnonzero(~alone)
        for mine, buffer, starts in self.pieces(rows[near], sizes[near]):
            which = near[mine]
            _copy(buffer, starts, packed.content, packed.starts[which], sizes[which])
        self._read_each(rows[alone], sizes[alone], packed.content.data, packed.starts[alone])
        return packed

    def _read_each(self, rows: Array, sizes: Array, out: memoryview, to: Array) -> None:
        """Read each by itself: they lie so far apart that reading what is between them costs more."""
        order = np.argsort(rows["segment"], kind="stable")
        for first, last in runs_of(rows["segment"][order]):
            mine = order[first:last]
            blob = self._timeline.owner(int(rows["segment"][mine[0]]))[1].blob
            blob.readinto_each(rows["pos"][mine].astype(np.int64), sizes[mine], out, to[mine])

    def _check(self, rows: Array, buffer: Array, starts: Array, sizes: Array) -> None:
        swap = self.byteorder(rows[0]) != NATIVE
        checks, _ = kernel.check(buffer, starts, sizes, swap)
        wrong = np.flatnonzero(checks != rows["check"])
        if len(wrong):
            row = rows[wrong[0]]
            has_offset = "offset" in (rows.dtype.names or ())
            raise BadRecord(self.where(row), int(row["object"]), int(row["offset"]) if has_offset else -1)

    def is_whole(self, row: Array) -> bool:
        """Whether a record on disk is what was received."""
        try:
            self.whole(row.reshape(1))
        except Damaged:
            return False
        return True

    def pieces(self, rows: Array, sizes: Array, slack: int = 0) -> Iterator[tuple[Array, Array, Array]]:
        """Reads of neighbouring records: (indices of rows, what was read, where in it each record starts)."""
        order, places, ends, turns = _in_order(rows, sizes)
        segments = rows["segment"][order]
        for first, last in _cut(places, ends, turns):
            base = int(places[first])
            size = int(ends[last - 1]) - base
            buffer = np.empty(size + slack, np.uint8)
            self._timeline.owner(int(segments[first]))[1].blob.readinto(base, buffer.data[:size])
            yield order[first:last], buffer, places[first:last] - base


def _copy(source: Array, at: Array, target: Array, to: Array, sizes: Array) -> None:
    """Copy pieces of `sizes` bytes from one array to another, in one step for all pieces of one size."""
    for size in unique(sizes).tolist():
        if size:
            mine = sizes == size
            _windows(target, size)[to[mine]] = _windows(source, size)[at[mine]]


def _windows(content: Array, size: int) -> Array:
    """A view with one item per byte: the `size` bytes that begin there."""
    return np.ndarray((len(content) - size + 1,), f"V{size}", content, 0, (1,))


def _in_order(rows: Array, sizes: Array) -> tuple[Array, Array, Array, Array]:
    """Rows in the order of the disk: indices, where they begin and end, and which are far from the one before."""
    order = np.lexsort((rows["pos"], rows["segment"]))
    places = rows["pos"][order].astype(np.int64)
    ends = places + sizes[order]
    segments = rows["segment"][order]
    # Another segment, a gap that is not worth reading, or an overlap begins another read.
    apart = (segments[1:] != segments[:-1]) | (places[1:] - ends[:-1] > GAP) | (places[1:] < ends[:-1])
    return order, places, ends, np.flatnonzero(apart) + 1


def _are_alone(rows: Array, sizes: Array) -> Array:
    """Rows whose records have no others near them."""
    order, _, _, turns = _in_order(rows, sizes)
    alone = np.empty(len(rows), bool)
    # Between two turns lie the records of one read; a read of one record is alone.
    counts = np.diff([0, *turns, len(rows)])
    alone[order] = np.repeat(counts == 1, counts)
    return alone


def _cut(places: Array, ends: Array, turns: Array) -> Iterator[tuple[int, int]]:
    """Cut rows into reads: at the turns, and before a read of several records exceeds PIECE bytes."""
    for start, last in pairwise([0, *turns.tolist(), len(places)]):
        first = start
        while first < last:
            limit = int(places[first]) + PIECE
            stop = max(first + 1, min(last, int(np.searchsorted(ends[first:last], limit, "right")) + first))
            yield first, stop
            first = stop
