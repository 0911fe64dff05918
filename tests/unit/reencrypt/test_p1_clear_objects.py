"""P1: what OpenZFS does not encrypt may hold numbers of known names only; all else would be kept in clear."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import lz4.block
import pytest
from test_translator import Look, obj, padded, stream

from reencryptkit import encrypted_pool, take
from zkeep.errors import BadStream
from zkeep.format.records import Write
from zkeep.format.zap_layout import MICRO
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool

MARK = b"a-secret-of-somebody"
MASTER, VOLUME = 21, 24
NAMES = {
    b"VERSION": 5,
    b"ROOT": 34,
    b"DELETE_QUEUE": 33,
    b"SA_ATTRS": 32,
    b"utf8only": 0,
    b"normalization": 0,
    b"SHARES": 50,
    b"FUID": 51,
    b"userquota@": 52,
    b"projectobjquota@": 53,
    b"defaultuserquota": 1 << 40,
}


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with encrypted_pool(tmp_path / "pool", compression="off") as made:
        yield made


def table(names: dict[bytes, int], size: int = 1024, *, normalization: int = 0, differs: int = 0) -> bytes:
    made = struct.pack("<3Q40x", MICRO, 0x1234567890ABCDEF, normalization)
    for name, value in names.items():
        made += struct.pack("<QIxx50s", value, differs, name)
    return made.ljust(size, b"\0")


def of(content: bytes, number: int = 1, kind: int = MASTER, *, blksz: int = 0, at: int = 0) -> bytes:
    """A stream in which an object that is not encrypted has a content."""
    blksz = blksz or len(content)
    head = obj(number, blocks=1 + at // blksz, blksz=blksz, type=kind, bonustype=0, bonuslen=0)
    return stream(1, *head, (Write(object=number, type=kind, offset=at, logical_size=len(content)), content))


def compressed(content: bytes, behind: bytes = b"") -> bytes:
    packed = lz4.block.compress(content, store_size=False)
    stored = (len(packed).to_bytes(4, "big") + packed + behind).ljust(512, b"\0")
    head = obj(1, blksz=len(content), type=MASTER, bonustype=0, bonuslen=0)
    write = Write(
        object=1, type=MASTER, logical_size=len(content), compressiontype=15, compressed_size=len(stored)
    )
    return stream(1, *head, (write, padded(stored)))


def in_clear(pool: Pool) -> list[Path]:
    return [path for path in pool.path.rglob("*") if path.is_file() and MARK in path.read_bytes()]


@pytest.mark.parametrize(
    "forged",
    [
        of(MARK * 50 + bytes(24)),
        of(table(NAMES)[:-24] + MARK + bytes(4)),
        of(table(NAMES | {MARK: 1})),
        of(table(NAMES | {b"user:" + MARK: 1})),
        of(table(NAMES).replace(b"FUID".ljust(30, b"\0"), b"FUID".ljust(8, b"\0") + MARK + bytes(2))),
        of(table(NAMES, normalization=int.from_bytes(MARK[:8], "little"))),
        of(table(NAMES, differs=int.from_bytes(MARK[:4], "little"))),
        of((MARK * 26)[:512], blksz=512, at=512),
        of(table({b"size": 1 << 20}, 512)[:-24] + MARK + bytes(4), 2, VOLUME),
        compressed(table(NAMES | {MARK: 1})),
    ],
)
@pytest.mark.parametrize("resumable", [False, True])
def test_p1_nothing_but_numbers_is_kept_in_clear(pool: Pool, forged: bytes, resumable: bool) -> None:
    with pytest.raises(BadStream, match="which OpenZFS does not encrypt, holds what none has there"):
        take(pool, forged, resumable=resumable)
    assert pool.find(DatasetName.parse("v/enc/ds")) is None
    assert not in_clear(pool)


def test_numbers_of_known_names_are_kept(pool: Pool) -> None:
    take(pool, of(table(NAMES)))
    assert Look(pool, 1).blocks[1] == {0: table(NAMES)}


def test_p1_nothing_behind_a_compressed_block_is_kept(pool: Pool) -> None:
    take(pool, compressed(table(NAMES, 2048), MARK))
    assert Look(pool, 1).blocks[1] == {0: table(NAMES, 2048)}
    assert not in_clear(pool)


def test_the_properties_of_a_volume_are_kept(pool: Pool) -> None:
    take(pool, of(table({b"size": 1 << 20}, 512), 2, VOLUME))
    assert Look(pool, 1).blocks[2] == {0: table({b"size": 1 << 20}, 512)}
