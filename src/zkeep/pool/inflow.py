"""One substream on its way into the pool: records to segments, segments to a run.

Nothing here is visible to others until the caller commits the run's document: segments lie under names that only this
receive uses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zkeep.format import kernel
from zkeep.format.reader import Batch
from zkeep.format.records import HEADER, NATIVE, Words
from zkeep.pool import segment as seg
from zkeep.pool.intake import Intake
from zkeep.pool.resolve import Kind, resolve
from zkeep.pool.spans import Array
from zkeep.pool.store import Draft, Store
from zkeep.pool.table import Table
from zkeep.pool.timeline import Run, Timeline, segment_name

MAX_UNSYNCED = 2
"""Segments that may be on their way to the disk while the next one fills."""


@dataclass(frozen=True)
class Source:
    """What of a BEGIN matters here."""

    big_endian: bool
    spill_flags: bool
    kind: Kind


@dataclass
class Tally:
    """What a run holds and kills; becomes part of its document."""

    segments: list[str] = field(default_factory=list)
    bytes: int = 0
    logical: int = 0
    records: int = 0
    file_bytes: int = 0
    dead: dict[int, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))

    def count(self, segment_id: str, table: Table, records: int, size: int, dead: dict[int, list[int]]) -> None:
        self.segments.append(segment_id)
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
            "dead": {str(txg): amounts for txg, amounts in sorted(self.dead.items())},
        }


class Inflow:
    """Takes the batches of one substream, in order. Use as a context manager: leaving it early leaves no draft."""

    def __init__(
        self, store: Store, txg: int, source: Source, timeline: Timeline, past: list[Run], state: Words,
        on_segment: Callable[[Tally], None] | None = None,
    ) -> None:
        self.tally = Tally()
        self._store = store
        self._txg = txg
        self._source = source
        self._timeline = timeline
        self._past = past
        self._state = np.array(state, np.uint64)
        self._intake = Intake(source.spill_flags)
        self._draft: Draft | None = None
        self._writer = ThreadPoolExecutor(1)
        self._syncer = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._syncing: list[Future[None]] = []
        self._on_segment = on_segment

    def __enter__(self) -> Inflow:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.shutdown(wait=True, cancel_futures=True)
        self._syncer.shutdown(wait=True, cancel_futures=True)
        if self._draft is not None:
            self._draft.discard()
            self._draft = None

    def add(self, batch: Batch) -> None:
        """Take one batch; its memory may be used again when settle() has returned."""
        if self._draft is None:
            self._begin_segment()
        draft = self._draft
        assert draft is not None
        position = draft.size
        self._writing = self._writer.submit(draft.write, batch.buffer)
        self._intake.add(batch, position)
        self._state = _advance(self._state, batch)
        self.settle()
        if draft.size >= seg.TARGET and self._intake.closable:
            self._close_segment()

    def settle(self) -> None:
        """Wait until the last batch's bytes are written."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def finish(self) -> Tally:
        """Everything came: close the last segment and wait until all of them are durable."""
        if self._draft is not None:
            self._close_segment()
        self._wait(0)
        return self.tally

    def _begin_segment(self) -> None:
        self._intake = Intake(self._source.spill_flags)
        self._draft = self._store.draft(f"{self._txg:x}-{len(self.tally.segments):x}")
        self._draft.truncate(0)
        a, b, c, d = self._state.tolist()
        self._draft.write(seg.head((a, b, c, d), big_endian=self._source.big_endian))

    def _close_segment(self) -> None:
        draft, self._draft = self._draft, None
        assert draft is not None
        table, dead = resolve(self._intake.table(), self._timeline, self._past, self._source.kind)
        a, b, c, d = self._state.tolist()
        seg.finish(draft, table, (a, b, c, d), self._intake.records)
        segment_id = f"{self._txg:x}-{len(self.tally.segments):x}"
        self.tally.count(segment_id, table, self._intake.records, draft.size, dead)
        self._wait(MAX_UNSYNCED - 1)
        self._syncing.append(self._syncer.submit(draft.publish, segment_name(segment_id)))
        if self._on_segment:
            self._wait(0)
            self._on_segment(self.tally)

    def _wait(self, most: int) -> None:
        while len(self._syncing) > most:
            self._syncing.pop(0).result()


def _advance(state: Array, batch: Batch) -> Array:
    """The running fletcher-4 after the batch: what its last record carries, and that record's own end."""
    last = len(batch) - 1
    start = int(batch.offsets[last])
    swap = batch.byteorder != NATIVE
    carried = np.frombuffer(batch.buffer[start + HEADER - 32 : start + HEADER], "<u8" if batch.byteorder == "little" else ">u8")
    rest = batch.buffer[start + HEADER - 32 : start + int(batch.lengths[last])]
    after = kernel.fletcher4(rest, tuple(carried.tolist()), swap)
    return np.array(after, np.uint64)
