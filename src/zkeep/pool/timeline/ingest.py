"""Write one substream into the pool: records to segments, segments to a run.

Nothing is visible to readers until the caller commits the run's document: segments have names that only this receive
uses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import numpy as np

from zkeep.format import kernel
from zkeep.format.events import Batch
from zkeep.format.reader import RESTING
from zkeep.format.records import CHECKSUM, NATIVE, RecordType, Words
from zkeep.pool.store.port import Buffer, Draft, Store
from zkeep.pool.timeline import segment as seg
from zkeep.pool.timeline.living import Living
from zkeep.pool.timeline.resolve import Kind, resolve
from zkeep.pool.timeline.resume import START, Key, Resumed, last_key, last_write, part, remainder
from zkeep.pool.timeline.rows import RowBuilder
from zkeep.pool.timeline.spans import Array
from zkeep.pool.timeline.table import Table
from zkeep.pool.timeline.timeline import Run, Timeline, segment_name

Files = list[tuple[str, Sequence[Buffer]]]
"Names and contents."
P = ParamSpec("P")
Made = TypeVar("Made")
MAX_UNSYNCED = 4
"The most segments that may wait to be synced while the next one fills."
MAX_UNWRITTEN = RESTING - 1
"The most batches that may wait to be written: the reader reuses their memory after so many."


@dataclass(frozen=True)
class BeginTraits:
    """The part of a BEGIN that matters for writing segments."""

    big_endian: bool
    spill_flags: bool
    kind: Kind
    bare: bool = False
    "There may be WRITEs without payload: it is an excerpt (format/excerpt.py)."


@dataclass
class Tally:
    """What a run holds, and what it kills of older runs; becomes part of its document."""

    segments: list[str] = field(default_factory=list)
    bytes: int = 0
    logical: int = 0
    records: int = 0
    file_bytes: int = 0
    extra: int = 0
    "Bytes of records without a row of their own: FREE and FREEOBJECTS."
    bare: int = 0
    "How many records are WRITEs without payload."
    dead: dict[int, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))

    @classmethod
    def from_doc(cls, doc: dict[str, Any]) -> Tally:
        tally = cls(list(doc["segments"]), doc["bytes"], doc["logical"], doc["records"], doc["file_bytes"])
        tally.extra, tally.bare = doc.get("extra", 0), doc.get("bare", 0)
        for txg, (stored, logical) in doc["dead"].items():
            tally.dead[int(txg)] = [stored, logical]
        return tally

    def count(
        self, segment_id: str, table: Table, records: int, body: int, size: int, dead: dict[int, list[int]]
    ) -> None:
        """`body`: bytes of all its records, `size`: of the file."""
        self.segments.append(segment_id)
        self.extra += body - table.stored
        self.bare += int(np.count_nonzero(table.blocks["bare"]))
        self.bytes += table.stored
        self.logical += table.logical
        self.records += records
        self.file_bytes += size
        for txg, (stored, logical) in dead.items():
            self.dead[txg][0] += stored
            self.dead[txg][1] += logical

    def doc(self) -> dict[str, Any]:
        return {
            "segments": self.segments,
            "bytes": self.bytes,
            "logical": self.logical,
            "records": self.records,
            "file_bytes": self.file_bytes,
            "extra": self.extra,
            **({"bare": self.bare} if self.bare else {}),
            "dead": {str(txg): amounts for txg, amounts in sorted(self.dead.items())},
        }


@dataclass(frozen=True)
class ResumePoint:
    """How far a receive has got: what another process needs to go on."""

    tally: Tally
    state: Words
    last: Key
    write: tuple[int, int] | None


class SegmentWriter:
    """Writes the batches of one substream, in order. Use as a context manager: leaving it removes the draft.

    `on_segment` is called when a segment is durable, with what a later process needs to go on from there.
    """

    def __init__(
        self,
        store: Store,
        txg: int,
        source: BeginTraits,
        timeline: Timeline,
        past: list[Run],
        state: Words,
        on_segment: Callable[[ResumePoint], None] | None = None,
        resumed: Resumed | None = None,
        recent: seg.RecentContents | None = None,
        small: Small | None = None,
    ) -> None:
        """`small`: little is written, in memory; no thread is worth its start."""
        self.tally = Tally.from_doc(resumed.doc["tally"]) if resumed else Tally()
        self._store = store
        self._txg = txg
        self._source = source
        self._timeline = timeline
        self._past = past
        self._resumed = resumed
        self._state = np.array(resumed.state if resumed else state, np.uint64)
        self._last: Key = resumed.last if resumed else START
        self._last_write: tuple[int, int] | None = None
        self._rows = RowBuilder(source.spill_flags, source.bare)
        self._waiting: Batch | None = None
        self._draft: Draft | _Memory | None = None
        self._unpublished: list[Draft | _Memory] = []
        "Drafts that are complete, and not yet published."
        self._writer = _AtOnce() if small else ThreadPoolExecutor(1)
        self._syncer = _AtOnce() if small else ThreadPoolExecutor(1)
        self._writing: list[Future[None]] = []
        self._closing: list[Future[None]] = []
        self._position = 0
        self._begun = len(self.tally.segments)
        self._on_segment = on_segment
        self._recent = recent
        self._small = small
        self._published: tuple[str, dict[str, Any], Table] | None = None
        "The segment that was published last, its footer and its table."
        self._mark: tuple[Words, Key, tuple[int, int] | None] | None = None
        "Where the segment ends that is closed, and of which `on_segment` does not know yet."
        self._in_step = True
        "Whether draft, rows and checksum end at the same record. Not so while one batch is added, or after it failed."

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(self, *_: object) -> None:
        # Workers first: they use the draft. Then whatever was not published goes.
        self._writer.shutdown(wait=True, cancel_futures=True)
        self._syncer.shutdown(wait=True, cancel_futures=True)
        if self._draft is not None:
            self._unpublished.append(self._draft)
            self._draft = None
        while self._unpublished:
            with suppress(OSError):  # on the way out after something worse
                self._unpublished.pop().discard()

    def new_part(self, batch: Batch) -> Batch:
        """The records of a batch that the interrupted receive does not have yet."""
        return remainder(batch, self._resumed.last) if self._resumed else batch

    def add(self, batch: Batch) -> None:
        """Write one batch, from new_part(). Its memory must not change until MAX_UNWRITTEN later ones were added, or
        finish().

        An OBJECT at the end of the batch waits for the next one: it and its FREE to the end share a segment.
        """
        if not len(batch):
            return
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self._write_batch(waiting)
        if batch.types[-1] == RecordType.OBJECT:
            self._waiting = _copy(part(batch, len(batch) - 1, len(batch)))
            batch = part(batch, 0, len(batch) - 1)
        if len(batch):
            self._write_batch(batch)

    def _write_batch(self, batch: Batch) -> None:
        self._refuse_torn()
        self._in_step = False
        # The bytes are written by a worker; meanwhile their rows are made, and the checksum and place noted.
        draft = self._draft or self._begin_segment()
        if self._resumed:
            # A resumed stream counts its checksum from its own BEGIN; stored records carry that of the whole stream.
            batch = _copy(batch)
            swap = batch.byteorder != NATIVE
            kernel.stamp(batch.buffer, batch.offsets, batch.lengths, batch.sums, swap, self._state)
        self._writing.append(self._writer.submit(draft.write, batch.buffer))
        self._rows.add(batch, self._position)
        self._position += len(batch.buffer)
        self._state = _advance(batch)
        self._last = last_key(batch) if self._on_segment else self._last
        self._last_write = last_write(batch) or self._last_write
        self._in_step = True
        # Not too much may be pending, and a full segment is closed where no OBJECT is parted from its FREE.
        _drain(self._writing, MAX_UNWRITTEN)
        if self._position >= seg.TARGET and self._rows.closable:
            self._close_segment()

    def finish(self) -> Tally:
        """Close the last segment after all batches, and wait until all segments are durable."""
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self._write_batch(waiting)
        self._refuse_torn()
        self._flush()
        if self._published and self._recent:
            self._recent.wrote(*self._published)
        return self.tally

    def keep(self) -> None:
        """Let `on_segment` know of all that is whole, after a failure or an interruption; nothing can be added then.

        The segment is closed at the last record so far. If that was interrupted in the middle of a batch, or a write
        failed, the segment is given up: the sender has its records, and sends them again.
        """
        if self._in_step:
            self._flush()

    def _flush(self) -> None:
        """Close the segment at the last record so far, and wait until all segments are durable."""
        if self._draft is not None and self._rows.records:
            self._close_segment()
        self._tell()
        _drain(self._closing, 0)

    def _refuse_torn(self) -> None:
        """Refuse to go on where a batch was added in part: what follows it would close the gap."""
        if not self._in_step:
            raise RuntimeError("a segment in which the records of a batch are missing")

    def _begin_segment(self) -> Draft | _Memory:
        self._rows = RowBuilder(self._source.spill_flags, self._source.bare)
        segment_id = f"{self._txg:x}-{self._begun:x}"
        if self._resumed:  # published, but not noted before the receive broke off
            self._store.delete(segment_name(segment_id))
        draft = self._draft = self._small.draft() if self._small else self._store.draft(segment_id)
        draft.truncate(0)
        a, b, c, d = self._state.tolist()
        draft.write(seg.head((a, b, c, d), big_endian=self._source.big_endian, bare=self._source.bare))
        self._position = draft.size
        return draft

    def _close_segment(self) -> None:
        """Resolve the segment's table against the past, and submit the rest to the syncing worker."""
        draft = self._draft
        assert draft is not None
        # What the segment's records mean for older runs. The mark is as of now: the next batch moves on.
        records = self._rows.records
        table, dead = self._resolved()
        a, b, c, d = self._state.tolist()
        segment_id = f"{self._txg:x}-{self._begun:x}"
        body = self._position - seg.HEAD_SIZE
        # All of the body must be written before the table follows it.
        _drain(self._writing, 0)
        if draft.size != self._position:
            raise RuntimeError(f"segment {segment_id}: {draft.size} bytes were written, not {self._position}")

        def publish() -> None:
            footer = seg.finish(draft, table, (a, b, c, d), records)
            size = draft.size
            draft.publish(segment_name(segment_id))
            self._published = segment_name(segment_id), footer, table
            self._unpublished.remove(draft)
            self.tally.count(segment_id, table, records, body, size, dead)

        # An interruption among these lines must not let keep() believe that the segment is closed, or still open.
        self._in_step = False
        self._unpublished.append(draft)
        self._draft = None
        self._begun += 1
        self._mark = (a, b, c, d), self._last, self._last_write
        self._closing.append(self._syncer.submit(publish))
        self._in_step = True
        self._tell()
        _drain(self._closing, MAX_UNSYNCED)

    def _resolved(self) -> tuple[Table, dict[int, list[int]]]:
        """The table of the segment, and what it kills of the past."""
        new, kind = self._rows.table(), self._source.kind
        if self._small is not None and self._past and self._begun == 0:
            found = self._small.living.resolve(new, self._timeline, self._past, kind, self._txg)
            if found is not None:
                return found
        return resolve(new, self._timeline, self._past, kind)

    def _tell(self) -> None:
        """Tell `on_segment` of the segment that was closed last, once it is durable."""
        if self._on_segment and self._mark:
            _drain(self._closing, 0)
            self._on_segment(ResumePoint(self.tally, *self._mark))
        self._mark = None


