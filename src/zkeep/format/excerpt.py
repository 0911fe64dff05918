"""Excerpts of send streams: some records of one raw snapshot, and of some of them only the headers.

A stream cannot leave payloads out: how long a record is follows from its header. So an excerpt says how long each of
its records is, and otherwise has records as a stream has them, stamped with the running checksum:

    magic      16 bytes, which no reader of streams takes for a BEGIN
    frame      u32 how many records, u32 for each its length in bytes, then the records, back to back
    ...        the first frame is the BEGIN alone, the last one the END alone; integers are little-endian

A WRITE may be 312 bytes long: then it is its header, with salt, IV and MAC, without the payload. The others are
OBJECT_RANGE, OBJECT and SPILL records, whole. They stand in the order of a stream (order.py). What is missing is
noticed by who has the key: the portable MAC covers all OBJECT_RANGEs, and so on down to each block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from zkeep.errors import BadStream
from zkeep.format import kernel
from zkeep.format.events import Batch, SubBegin, SubEnd
from zkeep.format.limits import Limits, refuse_begin
from zkeep.format.nvlist import BadNvlist, decode
from zkeep.format.order import Order
from zkeep.format.records import HEADER, MAGIC, MAX_PAYLOAD, NATIVE, Begin, ByteOrder, End, RecordType, other

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64s = NDArray[np.int64]

EXCERPT_MAGIC = b"zkeep excerpt 1\n"
MAX_RECORDS = 1 << 16
"Records in a frame."
MAX_FRAME = 48 << 20
"Bytes of the records of a frame: some MiB, and one large record."
MAX_BEGIN = 1 << 20
_TYPES = (RecordType.OBJECT_RANGE, RecordType.OBJECT, RecordType.WRITE, RecordType.SPILL)


def frame_head(lengths: NDArray[Any]) -> bytes:
    """What stands before records of these lengths."""
    return len(lengths).to_bytes(4, "little") + lengths.astype("<u4").tobytes()


class ExcerptReader:
    """Reads one excerpt, from its magic to its end: a SubBegin, Batches, a SubEnd.

    A WRITE without payload has the length of a header in its batch. `most`: bytes of the whole excerpt that are read.

    Raises (events):
        BadStream: it is no excerpt, breaks a rule, is cut short or longer than that.
    """

    def __init__(self, source: BinaryIO, most: int) -> None:
        self._source = source
        self._most = most
        self._at = 0
        self._order: ByteOrder = "little"
        self._state = kernel.zero_state()

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return self._at

    def events(self) -> Iterator[SubBegin | Batch | SubEnd]:
        if self._read(len(EXCERPT_MAGIC)).tobytes() != EXCERPT_MAGIC:
            raise BadStream("it does not begin like an excerpt", 0)
        begin = self._begin()
        yield begin
        limits, order = Limits(begin.begin), Order(begin.begin.raw)
        while True:
            start, lengths, buffer = self._frame()
            if len(lengths) == 1 and self._types(buffer, lengths)[0] == RecordType.END:
                yield self._end(begin.begin, start, buffer)
                return
            batch = self._batch(start, lengths, buffer)
            for check in (limits.check, order.check):
                if (found := check(batch)) is not None:
                    name = RecordType(int(batch.types[found.index])).name
                    raise BadStream(found.reason, start + int(batch.offsets[found.index]), name)
            yield batch

    # Frames

    def _frame(self) -> tuple[int, I64s, NDArray[np.uint8]]:
        """Where the records of the next frame start, their lengths, and the records."""
        at = self._at
        count = int.from_bytes(self._read(4).tobytes(), "little")
        if not 0 < count <= MAX_RECORDS:
            raise BadStream(f"a frame of {count} records", at)
        lengths = self._read(4 * count).view("<u4").astype(np.int64)
        # Bounds before memory is taken: a record is a header and at most one block.
        if (lengths < HEADER).any() or (lengths > HEADER + MAX_PAYLOAD).any() or int(lengths.sum()) > MAX_FRAME:
            raise BadStream("a frame has a record of a length that none has", at)
        return self._at, lengths, self._read(int(lengths.sum()))

    def _read(self, size: int) -> NDArray[np.uint8]:
        if self._at + size > self._most:
            raise BadStream(f"it is longer than the {self._most} bytes that it can have", self._at)
        room = np.empty(size, np.uint8)
        view = room.data
        while view:
            count = self._source.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise BadStream("it ends before its END", self._at)
            self._at += count
            view = view[count:]
        return room

    # Records

    def _begin(self) -> SubBegin:
        start, lengths, buffer = self._frame()
        content = buffer.tobytes()
        header, payload = content[:HEADER], content[HEADER:]
        # The magic number reads right in only one of the two byte orders.
        orders = [order for order in (NATIVE, other(NATIVE)) if int.from_bytes(header[8:16], order) == MAGIC]
        if len(lengths) != 1 or not orders or len(content) > MAX_BEGIN:
            raise BadStream("it has no BEGIN", start)
        self._order = orders[0]
        try:
            begin = Begin.unpack(header, self._order)
            nvlist = decode(payload) if payload else None
        except (BadNvlist, ValueError) as error:
            raise BadStream(str(error), start, "BEGIN") from None
        refusal = refuse_begin(begin, nvlist) or ("it is not raw" if not begin.raw else None)
        if begin.payloadlen != len(payload) or int.from_bytes(header[:4], self._order) != RecordType.BEGIN:
            refusal = "it is not as long as it says"
        if refusal:
            raise BadStream(refusal, start, "BEGIN")
        self._state = np.array(kernel.fletcher4(content, (0, 0, 0, 0), self._swap), np.uint64)
        return SubBegin(begin, header, payload, nvlist, self._order, start)

    @property
    def _swap(self) -> bool:
        return self._order != NATIVE

    def _types(self, buffer: NDArray[np.uint8], lengths: I64s) -> NDArray[np.uint32]:
        words = np.ndarray((len(buffer) - 3,), "V4", buffer.data, 0, (1,))[np.cumsum(lengths) - lengths]
        types: NDArray[np.uint32] = words.view("<u4" if self._order == "little" else ">u4")
        return types

    def _batch(self, start: int, lengths: I64s, buffer: NDArray[np.uint8]) -> Batch:
        """The records of a frame, whose checksums agree and whose lengths are those that their headers say."""
        offsets = np.cumsum(lengths) - lengths
        types = self._types(buffer, lengths)
        if odd := np.flatnonzero(~np.isin(types, _TYPES)).tolist():
            raise BadStream(f"there is a record of type {types[odd[0]]}", start + int(offsets[odd[0]]))
        self._state, bad, checks, sums = kernel.verify(buffer, offsets, lengths, self._swap, self._state)
        if bad >= 0:
            raise BadStream("the checksum differs", start + int(offsets[bad]))
        view = buffer.data.toreadonly()
        batch = Batch(view, start, offsets, types.astype(np.uint8), lengths, checks, sums, self._order)
        wrong = np.flatnonzero(~_are_right(batch))
        if len(wrong):
            raise BadStream("a record is not as long as it says", start + int(offsets[wrong[0]]))
        return batch

    def _end(self, begin: Begin, start: int, buffer: NDArray[np.uint8]) -> SubEnd:
        header = buffer.tobytes()
        end = End.unpack(header, self._order)
        a, b, c, d = self._state.tolist()
        if len(header) != HEADER or end.body_checksum != (a, b, c, d) or end.toguid != begin.toguid:
            raise BadStream("it does not agree with what came before", start, "END")
        if self._source.read(1):
            raise BadStream("there is data after its END", self._at)
        return SubEnd(end, header, start, (a, b, c, d))


def _are_right(batch: Batch) -> NDArray[np.bool_]:
    """Whether each record is as long as its header says; a WRITE may be a header alone."""
    sizes = np.zeros(len(batch), np.uint64)
    index, heads = batch.select(RecordType.OBJECT)
    sizes[index] = np.where(heads["raw_bonuslen"] > 0, heads["raw_bonuslen"], (heads["bonuslen"] + 7) & ~np.uint32(7))
    for rtype in (RecordType.WRITE, RecordType.SPILL):
        index, heads = batch.select(rtype)
        sizes[index] = heads["compressed_size"]
    payloads = (batch.lengths - HEADER).astype(np.uint64)
    return np.asarray((sizes == payloads) | ((batch.types == RecordType.WRITE) & (payloads == 0)))
