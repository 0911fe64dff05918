"""From planned steps to the bytes of a stream: copy, check, patch, stamp, write."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from zkeep.errors import Damaged, Refused
from zkeep.format import kernel
from zkeep.format.records import HEADER, LAYOUTS, NATIVE, ByteOrder, End, RecordFlag, RecordType
from zkeep.pool.timeline.segment import Segment
from zkeep.pool.timeline.spans import Array
from zkeep.pool.timeline.timeline import Run, Timeline

CHUNK = 4 << 20
"About the bytes put together at a time; one record may be larger. With less, 4 KiB records cost a fifth more."
RING = 4
"Chunks in memory: one being read, one being made, two being written or waiting."

FREED_FIELDS = {
    RecordType.FREE: (("object", "object"), ("offset", "a"), ("length", "b")),
    RecordType.FREEOBJECTS: (("firstobj", "a"), ("numobjs", "b")),
}
"Fields of the records that are made of a step, and the columns of the step."

Write = Callable[[memoryview], object]


@dataclass(frozen=True)
class _StreamChunk:
    """Some steps, and the buffer in which their records are put together."""

    steps: Array
    buffer: Array
    offsets: Array
    lengths: Array
    stored: slice | Array
    "The steps that are copied from segments."
    fetched: Future[Array]
    "The checksums of the copied records."


class StreamWriter:
    """Writes one substream. Every stored record is compared with its row's check before it leaves.

    Raises:
        Damaged: a record on disk is not what was received.
    """

    def __init__(
        self,
        timeline: Timeline,
        write: Write,
        byteorder: ByteOrder,
        toguid: int,
        frame: Callable[[Array], bytes] | None = None,
    ) -> None:
        """`frame`: what is written before records of these lengths, in an excerpt (format/excerpt.py)."""
        self._timeline = timeline
        self._frame = frame
        self._order: ByteOrder = byteorder
        self._swap = byteorder != NATIVE
        self._toguid = toguid
        self._state = kernel.zero_state()
        self._fetcher = ThreadPoolExecutor(1)
        self._outlet = Outlet(write)

    def __enter__(self) -> StreamWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._fetcher.shutdown(wait=True, cancel_futures=True)
        self._outlet.close()

    def begin(self, header: bytes, payload: bytes) -> None:
        whole = header + payload
        # The running checksum starts at BEGIN; every later record carries the sum over all bytes before it.
        self._state = np.array(kernel.fletcher4(whole, (0, 0, 0, 0), self._swap), np.uint64)
        self._put(memoryview(whole), np.array([len(whole)]))

    def _put(self, records: memoryview, lengths: Array) -> None:
        if self._frame is not None:
            self._outlet.write(memoryview(self._frame(lengths)))
        self._outlet.write(records)

    def end(self) -> None:
        record = bytearray(End(payloadlen=0, toguid=self._toguid).pack(self._order))
        # END has no payload, so the sums of payloads are zeros; stamp() writes the stream's checksum into it.
        nothing = np.zeros((1, 4), np.uint64)
        self._stamp(np.frombuffer(record, np.uint8), np.zeros(1, np.int64), np.full(1, HEADER), nothing)
        self._put(memoryview(record), np.array([HEADER]))
        self._outlet.flush()

    def steps(self, plans: Iterable[Array]) -> None:
        """Write the records of steps, which come in arrays; the next array is planned meanwhile."""
        ahead: deque[_StreamChunk] = deque()
        for steps in _one_ahead(plans):
            # A stream has one byte order. Records of the other one are not converted: their bytes are what was
            # checked.
            for number in np.unique(steps["segment"][steps["stored"]]).tolist():
                if self._timeline.owner(number)[1].big_endian != (self._order == "big"):
                    raise Refused("this stream would need records of both byte orders: send its parts one by one")
            if self._frame is None and lacks_payload(steps):
                raise Refused("this stream would need contents that are not here (contents=metadata)")
            # Cut the steps where a multiple of CHUNK is crossed, and keep two chunks on the way: while the worker
            # reads the
            # second from disk, the first gets its headers and checksums.
            ends = np.cumsum(steps["size"], dtype=np.int64)
            turns = np.flatnonzero(np.diff(ends // CHUNK)) + 1
            for first, last in _stretches(turns, len(steps)):
                ahead.append(self._submit(steps[first:last], ends[first:last] - (ends[first - 1] if first else 0)))
                if len(ahead) > 1:
                    self._finish(ahead.popleft())
        while ahead:
            self._finish(ahead.popleft())

    def space(self, size: int) -> Array:
        """Memory for records that are made elsewhere; at most two are filled at a time."""
        return self._outlet.space(size)

    def made(self, buffer: Array, offsets: Array, lengths: Array) -> None:
        """Write records that fill memory that space() gave."""
        _, sums = kernel.check(buffer, offsets, lengths, self._swap)
        self._stamp(buffer, offsets, lengths, sums)
        self._outlet.write(buffer.data)

    def verbatim(self, run: Run) -> None:
        """Write the records of a run as they came, in the order in which they came."""
        for segment in self._timeline.segments(run):
            self._body(segment)

    def _submit(self, steps: Array, ends: Array) -> _StreamChunk:
        """Begin a chunk: submit the reading of its stored records."""
        lengths = steps["size"].astype(np.int64)
        offsets = ends - lengths
        buffer = self._outlet.space(int(ends[-1]))
        stored = slice(None) if steps["stored"].all() else steps["stored"]
        fetched = self._fetcher.submit(self._fetch, buffer, steps[stored], offsets[stored], lengths[stored])
        return _StreamChunk(steps, buffer, offsets, lengths, stored, fetched)

    def _finish(self, chunk: _StreamChunk) -> None:
        """Finish a chunk when its records are read: make headers, set flags and guids, stamp checksums, write."""
        sums = np.zeros((len(chunk.steps), 4), np.uint64)
        sums[chunk.stored] = chunk.fetched.result()
        self._make(chunk.buffer, chunk.steps, chunk.offsets)
        # Change what depends on this stream: the flag of spill blocks that did not change ...
        if chunk.steps["unmodified"].any():
            at = chunk.offsets[chunk.steps["unmodified"]] + _field(RecordType.SPILL, "flags")
            chunk.buffer[at] |= np.uint8(RecordFlag.SPILL_UNMODIFIED)
        # ... and toguid, the snapshot that the stream makes, in every record.
        guid = np.frombuffer(self._toguid.to_bytes(8, self._order), np.uint8)
        chunk.buffer[(chunk.offsets + _TOGUID[chunk.steps["rtype"]])[:, None] + _EIGHT] = guid
        # Headers are final now, so the running checksum can be computed over them.
        self._stamp(chunk.buffer, chunk.offsets, chunk.lengths, sums)
        self._put(chunk.buffer.data, chunk.lengths)

    def _fetch(self, buffer: Array, steps: Array, offsets: Array, lengths: Array) -> Array:
        """Read stored records to their places, those that are adjacent on disk and in the stream in one call.

        It runs in a worker, so that one processor reads and checks while another finishes the chunk before.
        """
        # Neighbours whose distance on disk equals their distance in the stream are read together (compare
        # Output._read). Headers that leave without their payloads have gaps between them.
        bare = steps["bare"]
        segment = steps["segment"]
        shift = np.where(bare, -1, steps["pos"].astype(np.int64) - offsets)
        turns = np.flatnonzero((shift[1:] != shift[:-1]) | (segment[1:] != segment[:-1])) + 1
        view = buffer.data
        for first, last in _stretches(turns, len(steps)):
            blob = self._timeline.owner(int(segment[first]))[1].blob
            if bare[first]:
                places, sizes = steps["pos"][first:last].astype(np.int64), lengths[first:last]
                blob.readinto_each(places, sizes, view, offsets[first:last])
                continue
            end = int(offsets[last - 1] + lengths[last - 1])
            blob.readinto(int(steps["pos"][first]), view[int(offsets[first]) : end])
        checks, sums = kernel.check(buffer, offsets, lengths, self._swap)
        # A record whose checksum is not the one in its row is not what was received. The row of a whole record says
        # nothing of its header alone: of that, the receiver compares MACs.
        wrong = (checks != steps["check"]) & ~bare
        if wrong.any():
            step = steps[wrong][0]
            run, owner = self._timeline.owner(int(step["segment"]))
            where = f"object {step['object']}, txg {run.txg}"
            raise Damaged(f"{owner.name}: the record at byte {step['pos']} is damaged ({where})")
        return sums

    def _make(self, buffer: Array, steps: Array, offsets: Array) -> None:
        """Build the headers of FREE and FREEOBJECTS records."""
        made = np.flatnonzero(~steps["stored"])
        if not len(made):
            return
        for rtype in FREED_FIELDS:
            mine = made[steps["rtype"][made] == rtype]
            if len(mine):
                headers = free_headers(steps[mine], rtype, self._order)
                buffer[offsets[mine][:, None] + np.arange(HEADER)] = headers.view(np.uint8).reshape(-1, HEADER)

    def _stamp(self, buffer: Array, offsets: Array, lengths: Array, sums: Array) -> None:
        self._state = kernel.stamp(buffer, offsets, lengths, sums, self._swap, self._state)

    def _body(self, segment: Segment) -> None:
        state = np.array(segment.head[0], np.uint64)
        for buffer, offsets, lengths, position in walk_body(segment, self._outlet.space):
            # Verify each record against the running checksum that it came with.
            after, bad, _, sums = kernel.verify(buffer, offsets, lengths, self._swap, state)
            if bad >= 0:
                at = position + int(offsets[bad])
                raise Damaged(f"{segment.name}: the record at byte {at} is damaged")
            # If this stream's checksum stands where the old stream's did, the stored checksums are right as they are.
            # Else (another BEGIN before it) every record gets a new one.
            if (state == self._state).all():
                self._state = after
            else:
                self._stamp(buffer, offsets, lengths, sums)
            state = after
            self._outlet.write(buffer.data[: int(offsets[-1] + lengths[-1])])
        if tuple(state.tolist()) != segment.end_state:  # a record without a checksum of its own is damaged
            raise Damaged(f"{segment.name}: the body does not end as it did")


def lacks_payload(steps: Array) -> bool:
    """Whether a step would send a WRITE whose payload was dropped: it has no more than its header."""
    short = steps["stored"] & (steps["rtype"] == RecordType.WRITE) & (steps["size"] == HEADER)
    return bool((short & ~steps["bare"]).any())


def free_headers(steps: Array, rtype: RecordType, order: ByteOrder) -> Array:
    """The headers of FREE or FREEOBJECTS records, without toguid."""
    headers = np.zeros(len(steps), LAYOUTS[rtype].dtype(order))
    headers["rtype"] = rtype
    for name, column in FREED_FIELDS[rtype]:
        headers[name] = steps[column]
    return headers


def write_fully(write: Write, content: bytes | memoryview) -> None:
    """Call `write` until all of `content` is written; each call may write only a part."""
    rest = memoryview(content)
    while rest:
        done = write(rest)
        rest = rest[done if isinstance(done, int) else len(rest) :]


class Outlet:
    """Writes in a thread of its own, so that the next chunk is made meanwhile.

    What is written from memory that space() gave may be used again a few calls of space() later.
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self._thread = ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()
        self._ring = [np.empty(0, np.uint8)] * RING
        self._turn = 0

    def space(self, size: int) -> Array:
        """Memory for the next chunk."""
        # The piece of the ring that is handed out must not be waiting to be written: one in work, one filled
        # meanwhile.
        while len(self._pending) > RING - 2:
            self._pending.popleft().result()
        self._turn = (self._turn + 1) % RING
        if len(self._ring[self._turn]) < size:
            self._ring[self._turn] = np.empty(max(size, CHUNK + CHUNK // 4), np.uint8)
        return self._ring[self._turn][:size]

    def write(self, content: memoryview) -> None:
        self._pending.append(self._thread.submit(write_fully, self._write, content))

    def flush(self) -> None:
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)


def walk_body(
    segment: Segment, space: Callable[[int], Array] = lambda size: np.empty(size, np.uint8)
) -> Iterator[tuple[Array, Array, Array, int]]:
    """A segment's records, piece by piece: (buffer, offsets, lengths, position of the buffer in the file).

    `space` gives the memory for each piece.

    Raises:
        Damaged: the body does not consist of whole records.
    """
    at, end = segment.body
    swap = segment.big_endian != (NATIVE == "big")
    most = CHUNK
    while at < end:
        size = min(most, end - at)
        buffer = space(size)
        segment.blob.readinto(at, buffer.data)
        found = kernel.walk(buffer, 0, size, swap)
        if found.error or (not len(found.offsets) and size == end - at):
            raise Damaged(f"{segment.name}: the record at byte {at + found.stop} is damaged")
        # Not one whole record fits: read a larger piece from the same place.
        if not len(found.offsets):
            most += most // 2
            continue
        yield buffer, found.offsets, found.lengths, at
        at += found.stop


def _one_ahead(plans: Iterable[Array]) -> Iterator[Array]:
    """The same arrays; a worker makes the next one while the caller uses the one before."""
    every = iter(plans)
    with ThreadPoolExecutor(1) as planner:
        planned = planner.submit(next, every, None)
        while (steps := planned.result()) is not None:
            planned = planner.submit(next, every, None)
            yield steps


def _stretches(turns: Array, count: int) -> Iterator[tuple[int, int]]:
    marks = [0, *turns.tolist(), count]
    yield from ((a, b) for a, b in pairwise(marks) if a < b)


def _field(rtype: RecordType, name: str) -> int:
    fields = LAYOUTS[rtype].dtype().fields
    if fields is None:
        raise TypeError(f"{rtype} has no fields")
    return int(fields[name][1])


_TOGUID = np.array([_field(rtype, "toguid") for rtype in RecordType])
"The offset of toguid in each type of record."
_EIGHT = np.arange(8)
