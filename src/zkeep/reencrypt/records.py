"""The records of a plain stream, one after the other, as far as they are needed to write the objects again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from zkeep.errors import BadStream
from zkeep.format.events import Batch, SubEnd
from zkeep.format.records import RecordType

FIELDS = {
    RecordType.OBJECT: (
        *("object", "type", "bonustype", "blksz", "bonuslen", "checksumtype", "compress", "dn_slots", "flags"),
    ),
    RecordType.FREEOBJECTS: ("firstobj", "numobjs"),
    RecordType.WRITE: ("object", "offset", "logical_size", "compressiontype", "compressed_size"),
    RecordType.FREE: ("object", "offset", "length"),
    RecordType.SPILL: ("object", "length", "flags"),
    RecordType.WRITE_EMBEDDED: ("object", "offset", "length", "compression", "etype", "lsize", "psize"),
    RecordType.REDACT: ("object", "offset", "length"),
}
"The fields that are read from headers. All but those of FREEOBJECTS begin with the number of the object."


class StreamRecord(NamedTuple):
    """One record. `at`: the byte of the stream at which it begins. `payload` is valid until the next is requested."""

    type: int
    at: int
    fields: tuple[Any, ...]
    payload: memoryview

    @property
    def name(self) -> str:
        return RecordType(self.type).name


class StreamRecords:
    """The records of one substream; the next one can be looked at before it is taken."""

    def __init__(self, events: Iterator[Batch | SubEnd], *, keeps: bool = False) -> None:
        """`keeps`: when the stream breaks off, what came is to be kept."""
        self._keeps = keeps
        self._records = self._read(events)
        self._next: StreamRecord | None = None
        self._begun = False
        self.end: SubEnd | None = None
        "The END, when all records were taken: the Reader has verified all of them."
        self.broken: BaseException | None = None
        "Why there is no END: the stream broke off."

    def peek(self) -> StreamRecord | None:
        """The next record; None behind the last one."""
        if not self._begun:
            self._begun, self._next = True, next(self._records, None)
        return self._next

    def take(self) -> None:
        """Go on behind the record that peek() gave."""
        self._begun = False

    def _read(self, events: Iterator[Batch | SubEnd]) -> Iterator[StreamRecord]:
        while True:
            try:
                event = next(events)
            # What came whole before the stream broke off is kept, if it can be resumed later.
            except (BadStream, OSError, KeyboardInterrupt) as error:
                if not self._keeps:
                    raise
                self.broken = error
                return
            if isinstance(event, SubEnd):
                self.end = event
                return
            yield from _records_of(event)


def _records_of(batch: Batch) -> Iterator[StreamRecord]:
    # Headers become tuples column by column, which costs far less than record by record.
    columns = {
        int(rtype): iter(batch.select(rtype)[1][list(FIELDS[rtype])].tolist())
        for rtype in FIELDS
        if (batch.types == rtype).any()
    }
    starts = (batch.offset + batch.offsets).tolist()
    for i, rtype in enumerate(batch.types.tolist()):
        yield StreamRecord(rtype, starts[i], next(columns[rtype]), batch.payload(i))
