"""Every limit: the record just inside it is taken, the one just outside is refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from streamkit import GUID, PLAIN, RAW, attempt, made, one_range, plain_object, raw_object, read

from zkeep.errors import BadStream
from zkeep.format.records import (
    Feature,
    Free,
    FreeObjects,
    Layout,
    Object,
    Redact,
    Spill,
    Write,
    WriteByRef,
    WriteEmbedded,
)

LAST = (1 << 64) - 1
FREE = Free(object=1, offset=0, length=512, toguid=GUID)
FREEOBJECTS = FreeObjects(firstobj=2, numobjs=5, toguid=GUID)
REDACT = Redact(object=1, offset=0, length=512, toguid=GUID)
RAW_WRITE = Write(
    object=1, type=19, logical_size=512, compressed_size=512, compressiontype=2, checksumtype=7, toguid=GUID
)
PLAIN_WRITE = Write(object=1, type=19, logical_size=512, checksumtype=7, toguid=GUID)
RAW_SPILL = Spill(object=1, length=512, compressed_size=512, compressiontype=2, type=44, toguid=GUID)
PLAIN_SPILL = Spill(object=1, length=512, toguid=GUID)
EMBEDDED = WriteEmbedded(object=1, length=512, compression=15, lsize=512, psize=40, toguid=GUID)
BYREF = WriteByRef(object=1, length=512, toguid=GUID)
OBJECT, _ = raw_object(1)
PLAIN_OBJECT, _ = plain_object(1)


def payload(record: Layout) -> bytes:
    match record:
        case Object():
            return bytes(record.raw_bonuslen or -(-record.bonuslen // 8) * 8)
        case Write():
            return bytes(record.compressed_size if record.compressiontype else record.logical_size)
        case Spill():
            return bytes(record.compressed_size or record.length)
        case WriteEmbedded():
            return bytes(-(-record.psize // 8) * 8)
    return b""


def judged(record: Layout, features: Feature, **fields: Any) -> tuple[list[Any], Exception | None]:
    """A stream with this record where it may stand."""
    raw = bool(features & Feature.RAW)
    before: list[Any] = [one_range()] if raw else []
    if isinstance(record, Object):
        return attempt(made(*before, (record, payload(record)), features=features, **fields))
    before.append(raw_object(1) if raw else plain_object(1))
    return attempt(made(*before, (record, payload(record)), features=features, **fields))


@pytest.mark.parametrize(
    ("record", "features"),
    [
        *((record, RAW) for record in (OBJECT, FREE, FREEOBJECTS, RAW_WRITE, RAW_SPILL, REDACT)),
        *((record, PLAIN) for record in (PLAIN_OBJECT, FREE, PLAIN_WRITE, PLAIN_SPILL, EMBEDDED, REDACT)),
        (replace(PLAIN_WRITE, compressiontype=15, compressed_size=512), PLAIN),
        (replace(FREE, offset=512, length=LAST), RAW),
        (replace(FREE, offset=LAST - 511, length=512), RAW),
        (replace(EMBEDDED, offset=LAST - 0x3FF, length=0x200, lsize=0x200), PLAIN),
        (replace(OBJECT, dn_slots=0), RAW),
        (replace(OBJECT, indblkshift=0, nlevels=10), RAW),
        (replace(OBJECT, bonustype=0, bonuslen=0, raw_bonuslen=0, nblkptr=3), RAW),
        (replace(OBJECT, flags=6, raw_bonuslen=192), RAW),
        (replace(FREEOBJECTS, numobjs=LAST - 2), RAW),
        (replace(OBJECT, type=0x80 | 0x40 | 9), RAW),
    ],
)
def test_what_may_be_is_taken(record: Layout, features: Feature) -> None:
    _, error = judged(record, features)
    assert error is None


BROKEN = [
    (OBJECT, RAW, {"toguid": 5}, "toguid 0x5"),
    (OBJECT, RAW, {"object": 0}, "object number 0"),
    (OBJECT, RAW, {"object": 1 << 48}, "object number"),
    (OBJECT, RAW, {"type": 0}, "no type"),
    (OBJECT, RAW, {"type": 54}, "no object type 54"),
    (OBJECT, RAW, {"type": 0x80 | 10}, "no object type 138"),
    (OBJECT, RAW, {"type": 0x113}, "no object type 275"),
    (OBJECT, RAW, {"bonustype": 54}, "no bonus type 54"),
    (OBJECT, RAW, {"bonustype": 0}, "cannot have 168 bytes"),
    (OBJECT, RAW, {"bonustype": 17, "bonuslen": 0}, "cannot have 0 bytes"),
    (OBJECT, RAW & ~Feature.LARGE_DNODE, {"dn_slots": 2}, "LARGE_DNODE"),
    (OBJECT, RAW & ~Feature.LARGE_BLOCKS, {"blksz": 1 << 18}, "LARGE_BLOCKS"),
    (OBJECT, RAW, {"checksumtype": 15}, "checksum type 15"),
    (OBJECT, RAW, {"compress": 17}, "compression type 17"),
    (OBJECT, RAW, {"blksz": 513}, "multiple of 512"),
    (OBJECT, RAW, {"blksz": 0}, "512..16 MiB"),
    (OBJECT, RAW, {"blksz": (16 << 20) + 512}, "512..16 MiB"),
    (OBJECT, RAW, {"dn_slots": 33}, "more than 32"),
    (OBJECT, RAW, {"bonuslen": 324, "raw_bonuslen": 324}, "324 bytes does not fit"),
    (OBJECT, RAW, {"flags": 1}, "no such flags: 0x1"),
    (OBJECT, RAW, {"raw_bonuslen": 160}, "shorter than the bonus"),
    (OBJECT, RAW, {"indblkshift": 11}, "shift 11"),
    (OBJECT, RAW, {"indblkshift": 18}, "shift 18"),
    (OBJECT, RAW, {"nlevels": 0}, "0 levels"),
    (OBJECT, RAW, {"nlevels": 11}, "11 levels"),
    (OBJECT, RAW, {"nblkptr": 2}, "2 block pointers"),
    (OBJECT, RAW, {"raw_bonuslen": 324}, "raw bonus of 324 bytes does not fit"),
    (OBJECT, RAW, {"flags": 4, "raw_bonuslen": 196}, "raw bonus of 196 bytes does not fit"),
    (PLAIN_OBJECT, PLAIN, {"flags": 2}, "no such flags: 0x2"),
    (PLAIN_OBJECT, PLAIN, {"nblkptr": 1}, "must be zero"),
    (PLAIN_OBJECT, PLAIN, {"indblkshift": 17}, "must be zero"),
    (PLAIN_OBJECT, PLAIN, {"nlevels": 1}, "must be zero"),
    (PLAIN_OBJECT, PLAIN, {"raw_bonuslen": 168}, "must be zero"),
    (FREE, RAW, {"object": 0}, "object number 0"),
    (FREE, RAW, {"offset": LAST, "length": 2}, "overflow"),
    (REDACT, PLAIN, {"offset": LAST - 5, "length": 7}, "overflow"),
    (FREEOBJECTS, RAW, {"firstobj": LAST, "numobjs": 2}, "overflow"),
    (one_range(), PLAIN, {}, "only for raw"),
    (one_range(), RAW, {"numslots": 31}, "31 slots"),
    (one_range(), RAW, {"firstobj": 33}, "first object 33"),
    (one_range(), RAW, {"firstobj": 1 << 48}, "beyond the last"),
    (RAW_SPILL, RAW, {"type": 54}, "no object type"),
    (RAW_SPILL, RAW, {"length": 256, "compressed_size": 256}, "512..16 MiB"),
    (RAW_SPILL, RAW, {"compressed_size": 0}, "if, and only if"),
    (PLAIN_SPILL, PLAIN, {"compressed_size": 512}, "if, and only if"),
    (PLAIN_SPILL, PLAIN, {"compressiontype": 15}, "not raw"),
    (RAW_SPILL, RAW, {"compressiontype": 17}, "compression type 17"),
    (RAW_SPILL, RAW, {"compressiontype": 16}, "not announced"),
    (RAW_SPILL, RAW, {"compressed_size": 1024}, "more than 512"),
    (RAW_WRITE, RAW, {"logical_size": 508, "compressed_size": 508}, "512..16 MiB"),
    (RAW_WRITE, RAW & ~Feature.LARGE_BLOCKS, {"logical_size": 1 << 18}, "LARGE_BLOCKS"),
    (RAW_WRITE, RAW, {"compressiontype": 17}, "compression type 17"),
    (RAW_WRITE, RAW & ~Feature.LZ4, {"compressiontype": 15}, "not announced"),
    (RAW_WRITE, RAW, {"compressiontype": 16}, "not announced"),
    (RAW_WRITE, RAW, {"compressed_size": 1024}, "more than 512"),
    (RAW_WRITE, RAW, {"offset": LAST - 510}, "overflow"),
    (RAW_WRITE, RAW, {"type": 54}, "no object type"),
    (RAW_WRITE, RAW, {"checksumtype": 15}, "checksum type"),
    (RAW_WRITE, RAW, {"compressed_size": 0}, "zero in a raw stream"),
    (RAW_WRITE, RAW, {"logical_size": 1024, "compressed_size": 516}, "compressed size 516 is not a multiple of 512"),
    (PLAIN_WRITE, PLAIN, {"logical_size": 516}, "logical size 516 is not a multiple of 512"),
    (RAW_SPILL, RAW, {"length": 1024, "compressed_size": 516}, "compressed size 516 is not a multiple of 512"),
    (PLAIN_SPILL, PLAIN, {"length": 520}, "length 520 is not a multiple of 512"),
    (RAW_WRITE, RAW, {"compressiontype": 0}, "zero in a raw stream"),
    (PLAIN_WRITE, PLAIN & ~Feature.COMPRESSED, {"compressiontype": 15, "compressed_size": 512}, "COMPRESSED"),
    (PLAIN_WRITE, PLAIN, {"compressed_size": 512}, "compressed size 512 with compression type 0"),
    (EMBEDDED, RAW, {}, "raw"),
    (EMBEDDED, PLAIN & ~Feature.EMBED_DATA, {}, "EMBED_DATA"),
    (EMBEDDED, PLAIN, {"length": (16 << 20) + 512}, "16 MiB"),
    (EMBEDDED, PLAIN & ~Feature.LARGE_BLOCKS, {"length": 1 << 18}, "LARGE_BLOCKS"),
    (EMBEDDED, PLAIN, {"psize": 113}, "113"),
    (EMBEDDED, PLAIN, {"compression": 17}, "compression type 17"),
    (EMBEDDED, PLAIN & ~Feature.LZ4, {}, "not announced"),
    (EMBEDDED, PLAIN, {"compression": 2}, "uncompressed"),
    (EMBEDDED, PLAIN, {"lsize": 39}, "more than 39"),
    (EMBEDDED, PLAIN, {"lsize": 1024}, "block of 512"),
    (EMBEDDED, PLAIN, {"offset": LAST - 100}, "overflow"),
    (EMBEDDED, PLAIN, {"etype": 3}, "embedded type 3"),
    (BYREF, PLAIN, {}, "zstream redup"),
]


@pytest.mark.parametrize(("record", "features", "change", "reason"), BROKEN)
def test_what_may_not_be_is_refused(record: Layout, features: Feature, change: dict[str, Any], reason: str) -> None:
    broken = replace(record, **change)
    found, error = judged(broken, features)
    assert isinstance(error, BadStream)
    assert reason in str(error)
    assert error.record == broken.RTYPE.name
    assert "\n" not in str(error)
    before = [event[0] for event in found[1:]]
    assert broken.RTYPE not in before or broken.RTYPE == one_range().RTYPE


def test_a_spill_block_must_be_announced() -> None:
    _, error = judged(replace(PLAIN_OBJECT, flags=4), PLAIN, flags=0)
    assert "announce" in str(error)


def test_the_first_fault_of_a_batch_is_told() -> None:
    bad = [(replace(RAW_WRITE, offset=512 * i, type=54 if i in (3, 5) else 19), bytes(512)) for i in range(8)]
    found, error = attempt(made(one_range(), raw_object(1), *bad))
    assert isinstance(error, BadStream)
    assert len(found) == 1 + 2 + 3
    assert error.offset == found[-1][1] + len(found[-1][2])
    assert read(made(one_range(), raw_object(1), *bad[:3]))
