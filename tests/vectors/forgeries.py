"""Streams as a hostile server could make them: records changed, and every checksum right again."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np

from zkeep.format import kernel
from zkeep.format.events import Batch, SubBegin
from zkeep.format.reader import read_events
from zkeep.format.records import HEADER, LAYOUTS, NATIVE, Begin, End, Layout, RecordType


class Record:
    """One record of a stream that is not part of a package."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)

    @property
    def type(self) -> RecordType:
        return RecordType(int.from_bytes(self.content[:4], "little"))

    @property
    def header(self) -> Layout:
        return LAYOUTS[self.type].unpack(bytes(self.content[:HEADER]), "little")

    @property
    def object(self) -> int:
        return getattr(self.header, "object", getattr(self.header, "firstobj", -1))

    @property
    def payload(self) -> bytes:
        return bytes(self.content[HEADER:])

    def put(self, header: Layout, payload: bytes | None = None) -> None:
        self.content[HEADER:] = self.payload if payload is None else payload
        self.content[:HEADER] = header.pack("little")


def taken_apart(stream: bytes) -> list[Record]:
    """BEGIN, and all records up to END, which is left out."""
    assert NATIVE == "little"
    found = []
    for event in read_events(io.BytesIO(stream)):
        if isinstance(event, SubBegin):
            found.append(Record(event.header + event.payload))
        elif isinstance(event, Batch):
            for at, length in zip(event.offsets.tolist(), event.lengths.tolist(), strict=True):
                found.append(Record(bytes(event.buffer[at : at + length])))
    return found


def put_together(records: Iterable[Record]) -> bytes:
    """A stream with right checksums."""
    every = list(records)
    begin = every[0].header
    assert isinstance(begin, Begin)
    parts = [bytes(record.content) for record in every]
    parts.append(End(toguid=begin.toguid).pack("little"))
    lengths = np.array([len(part) for part in parts], np.int64)
    buffer = np.frombuffer(bytearray(b"".join(parts)), np.uint8)
    offsets = np.cumsum(lengths) - lengths
    sums = np.array([kernel.fletcher4(part[HEADER:], (0, 0, 0, 0), False) for part in parts], np.uint64)
    kernel.stamp(buffer, offsets, lengths, sums, False, kernel.zero_state())
    return buffer.tobytes()
