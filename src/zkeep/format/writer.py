"""Writing send streams: the twin of Reader. No I/O here: every call returns the bytes to send next.

    writer = Writer()
    out.write(writer.begin(Begin(toguid=..., toname=b"a@b"), payload))
    out.write(writer.record(Object(...), bonus))
    out.write(writer.end())

Records are stamped with the running fletcher-4 as they pass. For records that already lie in a buffer, as
a pool keeps them, `stamp` does it in place, from their stored sums.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from zkeep.format import kernel
from zkeep.format.nvlist import NvList, encode
from zkeep.format.records import (
    MAX_PAYLOAD,
    NATIVE,
    Begin,
    ByteOrder,
    End,
    HeaderType,
    Layout,
    RecordType,
    Words,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Writer:
    """Builds one stream, simple or compound, in one byte order."""

    def __init__(self, byteorder: ByteOrder = NATIVE) -> None:
        self._byteorder = byteorder
        self._swap = byteorder != NATIVE
        self._state = kernel.zero_state()
        self._toguid: int | None = None
        self._compound = False

    @property
    def state(self) -> Words:
        """The running fletcher-4 of this substream."""
        a, b, c, d = self._state.tolist()
        return a, b, c, d

    def package(self, header: Begin, nvlist: NvList) -> bytes:
        """The outer header of a compound stream, with its own END; an empty list is left out, as for -I."""
        if self._compound or self._toguid is not None or header.hdrtype != HeaderType.COMPOUND:
            raise ValueError("an outer header stands first, and has the compound header type")
        packed = encode(nvlist) if nvlist else b""
        opening = self._open(dataclasses.replace(header, payloadlen=len(packed)), packed)
        self._compound = True
        return opening + End(body_checksum=self.state).pack(self._byteorder)

    def begin(self, begin: Begin, payload: bytes = b"") -> bytes:
        """A substream begins. `payload` is a packed nvlist."""
        if self._toguid is not None or begin.hdrtype != HeaderType.SUBSTREAM:
            raise ValueError("a substream begins after the end of another, and has the substream header type")
        self._toguid = begin.toguid
        return self._open(dataclasses.replace(begin, payloadlen=len(payload)), payload)

    def _open(self, begin: Begin, payload: bytes) -> bytes:
        self._state = kernel.zero_state()
        return self._stamped(begin, payload)

    def record(self, layout: Layout, payload: bytes | bytearray | memoryview = b"") -> bytes:
        """A record and its payload, which must be as long as the header says."""
        self._inside()
        if layout.RTYPE in (RecordType.BEGIN, RecordType.END):
            raise ValueError("BEGIN and END have calls of their own")
        return self._stamped(layout, payload)

    def stamp(
        self,
        buffer: bytearray | memoryview | NDArray[np.uint8],
        offsets: NDArray[np.int64],
        lengths: NDArray[np.int64],
        sums: NDArray[np.uint64],
    ) -> None:
        """Stamp records where they lie; they are to be sent in this order. See kernel.stamp()."""
        self._inside()
        self._state = kernel.stamp(buffer, offsets, lengths, sums, self._swap, self._state)

    def end(self) -> bytes:
        """The substream is complete."""
        toguid = self._inside()
        self._toguid = None
        return self._stamped(End(toguid=toguid), b"")

    def package_end(self) -> bytes:
        """The compound stream is complete."""
        if not self._compound or self._toguid is not None:
            raise ValueError("there is no compound stream to end")
        return End().pack(self._byteorder)

    def _inside(self) -> int:
        if self._toguid is None:
            raise ValueError("records stand in a substream")
        return self._toguid

    def _stamped(self, layout: Layout, payload: bytes | bytearray | memoryview) -> bytes:
        made = bytearray(layout.pack(self._byteorder)) + payload
        walk = kernel.walk(made, 0, len(made), self._swap, MAX_PAYLOAD)
        if walk.lengths.tolist() != [len(made)]:
            name = layout.RTYPE.name
            raise ValueError(f"{len(payload)} bytes are not the payload that this {name} tells")
        _, sums = kernel.check(made, walk.offsets, walk.lengths, self._swap)
        self._state = kernel.stamp(made, walk.offsets, walk.lengths, sums, self._swap, self._state)
        return bytes(made)
