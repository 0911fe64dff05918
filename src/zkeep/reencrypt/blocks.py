"""The data records of one object of a plain stream, as whole blocks.

A WRITE is one block as a rule, and is passed on as it came. A sender without -L cuts blocks of more than 128 KiB into
pieces, of which the last may be shorter than a block; a hole may begin or end within a block for the same reason.
Then a block is put together: from what the base has, pieces, and zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from zkeep.errors import BadStream
from zkeep.format.compress import BadCompression, Compression, decompress
from zkeep.format.limits import TO_THE_END
from zkeep.format.records import RecordType
from zkeep.names import MAX_UINT64
from zkeep.reencrypt.records import StreamRecord
from zkeep.snapshot.changes import Block

Buffer = bytes | bytearray | memoryview
EMBEDDED_DATA = 0
"BP_EMBEDDED_TYPE_DATA: the one embedded type that holds a block's content."


class BlockSource(Protocol):
    """The blocks of an object of the base, which stay unless the stream replaces them."""

    def content(self, number: int) -> bytes | None:
        """A block's content; None where it is a hole."""
        ...

    def live(self, first: int, end: int) -> Iterator[int]:
        """The numbers of its blocks in a range that are not holes."""
        ...


class NothingKept:
    """An object that is new: all its blocks are holes."""

    def content(self, number: int) -> bytes | None:
        return None

    def live(self, first: int, end: int) -> Iterator[int]:
        return iter(())


class BlockJoiner:
    """Makes blocks of `blksz` bytes of the records of one object; they come out in ascending order."""

    def __init__(self, blksz: int, end: int, kept: BlockSource) -> None:
        """`end`: bytes to the end of its last block, as the sender has it."""
        self._blksz = blksz
        self._end = end
        self._last = -(-end // blksz) - 1
        self._kept = kept
        self._number = -1
        self._part = bytearray()
        "The block `_number`, as far as it was put together."

    def add(self, record: StreamRecord) -> Iterator[Block]:
        """The blocks that are complete when this record is taken.

        Raises:
            BadStream: it does not decompress, or lies behind the object's end.
        """
        # A hole: whole blocks of it go, and what is put together gets zeros.
        if record.type == RecordType.FREE:
            yield from self._free(*record.fields[1:3])
            return
        offset, content, code = _content_of(record)
        number, within = divmod(offset, self._blksz)
        size = record.fields[2]
        if (offset + size - 1) // self._blksz > self._last:
            raise BadStream(f"object {record.fields[0]} ends before offset {offset}", record.at, record.name)
        # A whole block goes on as it came, compressed if it is.
        if size == self._blksz and not within:
            yield from self.flush()
            yield Block(number, content, code)
            return
        # A piece of a block: it is put together in clear, with the pieces beside it.
        if code is not None:
            content = _decompressed(record, content, code, size)
        yield from self._pieces(offset, memoryview(content))

    def flush(self) -> Iterator[Block]:
        """The block that was being put together, as it is."""
        if self._number >= 0:
            number, self._number = self._number, -1
            yield Block(number, bytes(self._part))

    def end(self) -> Iterator[Block]:
        """All records came: what the base has behind the object's end is gone."""
        yield from self.flush()
        yield from self._holes(self._last + 1, MAX_UINT64 // self._blksz)

    def _pieces(self, offset: int, content: memoryview) -> Iterator[Block]:
        while content:
            number, within = divmod(offset, self._blksz)
            piece = content[: self._blksz - within]
            # What lies behind the object's end is zeros, and a whole block needs nothing of the one before.
            alone = not within and (len(piece) == self._blksz or offset + len(piece) >= self._end)
            yield from self._open(number, alone=alone)
            self._part[within : within + len(piece)] = piece
            offset, content = offset + len(piece), content[len(piece) :]

    def _open(self, number: int, *, alone: bool = False) -> Iterator[Block]:
        if number != self._number:
            yield from self.flush()
            before = None if alone else self._kept.content(number)
            self._number = number
            self._part = bytearray(before or bytes(self._blksz))

    def _free(self, offset: int, length: int) -> Iterator[Block]:
        # The blocks [first, last) lie in the range as a whole; the one before and `last` may lie in it in part.
        end = TO_THE_END if length == TO_THE_END else min(offset + length, TO_THE_END)
        first, last = -(-offset // self._blksz), end // self._blksz
        edge = offset % self._blksz
        if edge:
            yield from self._zero(offset // self._blksz, edge, min(self._blksz, edge + end - offset))
        if first < last:
            yield from self.flush()
            yield from self._holes(first, last)
        if end % self._blksz and last >= first and last <= self._last:
            yield from self._zero(last, 0, end % self._blksz)

    def _zero(self, number: int, start: int, end: int) -> Iterator[Block]:
        """A part of a block becomes zeros, if it is not a hole."""
        if number == self._number or self._kept.content(number) is not None:
            yield from self._open(number)
            self._part[start:end] = bytes(end - start)

    def _holes(self, first: int, end: int) -> Iterator[Block]:
        for number in self._kept.live(first, end):
            yield Block(number, None)


def _content_of(record: StreamRecord) -> tuple[int, Buffer, int | None]:
    """Offset, content and compression of a WRITE or WRITE_EMBEDDED; an embedded block is expanded."""
    if record.type == RecordType.WRITE:
        _, offset, logical, code, _ = record.fields
        content = bytes(record.payload)
        if not code or code == Compression.OFF:
            return offset, content, None
        _decompressed(record, content, code, logical)  # what does not decompress would be lost silently
        return offset, content, code
    return record.fields[1], embedded_content(record), None


def embedded_content(record: StreamRecord) -> bytes:
    """The block that a WRITE_EMBEDDED is, with zeros behind what is stored."""
    _, _, length, code, etype, lsize, psize = record.fields
    if etype != EMBEDDED_DATA:
        raise BadStream(f"embedded type {etype} holds no data", record.at, record.name)
    return bytes(_decompressed(record, bytes(record.payload[:psize]), code, lsize)).ljust(length, b"\0")


def _decompressed(record: StreamRecord, content: Buffer, code: int, size: int) -> Buffer:
    try:
        return decompress(content, code, size)
    except BadCompression as error:
        raise BadStream(f"object {record.fields[0]}: {error}", record.at, record.name) from None
