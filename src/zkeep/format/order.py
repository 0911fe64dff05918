"""The legal order of records in a substream.

A sender walks the dataset once, in ascending order, and says each thing once (OpenZFS module/zfs/dmu_send.c,
send_cb(), do_dump(); dmu_recv.c, receive_process_write_record(), counts on it for resuming). So two positions
only ever move forward:

- in object numbers, for OBJECT, OBJECT_RANGE and FREEOBJECTS: none begins before the end of another;
- in (object, offset), for the data of objects: WRITE, FREE, WRITE_EMBEDDED and REDACT of one object ascend
  without overlap, and objects' data follow one another.

| record                  | moves            | needs before it                                      |
| ----------------------- | ---------------- | ---------------------------------------------------- |
| OBJECT_RANGE            | object numbers   | nothing                                              |
| OBJECT                  | object numbers   | raw: the OBJECT_RANGE of its block of 32 slots       |
| FREEOBJECTS             | object numbers   | nothing                                              |
| WRITE, WRITE_EMBEDDED   | (object, offset) | the OBJECT; raw: a WRITE is one whole, aligned block |
| FREE, REDACT            | (object, offset) | the OBJECT                                           |
| FREE of length 2^64-1   | nothing, unless data of its object came | the OBJECT                    |
| SPILL; a misplaced one  | object only      | the OBJECT                                           |
| SPILL, UNMODIFIED       | nothing          | the OBJECT                                           |

"The OBJECT" is the latest one; or, from senders up to 0.8 that sent up to 32 OBJECTs of a block first and
then their data, one of the latest one's block. A resumed stream begins with the OBJECT it was cut in
(dump_dnode() leaves out only those before it), so it needs no rule of its own.

What is remembered between batches is two positions and the OBJECTs of one block, whatever is received.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from zkeep.format.dnode import SLOTS
from zkeep.format.events import Batch
from zkeep.format.limits import TO_THE_END, Violation, earliest, slots
from zkeep.format.records import RecordFlag, RecordType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    U64s = NDArray[np.uint64]
    I64s = NDArray[np.int64]
    Types = NDArray[np.uint8]
    Mask = NDArray[np.bool_]

_BLOCK_SHIFT = np.uint64(5)
_ZERO = np.zeros(1, np.uint64)
_NUMBERS = (RecordType.OBJECT, RecordType.OBJECT_RANGE, RecordType.FREEOBJECTS)
_DATA = (
    RecordType.WRITE,
    RecordType.FREE,
    RecordType.WRITE_EMBEDDED,
    RecordType.REDACT,
    RecordType.SPILL,
)


class Order:
    """Checks the order of one substream's records, which must have passed Limits."""

    def __init__(self, raw: bool) -> None:
        self._raw = raw
        self._numbers_end = np.uint64(0)
        self._range: np.uint64 | None = None
        self._objects = np.empty(0, np.uint64)
        self._blksz = np.empty(0, np.uint64)
        self._data_object = np.uint64(0)
        self._placed_object = np.uint64(0)
        self._placed_end = np.uint64(0)

    def check(self, batch: Batch) -> Violation | None:
        """The first record out of order. After one, do not use this object again."""
        # Object numbers of OBJECT, OBJECT_RANGE and FREEOBJECTS records.
        found = self._check_numbers(batch)
        # Data up to the first fault, which must belong to an OBJECT that was sent before it,
        data = _Data.of(batch, len(batch) if found is None else found.index)
        known = _Known(self._objects, self._blksz, batch)
        found = earliest(found, _check_owner(batch, data, known))
        # and ascend by object and offset.
        found = earliest(found, self._check_data(data, known))
        self._objects, self._blksz = known.last_block()
        return found

    # object numbers

    def _check_numbers(self, batch: Batch) -> Violation | None:
        # The three record types together, in the order in which they came.
        columns = [_numbers(batch, rtype) for rtype in _NUMBERS]
        index = np.concatenate([column[0] for column in columns])
        if not len(index):
            return None
        order = np.argsort(index)
        index = index[order]
        start = np.concatenate([column[1] for column in columns])[order]
        stop = np.concatenate([column[2] for column in columns])[order]
        is_range = batch.types[index] == RecordType.OBJECT_RANGE
        # None may begin before the highest end of those before it.
        reached = np.maximum.accumulate(np.concatenate([[self._numbers_end], stop]))
        found = _where(start < reached[:-1], index, "object numbers must ascend: {} comes after {}", start, reached)
        found = earliest(found, self._check_ranges(index, start, stop, is_range, batch))
        self._numbers_end = reached[-1]
        return found

    def _check_ranges(self, index: I64s, start: U64s, stop: U64s, is_range: Mask, batch: Batch) -> Violation | None:
        """OBJECT_RANGEs ascend strictly; in a raw stream each OBJECT lies in the latest."""
        if not self._raw:
            return None
        # The OBJECT_RANGE that is in force at each record: the highest start so far.
        is_object = batch.types[index] == RecordType.OBJECT
        before = _ZERO if self._range is None else np.array([self._range])
        latest = np.maximum.accumulate(np.concatenate([before, np.where(is_range, start, 0)]))
        any_range = np.logical_or.accumulate(np.concatenate([[self._range is not None], is_range]))
        again = is_range & any_range[:-1] & (start <= latest[:-1])
        outside = is_object & (~any_range[1:] | (start < latest[1:]) | (stop > latest[1:] + np.uint64(SLOTS)))
        if any_range[-1]:
            self._range = latest[-1]
        return earliest(
            _where(again, index, "it begins at {} like, or before, the one before it", start),
            _where(outside, index, "object {} does not lie in the OBJECT_RANGE before it", start),
        )

    # data

    def _check_data(self, data: _Data, known: _Known) -> Violation | None:
        """Check that data ascend by object, and within one object by offset, without overlap."""
        # First by object, then within each object by offset.
        moving = data.pick(data.moving(self._data_object))
        if not len(moving.index):
            return None
        before = _before(self._data_object, moving.object)
        late = moving.object < before
        found = _where(late, moving.index, "data of object {} come after data of object {}", moving.object, before)
        self._data_object = moving.object[-1]
        placed = moving.pick(moving.placed())
        if len(placed.index):
            same = placed.object == _before(self._placed_object, placed.object)
            reached = _before(self._placed_end, placed.end)
            self._placed_object, self._placed_end = placed.object[-1], placed.end[-1]
            overlap = same & (placed.start < reached)
            found = earliest(
                found, _where(overlap, placed.index, "offset {} comes after data up to {}", placed.start, reached)
            )
        if self._raw:
            # Each WRITE of a raw stream is exactly one block of its object.
            writes = placed.pick(placed.type == RecordType.WRITE)
            blksz = known.blksz_of(writes.object)
            wrong = (writes.end - writes.start != blksz) | (writes.start % blksz != 0)
            other = _where(wrong, writes.index, "at offset {} there is no block of {} bytes", writes.start, blksz)
            found = earliest(found, other)
        return found


