"""Verifying one segment, byte by byte, without a key.

A sound segment is read once: the running fletcher-4 over its body, each row of its tables against its record, the CRC
of each page, the digests of head and footer, and that nothing lies between or behind them. In a damaged one every
record is checked by itself, to find out which rows are affected.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from zkeep.errors import Damaged
from zkeep.format import kernel
from zkeep.format._kernel_numpy import BAD_LENGTH
from zkeep.format.records import HEADER, NATIVE
from zkeep.pool.timeline.segment import HEAD_SIZE, PAGE_ROWS, TRAIL_SIZE, Segment
from zkeep.pool.timeline.spans import Array, Bools
from zkeep.pool.timeline.table import DTYPES

CHUNK = 4 << 20
"Bytes read at a time; one record may be larger."
RECORDS = ("ranges", "objects", "blocks", "spills")
_PLACE = np.dtype([("pos", "<u8"), ("size", "<u8"), ("check", "<u8"), ("table", "<u4"), ("row", "<u4")])
_memory = threading.local()


@dataclass(frozen=True)
class Flaw:
    """Something in a segment that is not what was stored.

    `rows`: the row of the table `table` whose record is damaged. Without a row: a record that no row points to, if
    `spare`; else the tables themselves, so that the whole segment is in doubt.
    """

    at: int
    what: str
    table: str = ""
    rows: Array | None = None
    spare: bool = False


@dataclass
class SegmentReport:
    flaws: list[Flaw] = field(default_factory=list)
    stored: int = 0
    logical: int = 0
    records: int = 0


def check_segment(segment: Segment, on_bytes: Callable[[int], object]) -> SegmentReport:
    """Verify all of a segment; `on_bytes` is called with the bytes done. Damage is reported, not raised."""
    found = SegmentReport()
    try:
        _check(segment, found, on_bytes)
    except Damaged as error:
        found.flaws.append(Flaw(0, str(error).removeprefix(f"{segment.name}: ")))
    return found


def _check(segment: Segment, found: SegmentReport, on_bytes: Callable[[int], object]) -> None:
    footer = segment.footer
    found.stored, found.logical, found.records = footer["stored"], footer["logical"], footer["records"]
    segment.head  # noqa: B018 (verified when it is read)
    found.flaws += _layout(segment)
    # 1. The layout of the file and its tables. 2. The body from its start, against the rows. 3. If anything differs,
    # every record by itself, to know which rows it concerns.
    tables = {}
    for name in DTYPES:
        tables[name], bad = _rows(segment, name)
        found.flaws += bad
    if found.flaws:
        on_bytes(segment.body[1] - segment.body[0])
    if int(np.count_nonzero(tables["blocks"]["bare"])) != segment.bare and not found.flaws:
        found.flaws.append(Flaw(segment.body[1], "its rows and its footer differ in how many records have no payload"))
    places = places_of([tables[name] for name in RECORDS])
    try:
        fault = _body(segment, places, on_bytes)
    except Damaged as error:  # of a bad sector the rest of the body is still to be looked at
        fault = segment.body[0], str(error).removeprefix(f"{segment.name}: ")
    if fault is None:
        return
    flaws = list(_each(segment, tables, places))
    found.flaws += flaws or [Flaw(*fault, spare=True)]


def _layout(segment: Segment) -> Iterator[Flaw]:
    """Body, tables and footer must fill the file."""
    start, at = segment.body
    if start != HEAD_SIZE or at < start:
        raise Damaged("its body is not where it must be")
    for name, part in segment.parts.items():
        if part.at != at:
            yield Flaw(at, f"the table of {name} is not where it must be")
        at = part.at + part.rows * DTYPES[name].itemsize
    if at + segment.footer_size + TRAIL_SIZE != segment.blob.size:
        yield Flaw(at, "the footer is not where it must be")


def _rows(segment: Segment, name: str) -> tuple[Array, list[Flaw]]:
    """The rows of a table; those of sound pages if it is damaged."""
    try:
        return segment.rows(name), []
    except Damaged:
        part, rows, flaws = segment.parts[name], [np.empty(0, DTYPES[name])], []
        for page in range(len(part.crc)):
            try:
                rows.append(segment.rows(name, page, page + 1))
            except Damaged:
                at = part.at + page * PAGE_ROWS * DTYPES[name].itemsize
                flaws.append(Flaw(at, f"page {page} of its table of {name} is damaged"))
        return np.concatenate(rows), flaws


def places_of(tables: list[Array]) -> Array:
    """Where the records of rows lie, in the order of the body."""
    parts = []
    for number, rows in enumerate(tables):
        # Rows of all four tables in one order, that of the body; each remembers its table and its place in it.
        part = np.empty(len(rows), _PLACE)
        for name in ("pos", "size", "check"):
            part[name] = rows[name]
        part["table"], part["row"] = number, np.arange(len(rows))
        parts.append(part[rows["size"] > 0])
    every = np.concatenate(parts)
    return every[np.argsort(every["pos"], kind="stable")]


def _buffer(size: int) -> npt.NDArray[np.uint8]:
    """This thread's own memory."""
    if len(getattr(_memory, "space", b"")) < size:
        _memory.space = np.empty(max(size, CHUNK), np.uint8)
    space: npt.NDArray[np.uint8] = _memory.space
    return space


