"""The events that a Reader yields, in the order of a stream: Package, (SubBegin, Batch..., SubEnd)..., PackageEnd."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from zkeep.format.nvlist import NvList
from zkeep.format.records import HEADER, LAYOUTS, NATIVE, Begin, ByteOrder, End, RecordType, Words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Headers = NDArray[np.void]
    Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Package:
    """The outer header of a compound stream (send -R, -I, -p); its own END was verified too."""

    header: Begin
    nvlist: NvList
    "Empty if there is none: send -I without -R or -p makes an outer header without a list."
    raw: bytes
    "Everything up to the first substream: BEGIN, nvlist and END, as they came."
    byteorder: ByteOrder
    offset: int


@dataclass(frozen=True, slots=True)
class SubBegin:
    """A substream begins: one snapshot of one dataset."""

    begin: Begin
    header: bytes
    "The record's bytes as they came, without the payload."
    payload: bytes
    nvlist: NvList | None
    "The payload, decoded; None if there is none."
    byteorder: ByteOrder
    offset: int
    empty: bool = False
    "Its END is the next event: the snapshot has no records of its own."
    small: bool = False
    "Its records are few, and all of them and its END were received with it: no event up to END has to be waited for."


@dataclass(slots=True)
class Batch:
    """Whole records of one substream, without its BEGIN and END: verified, within the limits, in legal order.

    `buffer` belongs to the Reader, which uses it again some calls of space() later (see there). `offsets` count
    from the buffer's start, `offset` says where in the stream that is. `lengths` are those of header and payload;
    `checks` and `sums` are those of kernel.py.
    """

    buffer: memoryview
    offset: int
    offsets: NDArray[np.int64]
    types: NDArray[np.uint8]
    lengths: NDArray[np.int64]
    checks: NDArray[np.uint64]
    sums: NDArray[np.uint64]
    byteorder: ByteOrder
    _rows: Any = field(default=None, repr=False)
    _selected: dict[RecordType, tuple[Index, Headers]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.offsets)

    def headers(self) -> NDArray[np.void]:
        """All headers as they came, one item per record."""
        if self._rows is None:
            # A view of every 312 bytes in the buffer, at every byte; indexing it with the offsets copies the headers
            # out.
            places = max(0, len(self.buffer) - HEADER + 1)
            self._rows = np.ndarray((places,), f"V{HEADER}", self.buffer, 0, (1,))[self.offsets]
        rows: NDArray[np.void] = self._rows
        return rows

    def select(self, rtype: RecordType) -> tuple[Index, Headers]:
        """The records of one type: their indices in this batch, and their headers in this machine's byte order."""
        if rtype not in self._selected:
            # Columns of one type are made once for all rules that look at them.
            index = np.flatnonzero(self.types == rtype)
            rows = self.headers()[index].view(LAYOUTS[rtype].dtype(self.byteorder))
            if self.byteorder != NATIVE:
                rows = rows.astype(LAYOUTS[rtype].dtype(NATIVE))
            self._selected[rtype] = index, rows
        return self._selected[rtype]

    def head(self, count: int) -> Batch:
        """The batch cut to its first records."""
        stop = int(self.offsets[count - 1] + self.lengths[count - 1]) if count else 0
        return Batch(
            buffer=self.buffer[:stop],
            offset=self.offset,
            offsets=self.offsets[:count],
            types=self.types[:count],
            lengths=self.lengths[:count],
            checks=self.checks[:count],
            sums=self.sums[:count],
            byteorder=self.byteorder,
        )

    def payload(self, i: int) -> memoryview:
        start = int(self.offsets[i])
        return self.buffer[start + HEADER : start + int(self.lengths[i])]


@dataclass(frozen=True, slots=True)
class SubEnd:
    """The substream is complete: its END agrees with all that came. Nothing of it may be kept before this."""

    end: End
    header: bytes
    offset: int
    state: Words
    "The running fletcher-4 before the END, which is its body_checksum."
    small_follows: bool = False
    "The next substream is in memory as a whole, and `small`: no byte is waited for until its END."


@dataclass(frozen=True, slots=True)
class PackageEnd:
    """The compound stream is complete."""

    offset: int


Event = Package | SubBegin | Batch | SubEnd | PackageEnd
