"""Healing (receive -c): damaged records of what is stored are replaced by the same records of a stream.

A record is taken only if its check is that of its row, so what comes can but be what was stored. Records lie in
segments, which are never changed in place: a segment all of whose damaged records came is rewritten as a whole, and
takes the place of the old one in its run, in one transaction. Running checksums that are stamped on records follow from
the records. Tables cannot be healed, nor records that no row stands for, nor what is not in the stream.

Source: OpenZFS man/man8/zfs-receive.8, -c; module/zfs/dmu_recv.c, corrective receive (do_corrective_recv()).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from zkeep.errors import Damaged, Refused
from zkeep.format import kernel
from zkeep.format.events import Batch, Event, SubBegin
from zkeep.format.records import HEADER, LAYOUTS, NATIVE, ByteOrder, RecordType
from zkeep.names import MAX_UINT64
from zkeep.pool.datasets.history import own_runs
from zkeep.pool.datasets.model import Dataset, Pool, Snapshot, txg_key
from zkeep.pool.datasets.orphans import discard, reading, undo
from zkeep.pool.maintenance.check_segment import RECORDS, Flaw, by_rows, check_segment, places_of
from zkeep.pool.store.port import segment_name
from zkeep.pool.timeline.segment import HEAD_SIZE, Segment
from zkeep.pool.timeline.spans import Array
from zkeep.pool.timeline.timeline import Run

CHUNK = 4 << 20
Write = Callable[[memoryview], object]
Key = tuple[int, int, int]
"Record type, object, offset."
_OFFSETS = {RecordType.WRITE: "offset", RecordType.WRITE_EMBEDDED: "offset", RecordType.REDACT: "offset"}
_NUMBERS = {RecordType.OBJECT_RANGE: "firstobj", RecordType.OBJECT: "object", RecordType.SPILL: "object"}
_SAMPLE = 256
"How many sound records of a segment are read to find the snapshots that they came with."


@dataclass
class Healing:
    """The result: how many damaged records were found and replaced, and a line for each segment that was not healed."""

    damaged: int = 0
    healed: int = 0
    left: list[str] = field(default_factory=list)


@dataclass
class _DamagedSegment:
    """A damaged segment. `missing`: by key, the rows whose records are damaged; `sound`: by place, those that came."""

    dataset: Dataset
    run: Run
    segment_id: str
    big_endian: bool = False
    guids: tuple[int, ...] = ()
    missing: dict[Key, list[Array]] = field(default_factory=dict)
    sound: dict[int, bytes] = field(default_factory=dict)
    hopeless: str = ""
    stamps: bool = False
    "No row's record is damaged; a running checksum may be."

    @property
    def name(self) -> str:
        return segment_name(self.segment_id)

    @property
    def count(self) -> int:
        return sum(len(rows) for rows in self.missing.values()) + len(self.sound) + self.stamps


def heal(
    pool: Pool, dataset: Dataset, snapshot: Snapshot | None, events: Iterable[Event], *, dry_run: bool = False
) -> Healing:
    """Replace damaged records of a snapshot, or of all of a dataset, by those of a stream.

    The stream is read to its end before anything is replaced.

    Raises:
        Refused: the stream is of something else.
    """
    # 1. Which rows lead to damaged records, and which of them the stream replaces.
    with reading(pool):
        segments = list(_damaged_segments(pool, dataset, snapshot.txg if snapshot else MAX_UINT64))
        guids = _match(events, segments)
    # 2. A stream of another snapshot is a mistake of the caller's, even if some of its records would fit.
    known = [snapshot] if snapshot else pool.snapshots(dataset)
    if not guids & {one.guid for one in known}:
        where = snapshot.name if snapshot else dataset.name
        raise Refused(f"cannot heal {where}: the stream is of another snapshot")
    # 3. Write the segments of which every damaged record was found. One that still lacks some stays as it is.
    report = Healing(damaged=sum(damaged.count or 1 for damaged in segments))
    for damaged in segments:
        if damaged.hopeless:
            report.left.append(f"{damaged.name}: {damaged.hopeless}, which no stream heals")
            continue
        if lacking := sum(len(rows) for rows in damaged.missing.values()):
            count = f"{lacking} of its {damaged.count}"
            report.left.append(f"{damaged.name}: {count} damaged records are not in the stream")
            continue
        try:
            if not dry_run:
                _replace(pool, damaged)
        except Damaged as error:
            report.left.append(str(error))
            continue
        report.healed += damaged.count
    return report


# What is damaged


def _damaged_segments(pool: Pool, dataset: Dataset, limit: int) -> Iterator[_DamagedSegment]:
    """The damaged segments of a dataset's runs up to a txg, and of its origin's."""
    for each, last in ((dataset, limit), *pool.origins(dataset)):
        for run in own_runs(pool, each):
            if run.txg <= last:
                yield from (found for i in run.segments if (found := _examine(pool, each, run, i)))


def _examine(pool: Pool, dataset: Dataset, run: Run, segment_id: str) -> _DamagedSegment | None:
    damaged = _DamagedSegment(dataset, run, segment_id)
    try:
        blob = pool.store.open(damaged.name)
    except FileNotFoundError:
        damaged.hopeless = "the segment is missing"
        return damaged
    with blob:
        segment = Segment(lambda: blob, damaged.name)
        # Which rows are damaged, and which guids their records may have had (a header names its snapshot).
        flaws = check_segment(segment, lambda _: None).flaws
        if not flaws:
            return None
        _note(damaged, flaws)
        if not damaged.hopeless:
            damaged.big_endian = segment.big_endian
            own = pool.snapshot_at(dataset.id, run.txg)
            damaged.guids = tuple({*_guids(segment, flaws), *([own.guid] if own else [])})
    return damaged


def _note(damaged: _DamagedSegment, flaws: list[Flaw]) -> None:
    for flaw in flaws:
        if flaw.spare:
            damaged.stamps = True
        elif flaw.rows is None:
            damaged.hopeless = damaged.hopeless or flaw.what
        else:
            damaged.missing.setdefault(_key(flaw.table, flaw.rows), []).append(flaw.rows)


def _key(table: str, row: Array) -> Key:
    number = int(row["object"][0])
    if table == "ranges":
        return RecordType.OBJECT_RANGE, number, 0
    if table == "objects":
        return RecordType.OBJECT, number, 0
    kind = RecordType(int(row["kind"][0]))
    return kind, number, int(row["offset"][0]) if kind in _OFFSETS else 0


def _guids(segment: Segment, flaws: list[Flaw]) -> Iterator[int]:
    """The snapshots that some sound records of a segment came with."""
    damaged = {flaw.at for flaw in flaws}
    order: ByteOrder = "big" if segment.big_endian else "little"
    kinds = {"blocks": RecordType.WRITE, "objects": RecordType.OBJECT, "ranges": RecordType.OBJECT_RANGE}
    for table, rtype in kinds.items():
        rows = segment.rows(table)
        rows = rows[rows["size"] > 0]
        for row in rows[:: max(1, len(rows) // _SAMPLE)]:
            if int(row["pos"]) not in damaged and int(row["size"]) >= HEADER:
                kind = RecordType(int(row["kind"])) if table == "blocks" else rtype
                header = LAYOUTS[kind].unpack(segment.blob.read(int(row["pos"]), HEADER), order)
                yield int(header.toguid)  # type: ignore[attr-defined]


# What the stream brings


def _match(events: Iterable[Event], segments: list[_DamagedSegment]) -> set[int]:
    """Collect missing records from a stream; returns the guids of its snapshots."""
    guids = set()
    for event in events:
        if isinstance(event, SubBegin):
            guids.add(event.begin.toguid)
        elif isinstance(event, Batch):
            for damaged in segments:
                if damaged.missing and damaged.big_endian == (event.byteorder == "big"):
                    _take(event, damaged)
    return guids


def _take(batch: Batch, damaged: _DamagedSegment) -> None:
    """Take the records that a segment lacks from a batch."""
    for rtype in {RecordType(key[0]) for key in damaged.missing}:
        index, headers = batch.select(rtype)
        if not len(index):
            continue
        # Of a batch only records of wanted objects are looked at one by one.
        numbers = headers[_NUMBERS.get(rtype, "object")]
        wanted = np.array([key[1] for key in damaged.missing if key[0] == rtype], np.uint64)
        for at in np.flatnonzero(np.isin(numbers, wanted)).tolist():
            offset = int(headers[_OFFSETS[rtype]][at]) if rtype in _OFFSETS else 0
            key = rtype, int(numbers[at]), offset
            if key in damaged.missing:
                _try(batch, int(index[at]), damaged, key)


def _try(batch: Batch, at: int, damaged: _DamagedSegment, key: Key) -> None:
    """Take one record for the rows that it is the record of."""
    # Records differ from those of other snapshots in `toguid` alone: with the right one, the checksum in the row proves
    # that it is the very record.
    start = int(batch.offsets[at])
    whole = bytearray(batch.buffer[start : start + int(batch.lengths[at])])
    fields = LAYOUTS[RecordType(key[0])].dtype(batch.byteorder).fields
    assert fields is not None
    place = int(fields["toguid"][1])
    for guid in damaged.guids:
        whole[place : place + 8] = guid.to_bytes(8, batch.byteorder)
        left = []
        for row in damaged.missing.get(key, []):
            # Of a bare WRITE only the header is stored (contents=metadata).
            is_bare = "bare" in (row.dtype.names or ()) and row["bare"][0]
            content = whole[:HEADER] if is_bare else whole
            ends = np.array([0], np.int64), np.array([len(content)], np.int64)
            checks, _ = kernel.check(np.frombuffer(content, np.uint8), *ends, batch.byteorder != NATIVE)
            if int(row["size"][0]) == len(content) and int(row["check"][0]) == int(checks[0]):
                damaged.sound[int(row["pos"][0])] = bytes(content)
            else:
                left.append(row)
        if left:
            damaged.missing[key] = left
        else:
            damaged.missing.pop(key, None)


# The healed segment


def _replace(pool: Pool, damaged: _DamagedSegment) -> None:
    """Write the healed segment and put it into its run.

    Raises:
        Refused: the run was changed meanwhile.
    """
    busy = f"cannot heal {damaged.dataset.name}: it is being compacted"
    with pool.store.lock(f"compact-{damaged.dataset.id}", busy=busy):
        # The txg is registered before the file is made: if this process dies, sweep() removes what it left.
        with pool.transaction() as t:
            txg = t.next_txg()
            t.put("compact", f"{txg:020d}", {"txg": txg, "dataset": damaged.dataset.id})
        made = f"{txg:x}-0"
        try:
            with reading(pool):
                _write(pool, damaged, made)
                _swap(pool, damaged, made, txg)
        except BaseException:
            undo(pool, "compact", f"{txg:020d}", [made])
            raise
    with pool.afterwards(f"{damaged.name} is healed"):
        discard(pool, [damaged.segment_id])


def _swap(pool: Pool, damaged: _DamagedSegment, made: str, txg: int) -> None:
    with pool.transaction() as t:
        key = txg_key(damaged.dataset.id, damaged.run.txg)
        now = t.get("run", key)
        if now is None or damaged.segment_id not in now["segments"]:
            raise Refused(f"cannot heal {damaged.dataset.name}: it was changed meanwhile")
        segments = [made if i == damaged.segment_id else i for i in now["segments"]]
        t.put("run", key, {**now, "segments": segments})
        t.delete("compact", f"{txg:020d}")


def _write(pool: Pool, damaged: _DamagedSegment, made: str) -> None:
    """The old file with the sound records in it; what is stamped on each record follows from the first one on."""
    with pool.store.open(damaged.name) as blob, pool.store.draft(made) as draft:
        segment = Segment(lambda: blob, damaged.name)
        draft.truncate(0)
        draft.write(blob.read(0, HEAD_SIZE))
        _, end = segment.body
        state = np.array(segment.head[0], np.uint64)
        carry, at = b"", segment.body[0]
        places = places_of([segment.rows(name) for name in RECORDS]) if segment.bare else None
        # Sound pieces from disk and records from the stream, in the order of the body; what is cut off waits for
        # more.
        for piece in _pieces(segment, damaged.sound):
            carry += piece
            here = by_rows(places, at, len(carry)) if places is not None else None
            used, state = _stamped(carry, segment.big_endian, state, draft.write, here)
            carry, at = carry[used:], at + used
        # The running checksum at the end must be the one in the footer: then it is the very body that was stored.
        if carry or tuple(state.tolist()) != segment.end_state:
            draft.discard()
            raise Damaged(f"{damaged.name}: its records, healed, are not what the segment ends with")
        for at in range(end, blob.size, CHUNK):
            draft.write(blob.read(at, min(CHUNK, blob.size - at)))
        draft.publish(segment_name(made))


def _pieces(segment: Segment, sound: dict[int, bytes]) -> Iterator[bytes]:
    """The body; what is damaged of it is not even read."""
    at, end = segment.body
    for place in [*sorted(sound), end]:
        while at < place:
            size = min(CHUNK, place - at)
            yield segment.blob.read(at, size)
            at += size
        if place in sound:
            yield sound[place]
            at = place + len(sound[place])


def _stamped(
    content: bytes, big_endian: bool, state: Array, write: Write, known: kernel.Walk | None = None
) -> tuple[int, Array]:
    """Stamp and write the whole records at the start; returns their bytes and the running checksum behind them.

    `known`: the records, where their headers do not tell how long they are.
    """
    swap = big_endian != (NATIVE == "big")
    buffer = bytearray(content)
    space = np.frombuffer(buffer, np.uint8)
    found = known or kernel.walk(space, 0, len(buffer), swap)
    if found.error:
        raise Damaged("a segment that is to be healed holds what is no record, and has no row")
    _, sums = kernel.check(space, found.offsets, found.lengths, swap)
    state = kernel.stamp(space, found.offsets, found.lengths, sums, swap, state)
    write(memoryview(buffer)[: found.stop])
    return found.stop, state