def _body(segment: Segment, places: Array, on_bytes: Callable[[int], object]) -> tuple[int, str] | None:
    """The first byte at which the body, read from its start, is not what it must be."""
    at, end = segment.body
    swap = segment.big_endian != (NATIVE == "big")
    state, size, records, seen = np.array(segment.head[0], np.uint64), CHUNK, 0, 0
    blob = segment.blob
    while at < end:
        space = _buffer(size)
        here = min(len(space), end - at)
        blob.readinto(at, memoryview(space.data)[:here])
        # Find whole records; read a larger piece where not even one fits.
        found = by_rows(places, at, here) if segment.bare else kernel.walk(space, 0, here, swap)
        if not len(found.offsets) and not found.error and here < end - at:
            size = len(space) * 2
            continue
        if found.error or not len(found.offsets):
            return at + found.stop, "it is no record"
        # Each must carry the sum of all before it, and must be the record of its row.
        state, bad, checks, _ = kernel.verify(space, found.offsets, found.lengths, swap, state)
        if bad >= 0:
            return at + int(found.offsets[bad]), "the checksum differs"
        upto = int(np.searchsorted(places["pos"], np.uint64(at + found.stop)))
        wrong = _differ(places[seen:upto], found.offsets + at, found.lengths, checks)
        if wrong.any():
            return int(places["pos"][seen + int(wrong.argmax())]), "the record is not the one of its row"
        records, seen, at = records + len(found.offsets), upto, at + found.stop
        on_bytes(found.stop)
    if tuple(state.tolist()) != segment.end_state or records != segment.footer["records"] or seen != len(places):
        return at, "the body does not end as it did"
    return None


def by_rows(places: Array, at: int, size: int) -> kernel.Walk:
    """The whole records in `size` bytes of a body from `at` on, as rows say where they lie.

    Where payloads were dropped, a header does not tell how long its record is; but each record has a row.
    """
    first = int(np.searchsorted(places["pos"], np.uint64(at)))
    ends = places["pos"] + places["size"]
    last = int(np.searchsorted(ends, np.uint64(at + size), "right"))
    here = places[first:last]
    offsets, lengths = here["pos"].astype(np.int64) - at, here["size"].astype(np.int64)
    # One behind the other, without gaps: where each begins is where the one before ends.
    wrong = np.flatnonzero(offsets != np.cumsum(lengths) - lengths)
    if len(wrong):
        return kernel.Walk(offsets[:0], np.empty(0, np.uint8), lengths[:0], 0, (0, BAD_LENGTH))
    stop = int(lengths.sum())
    return kernel.Walk(offsets, np.zeros(len(here), np.uint8), lengths, stop, None)


def _differ(places: Array, positions: Array, lengths: Array, checks: Array) -> Bools:
    """Which rows do not have their record here."""
    if not len(places):
        return np.zeros(0, bool)
    # A row and the record at its position must agree in place, size and check.
    at = np.minimum(np.searchsorted(positions, places["pos"].astype(np.int64)), len(positions) - 1)
    same = (positions[at] == places["pos"]) & (lengths[at] == places["size"]) & (checks[at] == places["check"])
    return np.asarray(~same)


def _each(segment: Segment, tables: dict[str, Array], places: Array) -> Iterator[Flaw]:
    """Every row whose record is damaged."""
    ends = np.cumsum(places["size"], dtype=np.int64)
    first = 0
    while first < len(places):
        base = int(ends[first - 1]) if first else 0
        last = max(int(np.searchsorted(ends, base + CHUNK, "right")), first + 1)
        for index in np.flatnonzero(_damaged(segment, places[first:last])):
            place = places[first + int(index)]
            name = RECORDS[int(place["table"])]
            row = int(place["row"])
            yield Flaw(int(place["pos"]), "the record is damaged", name, tables[name][row : row + 1])
        first = last


def _damaged(segment: Segment, places: Array) -> Bools:
    """Compare records with their rows, wherever they lie."""
    _, end = segment.body
    lengths = places["size"].astype(np.int64)
    whole = (places["pos"] >= HEAD_SIZE) & (places["pos"] + places["size"] <= end) & (lengths >= HEADER)
    offsets = np.cumsum(lengths) - lengths
    space = _buffer(int(lengths.sum()))
    for index in np.flatnonzero(whole).tolist():
        place, offset = places[index], int(offsets[index])
        try:
            segment.blob.readinto(int(place["pos"]), memoryview(space.data)[offset : offset + int(place["size"])])
        except Damaged:
            whole[index] = False
    # Records that can be read are copied together; those that cannot are damaged in any case.
    checks, _ = kernel.check(space, offsets[whole], lengths[whole], segment.big_endian != (NATIVE == "big"))
    wrong = ~whole
    wrong[whole] = checks != places["check"][whole]
    return np.asarray(wrong)
