"""What the tests of the format share: real streams, made ones, and what was read of them in comparable form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from zkeep.format import kernel
from zkeep.format.events import Batch, Event, Package, PackageEnd, SubBegin, SubEnd
from zkeep.format.nvlist import NvList, encode
from zkeep.format.reader import Reader
from zkeep.format.records import (
    HEADER,
    LAYOUTS,
    NATIVE,
    Begin,
    BeginFlag,
    ByteOrder,
    Feature,
    Layout,
    Object,
    ObjectRange,
    RecordType,
)
from zkeep.format.writer import Writer

DATA = Path(__file__).parents[2] / "data"
STREAMS = sorted((DATA / "streams").glob("*.zfs"))
GUID = 0xABCDEF0123456789
RAW = Feature.RAW | Feature.COMPRESSED | Feature.LZ4 | Feature.LARGE_BLOCKS | Feature.LARGE_DNODE | Feature.SA_SPILL
PLAIN = Feature.EMBED_DATA | Feature.COMPRESSED | Feature.LZ4 | Feature.LARGE_BLOCKS | Feature.LARGE_DNODE


def stream(name: str) -> bytes:
    return (DATA / "streams" / f"{name}.zfs").read_bytes()


def flat(events: Iterable[Event]) -> Iterator[Any]:
    """Events, with batches as single records: comparable, however the stream was cut into batches."""
    for event in events:
        if isinstance(event, Batch):
            yield from records(event)
        elif isinstance(event, Package):
            yield "package", event.header, event.raw, dict(event.nvlist), event.byteorder, event.offset
        elif isinstance(event, SubBegin):
            nvlist = None if event.nvlist is None else dict(event.nvlist)
            yield "begin", event.begin, event.header, event.payload, nvlist, event.byteorder, event.offset
        elif isinstance(event, SubEnd):
            yield "end", event.end, event.header, event.offset, event.state
        else:
            assert isinstance(event, PackageEnd)
            yield "package end", event.offset


def records(batch: Batch) -> Iterator[Any]:
    assert len(batch)
    for i, start in enumerate(batch.offsets.tolist()):
        whole = bytes(batch.buffer[start : start + int(batch.lengths[i])])
        rtype = RecordType(int(batch.types[i]))
        yield rtype, batch.offset + start, whole, int(batch.checks[i]), tuple(batch.sums[i].tolist())


def read(data: bytes, pieces: Iterable[int] = (), size: int = 4 << 20) -> list[Any]:
    """All events of a whole stream, fed in pieces."""
    found, error = attempt(data, pieces, size)
    if error is not None:
        raise error
    return found


def attempt(data: bytes, pieces: Iterable[int] = (), size: int = 4 << 20) -> tuple[list[Any], Exception | None]:
    """Events up to the first error, and the error."""
    reader = Reader(size)
    found: list[Any] = []
    at = 0
    try:
        for piece in pieces:
            found += flat(reader.feed(data[at : at + piece]))
            at += piece
        found += flat(reader.feed(data[at:]))
        reader.finish()
    except Exception as error:
        return found, error
    return found, None


def transcribe(data: bytes, byteorder: ByteOrder) -> bytes:
    """Write the same stream again in a byte order."""
    out, writer = bytearray(), Writer(byteorder)
    for event in Reader(len(data) + 1024).feed(data):
        match event:
            case Package():
                out += writer.package(event.header, event.nvlist)
            case SubBegin():
                out += writer.begin(event.begin, event.payload)
            case Batch():
                for i, start in enumerate(event.offsets.tolist()):
                    layout = LAYOUTS[RecordType(int(event.types[i]))]
                    header = layout.unpack(event.buffer[start : start + HEADER], event.byteorder)
                    out += writer.record(header, event.payload(i))
            case SubEnd():
                out += writer.end()
            case PackageEnd():
                out += writer.package_end()
    return bytes(out)


def boundaries(data: bytes, swap: bool = False) -> list[tuple[int, int]]:
    """(offset, type) of every record of a well-formed stream."""
    found, at = [], 0
    while at < len(data):
        walk = kernel.walk(data, at, len(data), swap)
        assert len(walk.offsets)
        found += list(zip(walk.offsets.tolist(), walk.types.tolist(), strict=True))
        at = walk.stop
    return found


def restamp(data: bytearray, swap: bool = False) -> bytearray:
    """Make every checksum right again, as far as the stream can be walked."""
    at, state = 0, kernel.zero_state()
    while at < len(data):
        walk = kernel.walk(data, at, len(data), swap)
        if not len(walk.offsets) or walk.error:
            break
        if walk.types[0] == RecordType.BEGIN:
            state = kernel.zero_state()
        if walk.types[-1] == RecordType.END and not state.any():
            break
        _, sums = kernel.check(data, walk.offsets, walk.lengths, swap)
        state = kernel.stamp(data, walk.offsets, walk.lengths, sums, swap, state)
        if walk.types[-1] == RecordType.END:
            state = kernel.zero_state()
        at = walk.stop
    return data


def begin(features: Feature = RAW, **fields: Any) -> Begin:
    made = {"type": 2, "flags": BeginFlag.SPILL_BLOCK | BeginFlag.FREERECORDS, "toguid": GUID, "toname": b"t/a@b"}
    return Begin(versioninfo=1 | int(features) << 2, **(made | fields))


def keydata(**more: Any) -> bytes:
    nvlist = NvList()
    nvlist["crypt_keydata"] = NvList()
    nvlist.update(more)
    return encode(nvlist)


def made(
    *parts: Layout | tuple[Layout, bytes], features: Feature = RAW, byteorder: ByteOrder = NATIVE, **fields: Any
) -> bytes:
    """A stamped stream of one substream out of records (with payloads)."""
    writer = Writer(byteorder)
    payload = keydata() if features & Feature.RAW else b""
    out = writer.begin(begin(features, **fields), payload)
    for part in parts:
        out += writer.record(*part) if isinstance(part, tuple) else writer.record(part)
    return out + writer.end()


def one_range(first: int = 0) -> ObjectRange:
    return ObjectRange(firstobj=first, numslots=32, toguid=GUID)


def raw_object(number: int, **fields: Any) -> tuple[Object, bytes]:
    base = {"type": 19, "bonustype": 44, "blksz": 512, "bonuslen": 168, "raw_bonuslen": 320, "dn_slots": 1}
    shape = {"indblkshift": 17, "nlevels": 1, "nblkptr": 1, "toguid": GUID}
    header = Object(object=number, **(base | shape | fields))
    return header, bytes(header.raw_bonuslen or -(-header.bonuslen // 8) * 8)


def plain_object(number: int, **fields: Any) -> tuple[Object, bytes]:
    return raw_object(number, **({"raw_bonuslen": 0, "indblkshift": 0, "nlevels": 0, "nblkptr": 0} | fields))
