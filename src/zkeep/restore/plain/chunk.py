"""From a batch of steps to records in one buffer: headers, bonus buffers, and room for the contents of blocks.

    step      OBJECT            FREE      WRITE of 1 MiB, cut                           ...
    records   header, bonus     header    header, 128 KiB   header, 128 KiB   ...

Source: OpenZFS module/zfs/dmu_send.c dump_dnode(), dmu_dump_write(), dump_spill(), dump_free(), dump_freeobjects().
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from zkeep.format.records import (
    HEADER,
    LAYOUTS,
    ByteOrder,
    Object,
    RecordFlag,
    RecordType,
    Spill,
    Write,
)
from zkeep.pool.timeline.emit import CHUNK, free_headers
from zkeep.pool.timeline.spans import Array
from zkeep.pool.transfer.plain import OLD_LARGEST
from zkeep.restore.plain.batch import PlainBatch

CHECKSUM_OFF = 2
"ZIO_CHECKSUM_OFF: the block's checksum on disk was that of its ciphertext."


def cuts(batch: PlainBatch) -> Iterator[tuple[int, int]]:
    """Cut the steps of a batch into chunks of about CHUNK bytes, each as [first, last)."""
    ends = np.cumsum(batch.sizes + batch.parts * HEADER)
    turns = np.flatnonzero(np.diff(ends // CHUNK)) + 1
    yield from ((a, b) for a, b in pairwise([0, *turns.tolist(), len(ends)]) if a < b)


class ChunkLayout:
    """Where the records of the steps [first, last) of a batch lie in a buffer of `size` bytes."""

    def __init__(self, batch: PlainBatch, first: int, last: int) -> None:
        self.batch = batch
        steps = np.arange(first, last)
        parts = batch.parts[first:last]
        # Each record: its step, and which part of that step's block it is.
        self.step = np.repeat(steps, parts)
        self.part = np.arange(len(self.step)) - np.repeat(np.cumsum(parts) - parts, parts)
        # The payload: all of the block, or 128 KiB of it, of which the last part may be shorter.
        whole = batch.sizes[self.step]
        cut = batch.parts[self.step] > 1
        payloads = np.where(cut, np.minimum(whole - self.part * OLD_LARGEST, OLD_LARGEST), whole)
        self.lengths = payloads + HEADER
        self.offsets = np.cumsum(self.lengths) - self.lengths
        self.size = int(self.lengths.sum())
        self.rtypes = batch.steps["rtype"][self.step]

    def blocks(self) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Each step that sends a block, and where the parts of its content go: [start, end) in the buffer."""
        at = np.flatnonzero((self.rtypes == RecordType.WRITE) | (self.rtypes == RecordType.SPILL))
        starts = (self.offsets[at] + HEADER).tolist()
        ends = (self.offsets[at] + self.lengths[at]).tolist()
        # Parts of one block follow one another, so a block is complete where the step changes.
        place: list[tuple[int, int]] = []
        before = -1
        for step, start, end in zip(self.step[at].tolist(), starts, ends, strict=True):
            if step != before and place:
                yield before, place
                place = []
            place.append((start, end))
            before = step
        if place:
            yield before, place


