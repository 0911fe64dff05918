"""The table of order.py, row by row: what may follow what, however the stream is cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from streamkit import GUID, PLAIN, RAW, attempt, made, one_range, plain_object, raw_object, read

from zkeep.errors import BadStream
from zkeep.format.records import Feature, Free, FreeObjects, Redact, Spill, Write, WriteEmbedded

END = (1 << 64) - 1
UNMODIFIED = 4


def write(number: int, offset: int, size: int = 512, **fields: Any) -> tuple[Write, bytes]:
    header = Write(
        object=number,
        type=19,
        offset=offset,
        logical_size=size,
        compressed_size=size,
        compressiontype=2,
        checksumtype=7,
        toguid=GUID,
        **fields,
    )
    return header, bytes(size)


def plain_write(number: int, offset: int, size: int = 512) -> tuple[Write, bytes]:
    header, data = write(number, offset, size)
    return replace(header, compressed_size=0, compressiontype=0), data


def free(number: int, offset: int, length: int = END) -> Free:
    return Free(object=number, offset=offset, length=length, toguid=GUID)


def freeobjects(first: int, count: int) -> FreeObjects:
    return FreeObjects(firstobj=first, numobjs=count, toguid=GUID)


def redact(number: int, offset: int, length: int) -> Redact:
    return Redact(object=number, offset=offset, length=length, toguid=GUID)


def spill(number: int, flags: int = 0, raw: bool = True) -> tuple[Spill, bytes]:
    sizes = {"compressed_size": 512, "compressiontype": 2} if raw else {}
    return Spill(object=number, length=512, flags=flags, toguid=GUID, type=44, **sizes), bytes(512)


def embedded(number: int, offset: int, length: int = 512) -> tuple[WriteEmbedded, bytes]:
    header = WriteEmbedded(
        object=number, offset=offset, length=length, compression=15, lsize=512, psize=16, toguid=GUID
    )
    return header, bytes(16)


R, Q, P = one_range, raw_object, plain_object
"Raw and plain streams are told apart by what stands in them."

LEGAL: dict[str, list[Any]] = {
    "nothing": [R()],
    "what kernels send": [
        R(),
        Q(1),
        free(1, 512),
        write(1, 0),
        free(1, 512, 1024),
        Q(2),
        free(2, 512),
        freeobjects(3, 29),
        R(32),
        Q(32),
        free(32, 512),
        write(32, 512),
        freeobjects(64, 1 << 20),
    ],
    "large dnodes": [R(), Q(4, dn_slots=4), Q(8, dn_slots=24)],
    "spill after data": [R(), Q(1), free(1, 512), write(1, 0), spill(1), Q(2)],
    "unmodified spill first": [R(), Q(1), free(1, 512), spill(1, UNMODIFIED), write(1, 0)],
    "spill in the middle": [R(), Q(1), write(1, 0), spill(1), write(1, 512)],
    "32 OBJECTs first (0.8)": [
        R(),
        *[part for n in range(1, 32) for part in (Q(n), free(n, 512), spill(n, UNMODIFIED))],
        *[write(n, 0) for n in range(1, 32)],
    ],
    "a hole that is the whole object": [R(), Q(1), free(1, 512), free(1, 0)],
    "non-raw": [
        P(1),
        free(1, 512),
        plain_write(1, 0),
        redact(1, 512, 512),
        embedded(1, 1024),
        plain_write(1, 1536, 4096),
    ],
    "misplaced spill": [P(1), embedded(1, END - 0x3FF), free(1, 0, 512), plain_write(1, 512)],
    "a new block size in each object": [R(), Q(1, blksz=1024), write(1, 1024, 1024), Q(2), write(2, 512)],
}

ILLEGAL: dict[str, tuple[list[Any], str]] = {
    "object twice": ([R(), Q(1), Q(1)], "ascend: 1 comes after 2"),
    "object back": ([R(), Q(2), Q(1)], "ascend"),
    "object in a large dnode": ([R(), Q(4, dn_slots=4), Q(7)], "ascend: 7 comes after 8"),
    "freeobjects back": ([R(), Q(5), freeobjects(4, 1)], "ascend"),
    "freeobjects overlap": ([freeobjects(4, 5), freeobjects(8, 1)], "ascend: 8 comes after 9"),
    "range twice": ([R(), R()], "like, or before"),
    "range back": ([R(32), R(0)], "ascend: 0 comes after 32"),
    "object without range": ([Q(1)], "OBJECT_RANGE before it"),
    "object outside range": ([R(), Q(32)], "OBJECT_RANGE before it"),
    "object before range": ([R(32), Q(31)], "ascend: 31 comes after 32"),
    "object across range": ([R(), Q(31, dn_slots=2)], "OBJECT_RANGE before it"),
    "data without object": ([R(), write(1, 0)], "no OBJECT"),
    "data of another object": ([R(), Q(1), write(2, 0)], "no OBJECT"),
    "free of another object": ([R(), Q(1), free(3, 0, 512)], "no OBJECT"),
    "spill of another object": ([R(), Q(1), spill(3)], "no OBJECT"),
    "unmodified spill of another": ([R(), Q(1), spill(3, UNMODIFIED)], "no OBJECT"),
    "redact of another object": ([P(1), redact(2, 0, 512)], "no OBJECT"),
    "data of an old block": ([R(), Q(1), R(32), Q(33), write(1, 0)], "no OBJECT"),
    "data before its object": ([R(), Q(1), write(2, 0), Q(2)], "no OBJECT"),
    "data back": ([R(), Q(1), Q(2), write(2, 0), write(1, 0)], "data of object 1 come after"),
    "spill back": ([R(), Q(1), Q(2), write(2, 0), spill(1)], "data of object 1 come after"),
    "block twice": ([R(), Q(1), write(1, 0), write(1, 0)], "offset 0 comes after data up to 512"),
    "offset back": ([R(), Q(1), write(1, 512), write(1, 0)], "offset 0 comes after"),
    "overlap with hole": ([R(), Q(1), free(1, 0, 1024), write(1, 512)], "offset 512 comes after"),
    "after a hole to the end": ([R(), Q(1), write(1, 0), free(1, 512), write(1, 512)], "offset 512 comes after"),
    "overlap around a spill": ([R(), Q(1), write(1, 512), spill(1), write(1, 512)], "offset 512 comes after"),
    "half a block": ([R(), Q(1, blksz=1024), write(1, 0, 512)], "no block of 1024"),
    "between blocks": ([R(), Q(1, blksz=1024), write(1, 512, 1024)], "no block of 1024"),
}


def features(parts: list[Any]) -> Feature:
    raw = any(part == R(part.firstobj) for part in parts if hasattr(part, "numslots"))
    raw = raw or any(isinstance(part, tuple) and getattr(part[0], "nlevels", 0) for part in parts)
    return RAW if raw or any(isinstance(part, FreeObjects) for part in parts) else PLAIN


@pytest.mark.parametrize("name", LEGAL)
def test_legal(name: str) -> None:
    data = made(*LEGAL[name], features=features(LEGAL[name]))
    whole = read(data)
    assert len(whole) == len(LEGAL[name]) + 2
    assert read(data, [313] * (len(data) // 313), size=800) == whole


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal(name: str) -> None:
    parts, reason = ILLEGAL[name]
    data = made(*parts, features=features(parts))
    found, error = attempt(data)
    assert isinstance(error, BadStream)
    assert reason in str(error)
    again, same = attempt(data, [99] * (len(data) // 99), size=800)
    assert (again, str(same)) == (found, str(error))
    assert len(found) < len(parts) + 1
