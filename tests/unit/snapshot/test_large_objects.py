"""What is in memory of an object does not grow with its blocks."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest

from reencryptkit import KEY, encrypted_pool, take
from zkeep.crypto.unwrap import first_that_opens
from zkeep.format.records import Begin, Feature, Free, Object, Write
from zkeep.format.writer import Writer
from zkeep.names import SnapshotName
from zkeep.snapshot import chunks, open, writer
from zkeep.snapshot.open import OpenSnapshot
from zkeep.snapshot.waiting import Waiting
from zkeep.snapshot.writer import SnapshotWriter

BLOCKS = 3000
BONUS = b"\x5a\x50\x2f\x00\x02\x04\x00\x00".ljust(168, b"\x11")
SMALL = range(5, 9)
"Objects behind the large one, in the same block of dnodes."


def stream() -> bytes:
    made = Writer("little")
    features = int(Feature.COMPRESSED | Feature.LZ4 | Feature.SA_SPILL)
    begin = Begin(
        versioninfo=1 | features << 2, type=2, flags=0xC, toguid=1, toname=b"t/a@s1", creation_time=1_600_000_000
    )
    out = [made.begin(begin, b"")]
    for number, blocks in ((2, BLOCKS), *((small, 1) for small in SMALL)):
        head = Object(object=number, type=19, bonustype=44, blksz=512, bonuslen=len(BONUS), dn_slots=1, toguid=1)
        out.append(made.record(head, BONUS))
        out.append(made.record(Free(object=number, offset=blocks * 512, length=(1 << 64) - 1, toguid=1), b""))
        for at in range(blocks):
            header = Write(object=number, type=19, offset=at * 512, logical_size=512, toguid=1)
            out.append(made.record(header, number.to_bytes(4, "big") * 64 + at.to_bytes(4, "big") * 64))
    return b"".join(out) + made.end()


def test_few_chunks_of_an_object_are_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[chunks.Chunk]] = []
    most = 0

    class Counted(chunks.Chunk):
        def __init__(self, *args: object) -> None:
            nonlocal most
            super().__init__(*args)  # type: ignore[arg-type]
            made.append(weakref.ref(self))
            most = max(most, sum(ref() is not None for ref in made))

    monkeypatch.setattr(chunks, "Chunk", Counted)
    monkeypatch.setattr(chunks, "CHUNKS", 3)
    monkeypatch.setattr(open, "SCATTERED_ROWS", 64)
    with encrypted_pool(tmp_path / "pool") as pool:
        take(pool, stream())
        del made[:]
        snapshot, most = pool.snapshot(SnapshotName.parse("v/enc/ds@s1")), 0
        with OpenSnapshot(pool, snapshot, first_that_opens([KEY]), scattered=True) as opened:
            assert sorted(opened.dnodes(0)) == [2, *SMALL]
            assert len(made) > 3 * chunks.CHUNKS
            assert most <= chunks.CHUNKS + 4  # those that are worked on, too
            assert opened.read_block(2, BLOCKS - 1)[256:] == (BLOCKS - 1).to_bytes(4, "big") * 64
            assert all(opened.read_block(number, 0)[:4] == number.to_bytes(4, "big") for number in SMALL)


def test_blocks_that_wait_take_no_more_memory_because_they_are_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of a small block is mostly that of its pieces, which count before they go to the spool."""
    counted: list[int] = []
    to_disk = SnapshotWriter._spill_to_disk

    def spill(self: SnapshotWriter, waiting: Waiting) -> None:
        counted.append(sum(not isinstance(piece, tuple) for piece in waiting.pieces))
        to_disk(self, waiting)

    monkeypatch.setattr(SnapshotWriter, "_spill_to_disk", spill)
    monkeypatch.setattr(writer, "SPOOL", 256 << 10)
    with encrypted_pool(tmp_path / "pool") as pool:
        take(pool, stream())
        snapshot = pool.snapshot(SnapshotName.parse("v/enc/ds@s1"))
        with OpenSnapshot(pool, snapshot, first_that_opens([KEY])) as opened:
            assert opened.read_block(2, BLOCKS - 1)[256:] == (BLOCKS - 1).to_bytes(4, "big") * 64
    assert len(counted) > 10
    assert max(counted) <= 2 * (256 << 10) // writer.PIECES
