"""Going on with an interrupted receive.

The resume token has the last WRITE that arrived; the sender goes on from there, beginning with the OBJECT_RANGE and
the OBJECT of that block (FREE_RULES A18). So everything in the resumed stream up to the last record that was kept is
skipped: the records of a stream ascend, and what follows is exactly the rest of the uninterrupted stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from zkeep.format.events import Batch
from zkeep.format.records import ByteOrder, RecordFlag, RecordType, Words
from zkeep.pool.timeline.spans import END, Array

Key = tuple[int, int, int]
"(object, turn, offset): where a record stands in the order of a stream."

_RANGE, _FREED, _OBJECT, _TAIL, _OLD_SPILL, _DATA, _NEW_SPILL = range(7)
START: Key = (0, -1, 0)


@dataclass(frozen=True)
class Resumed:
    """Where the receive stands. `state`: the running fletcher-4 after the last record kept."""

    txg: int
    doc: dict[str, Any]
    state: Words
    last: Key


def part(batch: Batch, first: int, last: int) -> Batch:
    """Some consecutive records of a batch, as a batch."""
    if first >= last:
        return _batch(batch.buffer[:0], batch.offset, [c[:0] for c in _columns(batch)], batch.byteorder)
    # Columns are cut with the records; offsets count from the start of the part's own buffer.
    start = int(batch.offsets[first])
    stop = int(batch.offsets[last - 1] + batch.lengths[last - 1])
    offsets, *others = (column[first:last] for column in _columns(batch))
    return _batch(batch.buffer[start:stop], batch.offset + start, [offsets - start, *others], batch.byteorder)


def _batch(buffer: memoryview, offset: int, columns: list[Array], byteorder: ByteOrder) -> Batch:
    offsets, types, lengths, checks, sums = columns
    return Batch(buffer, offset, offsets, types, lengths, checks, sums, byteorder)


def _columns(batch: Batch) -> tuple[Array, ...]:
    return batch.offsets, batch.types, batch.lengths, batch.checks, batch.sums


def keys(batch: Batch) -> tuple[Array, Array, Array]:
    """The columns object, turn and offset of each record."""
    count = len(batch)
    objects, offsets = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    turns = np.full(count, _DATA, np.int8)
    for rtype, turn in ((RecordType.OBJECT_RANGE, _RANGE), (RecordType.FREEOBJECTS, _FREED)):
        index, headers = batch.select(rtype)
        objects[index], turns[index] = headers["firstobj"], turn
    for rtype in (RecordType.WRITE, RecordType.FREE, RecordType.WRITE_EMBEDDED, RecordType.REDACT):
        index, headers = batch.select(rtype)
        objects[index], offsets[index] = headers["object"], headers["offset"]
    index, headers = batch.select(RecordType.OBJECT)
    objects[index], turns[index] = headers["object"], _OBJECT
    # Spill blocks: an unchanged one comes before the data of its object, a changed one after.
    index, headers = batch.select(RecordType.SPILL)
    unmodified = headers["flags"] & RecordFlag.SPILL_UNMODIFIED > 0
    objects[index], turns[index] = headers["object"], np.where(unmodified, _OLD_SPILL, _NEW_SPILL)
    index, headers = batch.select(RecordType.FREE)
    before = np.where(index > 0, batch.types[np.maximum(index - 1, 0)], RecordType.OBJECT)
    tails = index[(headers["length"] == END) & (before == RecordType.OBJECT)]
    turns[tails], offsets[tails] = _TAIL, 0
    return objects, turns, offsets


def last_key(batch: Batch) -> Key:
    objects, turns, offsets = keys(batch)
    return int(objects[-1]), int(turns[-1]), int(offsets[-1])


def last_write(batch: Batch) -> tuple[int, int] | None:
    """Object and offset of the last WRITE, from which a sender can go on."""
    _, headers = batch.select(RecordType.WRITE)
    return (int(headers["object"][-1]), int(headers["offset"][-1])) if len(headers) else None


def remainder(batch: Batch, last: Key) -> Batch:
    """The records of a resumed stream's batch that come after `last`."""
    objects, turns, offsets = keys(batch)
    # Keys compare like tuples (object, turn, offset); here column by column for all records at once.
    known = objects < last[0]
    known |= (objects == last[0]) & (turns < last[1])
    known |= (objects == last[0]) & (turns == last[1]) & (offsets <= last[2])
    return part(batch, int(known.sum()) if known[:1].any() else 0, len(batch))