@dataclass(frozen=True)
class Headers:
    """Makes the headers of one stream, whose blocks are cut unless they are `large`."""

    order: ByteOrder
    toguid: int
    large: bool

    def make(self, buffer: Array, layout: ChunkLayout) -> None:
        """Make all headers and bonus buffers, but no running checksums."""
        for rtype, make in (
            (RecordType.OBJECT, self._objects),
            (RecordType.WRITE, self._writes),
            (RecordType.SPILL, self._spills),
            (RecordType.FREE, self._frees),
            (RecordType.FREEOBJECTS, self._frees),
        ):
            mine = np.flatnonzero(layout.rtypes == rtype)
            if not len(mine):
                continue
            # All headers of a type are made at once, as columns, and scattered to where their records begin.
            headers = make(layout, mine, rtype)
            headers["rtype"], headers["toguid"] = rtype, self.toguid
            buffer[layout.offsets[mine][:, None] + np.arange(HEADER)] = headers.view(np.uint8).reshape(-1, HEADER)
        self._bonuses(buffer, layout)

    def _empty(self, rtype: RecordType, count: int) -> Array:
        return np.zeros(count, LAYOUTS[rtype].dtype(self.order))

    def _frees(self, layout: ChunkLayout, mine: Array, rtype: RecordType) -> Array:
        return free_headers(layout.batch.steps[layout.step[mine]], rtype, self.order)

    def _objects(self, layout: ChunkLayout, mine: Array, _: RecordType) -> Array:
        batch = layout.batch
        dnodes = [batch.objects[n].dnode for n in batch.steps["object"][layout.step[mine]].tolist()]
        headers = self._empty(Object.RTYPE, len(mine))
        for name, source in _OBJECT:
            headers[name] = [getattr(dnode, source) for dnode in dnodes]
        headers["flags"] = headers["flags"] * RecordFlag.OBJECT_SPILL
        # A receiver without large blocks gets objects of at most 128 KiB blocks.
        if not self.large:
            headers["blksz"] = np.minimum(headers["blksz"], OLD_LARGEST)
        return headers

    def _bonuses(self, buffer: Array, layout: ChunkLayout) -> None:
        view, batch = buffer.data, layout.batch
        mine = np.flatnonzero(layout.rtypes == RecordType.OBJECT)
        numbers = batch.steps["object"][layout.step[mine]].tolist()
        places = zip(layout.offsets[mine].tolist(), layout.lengths[mine].tolist(), strict=True)
        for number, (start, length) in zip(numbers, places, strict=True):
            bonus = batch.objects[number].dnode.bonus
            view[start + HEADER : start + length] = bonus.ljust(length - HEADER, b"\0")

    def _writes(self, layout: ChunkLayout, mine: Array, _: RecordType) -> Array:
        batch, at = layout.batch, layout.step[mine]
        leaves, packed = batch.leaves[at], batch.packed[at]
        # All headers of the chunk at once, as arrays: `mine` are the rows that are WRITE records.
        payloads = layout.lengths[mine] - HEADER
        headers = self._empty(Write.RTYPE, len(mine))
        headers["object"], headers["type"] = batch.steps["object"][at], batch.kinds[at]
        # A block larger than 128 KiB goes as several records where the receiver does not know large blocks.
        headers["offset"] = leaves["offset"] + (layout.part[mine] * OLD_LARGEST).astype(np.uint64)
        # Blocks that leave as they are stored say how they are compressed; others are plain content.
        headers["checksumtype"] = CHECKSUM_OFF
        headers["logical_size"] = np.where(packed, leaves["logical"], payloads)
        headers["compressiontype"] = np.where(packed, leaves["compression"], 0)
        headers["compressed_size"] = np.where(packed, payloads, 0)
        return headers

    def _spills(self, layout: ChunkLayout, mine: Array, _: RecordType) -> Array:
        steps = layout.batch.steps[layout.step[mine]]
        headers = self._empty(Spill.RTYPE, len(mine))
        headers["object"], headers["length"] = steps["object"], layout.lengths[mine] - HEADER
        headers["flags"] = steps["unmodified"] * RecordFlag.SPILL_UNMODIFIED
        return headers


_OBJECT = (
    ("object", "number"),
    ("type", "type"),
    ("bonustype", "bonustype"),
    ("blksz", "blksz"),
    ("bonuslen", "bonuslen"),
    ("checksumtype", "checksum"),
    ("compress", "compress"),
    ("dn_slots", "slots"),
    ("flags", "has_spill"),
)
"Fields of an OBJECT record, and those of a Dnode. The others are 0 in plain streams."