class _Memory:
    """A draft in memory, whose publishing is left to who asked for it."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._buffers: list[Buffer] = []
        self.size = 0

    def write(self, *buffers: Buffer, soon: bool = False) -> None:
        self._buffers += buffers
        self.size += sum(len(memoryview(buffer).cast("B")) for buffer in buffers)

    def truncate(self, size: int) -> None:
        assert size == self.size == 0

    def publish(self, name: str) -> None:
        self._files.append((name, self._buffers))

    def discard(self) -> None:
        """It takes no room on a disk."""


@dataclass(frozen=True)
class Small:
    """Receives a small run: its file is left in `files`, for Store.put_all(). `living`: what is known of the past."""

    living: Living
    files: Files = field(default_factory=list)

    def draft(self) -> _Memory:
        return _Memory(self.files)


class _AtOnce(Executor):
    """An executor that does what is submitted at once."""

    def submit(self, fn: Callable[P, Made], /, *args: P.args, **kwargs: P.kwargs) -> Future[Made]:
        done: Future[Made] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


class RecordCounter(SegmentWriter):
    """A SegmentWriter for dry runs: it counts records, and stores nothing."""

    def add(self, batch: Batch) -> None:
        self.tally.bytes += len(batch.buffer)
        self.tally.records += len(batch)


def _drain(tasks: list[Future[None]], most: int) -> None:
    """Wait until at most `most` tasks are pending; raises the first failure, and again whenever it is called then."""
    while len(tasks) > most:
        # One that failed, or that an interruption keeps us from waiting for, stays in the list: nobody may take it
        # for done.
        tasks[0].result()
        del tasks[0]


def _copy(batch: Batch) -> Batch:
    """Copy a batch to memory of its own."""
    columns = (batch.offsets, batch.types, batch.lengths, batch.checks, batch.sums)
    return Batch(memoryview(bytearray(batch.buffer)), batch.offset, *columns, batch.byteorder)


def _advance(batch: Batch) -> Array:
    """The running fletcher-4 after the batch: the one in its last record, continued over the rest of that record."""
    # The last 32 bytes of a header are the sum over all of the stream before them. Only what follows is summed here:
    #
    # record  | type, length, fields ... | checksum (32) | payload |
    #                                    ^ start: the sum so far; it goes on with its own 32 bytes and the payload
    last = len(batch) - 1
    start = int(batch.offsets[last]) + CHECKSUM
    words = "<u8" if batch.byteorder == "little" else ">u8"
    carried = np.frombuffer(batch.buffer[start : start + 32], words)
    rest = batch.buffer[start : int(batch.offsets[last] + batch.lengths[last])]
    after = kernel.fletcher4(rest, tuple(carried.tolist()), batch.byteorder != NATIVE)
    return np.array(after, np.uint64)