def _check_owner(batch: Batch, data: _Data, known: _Known) -> Violation | None:
    """Check that data belong to the latest OBJECT, or to another one of its block of dnodes."""
    # Nearly always data belong to the OBJECT just before; only where not, the older ones are searched.
    latest = known.latest(batch, data.index)
    odd = np.flatnonzero(data.object != latest)
    if not len(odd):
        return None
    objects, newest = data.object[odd], latest[odd]
    same_block = (objects < newest) & (objects >> _BLOCK_SHIFT == newest >> _BLOCK_SHIFT)
    wrong = ~(same_block & known.has(objects))
    return _where(wrong, data.index[odd], "object {} has no OBJECT record just before", objects)


def _numbers(batch: Batch, rtype: RecordType) -> tuple[I64s, U64s, U64s]:
    """Records of a type: their places in the batch, and the first and the end of the object numbers they cover."""
    index, h = batch.select(rtype)
    if rtype == RecordType.OBJECT:
        return index, h["object"], h["object"] + slots(h).astype(np.uint64)
    if rtype == RecordType.FREEOBJECTS:
        return index, h["firstobj"], h["firstobj"] + h["numobjs"]
    return index, h["firstobj"], h["firstobj"]


class _Known:
    """The OBJECTs that data may belong to: those of this batch, and of the last block before it."""

    def __init__(self, objects: U64s, blksz: U64s, batch: Batch) -> None:
        self._index, headers = batch.select(RecordType.OBJECT)
        self._carried = len(objects)
        self._objects = np.concatenate([objects, headers["object"]])
        self._blksz = np.concatenate([blksz, headers["blksz"].astype(np.uint64)])

    def latest(self, batch: Batch, index: I64s) -> U64s:
        """The latest OBJECT before each record; 0 where there is none."""
        objects = np.concatenate([_ZERO, self._objects])
        return objects[self._carried + np.searchsorted(self._index, index)]

    def has(self, objects: U64s) -> Mask:
        place = np.searchsorted(self._objects, objects).clip(max=len(self._objects) - 1)
        if not len(self._objects):
            return np.zeros(len(objects), np.bool_)
        found: Mask = self._objects[place] == objects
        return found

    def blksz_of(self, objects: U64s) -> U64s:
        """Block sizes of objects that are known; for others the result means nothing."""
        if not len(self._objects):
            return np.ones(len(objects), np.uint64)
        blksz: U64s = self._blksz[np.searchsorted(self._objects, objects).clip(max=len(self._objects) - 1)]
        return blksz

    def last_block(self) -> tuple[U64s, U64s]:
        if not len(self._objects):
            return self._objects, self._blksz
        # Data of the next batch may belong to any OBJECT in the last one's block of 32 slots.
        recent = self._objects >> _BLOCK_SHIFT == self._objects[-1] >> _BLOCK_SHIFT
        return self._objects[recent], self._blksz[recent]


@dataclass(frozen=True, slots=True)
class _Data:
    """Records that carry data of objects, in their order."""

    index: I64s
    type: Types
    object: U64s
    start: U64s
    end: U64s
    still: Mask
    "Unmodified SPILLs, and FREEs to the end."

    @classmethod
    def of(cls, batch: Batch, count: int) -> _Data:
        columns = [_placed(batch, rtype) for rtype in _DATA]
        index = np.concatenate([column[0] for column in columns])
        # Types were selected one by one: sort them back into the order of the stream, up to the first fault.
        order = np.argsort(index)
        order = order[: np.searchsorted(index[order], count)]
        objects, start, length, still = (np.concatenate([c[i] for c in columns])[order] for i in range(1, 5))
        end = start + length
        end[end < start] = TO_THE_END
        return cls(index[order], batch.types[index[order]], objects, start, end, still)

    def pick(self, chosen: Mask) -> _Data:
        return _Data(
            self.index[chosen],
            self.type[chosen],
            self.object[chosen],
            self.start[chosen],
            self.end[chosen],
            self.still[chosen],
        )

    def placed(self) -> Mask:
        """Which records have an offset within the object. Non-raw senders send a small spill block as a
        WRITE_EMBEDDED that begins just before 2^64 (openzfs/zfs#18239)."""
        misplaced = (self.type == RecordType.WRITE_EMBEDDED) & (self.start >= np.uint64(1 << 63))
        placed: Mask = (self.type != RecordType.SPILL) & ~misplaced
        return placed

    def moving(self, data_object: np.uint64) -> Mask:
        """All records but unmodified SPILLs, and FREEs to the end that come before their object's data."""
        moving = ~self.still
        # A FREE to the end follows its OBJECT before there are data; behind data of its object it is data, too.
        to_end = np.flatnonzero(self.still & (self.type == RecordType.FREE))
        if len(to_end):
            owner = np.concatenate([np.array([data_object], np.uint64), self.object[moving]])
            latest = owner[np.searchsorted(self.index[moving], self.index[to_end])]
            moving[to_end[latest == self.object[to_end]]] = True
        return moving


def _placed(batch: Batch, rtype: RecordType) -> tuple[I64s, U64s, U64s, U64s, Mask]:
    index, h = batch.select(rtype)
    none = np.zeros(len(h), np.uint64)
    if rtype == RecordType.SPILL:
        return index, h["object"], none, none, h["flags"] & np.uint8(RecordFlag.SPILL_UNMODIFIED) != 0
    if rtype == RecordType.FREE:
        return index, h["object"], h["offset"], h["length"], h["length"] == TO_THE_END
    length = h["logical_size"] if rtype == RecordType.WRITE else h["length"]
    return index, h["object"], h["offset"], length, np.zeros(len(h), np.bool_)


def _before(first: np.uint64, values: U64s) -> U64s:
    return np.concatenate([np.array([first], np.uint64), values[:-1]])


def _where(broken: Mask, index: I64s, reason: str, *evidence: U64s) -> Violation | None:
    if not np.count_nonzero(broken):  # of few, faster than any()
        return None
    i = int(np.argmax(broken))
    return Violation(int(index[i]), reason.format(*(int(column[i]) for column in evidence)))
