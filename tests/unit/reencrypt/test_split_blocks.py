"""Senders without -L cut large blocks into pieces: a stream may break off, or a transaction group end, between two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reencryptkit import KEY, encrypted_pool, raw_stream, take
from zkeep.crypto.unwrap import first_that_opens
from zkeep.errors import Interrupted, Refused
from zkeep.format.nvlist import NvList, encode
from zkeep.format.records import Begin, Feature, Free, Layout, Object, Write
from zkeep.format.writer import Writer
from zkeep.names import DatasetName, SnapshotName
from zkeep.pool.datasets import destroy
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance.scrub import scrub
from zkeep.pool.transfer.token import Token
from zkeep.restore.verify import verify
from zkeep.snapshot.open import OpenSnapshot

FEATURES = Feature.COMPRESSED | Feature.LZ4 | Feature.SA_SPILL
BLOCK, PIECE, BLOCKS = 4096, 1024, 3
HERE = DatasetName.parse("v/enc/ds")
BONUS = b"\x5a\x50\x2f\x00\x02\x04\x00\x00".ljust(168, b"\x11")
END = (1 << 64) - 1
Part = tuple[Layout, bytes]


def content(letters: str) -> bytes:
    """A file of BLOCKS blocks; the last one is shorter by a piece, which is zeros in a block."""
    words = "".join(f"{letters}{at:06}" for at in range(BLOCKS * BLOCK // 8))
    return words[: BLOCKS * BLOCK - PIECE].encode()


def parts_of(data: bytes, offsets: range) -> Iterator[Part]:
    """Object 2 as a whole, and object 3 behind it, so that a stream can end between them."""
    for number, blocks in ((2, BLOCKS), (3, 1)):
        yield Object(object=number, type=19, bonustype=44, blksz=BLOCK, bonuslen=len(BONUS), dn_slots=1), BONUS
        yield Free(object=number, offset=blocks * BLOCK, length=END), b""
        for at in offsets if number == 2 else range(0, BLOCK, PIECE):
            piece = data[at : at + PIECE]
            yield Write(object=number, type=19, offset=at, logical_size=len(piece)), piece


def stream(number: int, parts: Iterator[Part], point: tuple[int, int] | None = None) -> list[bytes]:
    """The records of a stream; with `point` that of `zfs send -t`, which begins there."""
    nvlist, features = NvList(), FEATURES
    if point is not None:
        features |= Feature.RESUMING
        nvlist.set("resume_object", point[0])
        nvlist.set("resume_offset", point[1])
    payload = encode(nvlist) if point is not None else b""
    begin = Begin(
        versioninfo=1 | int(features) << 2,
        type=2,
        flags=0xC,
        toguid=number,
        fromguid=number - 1,
        toname=b"t/a@s%d" % number,
        creation_time=1_600_000_000,
        payloadlen=len(payload),
    )
    writer = Writer("little")
    records = [writer.begin(begin, payload)]
    for header, data in parts:
        if point is None or _is_after(header, point):
            object.__setattr__(header, "toguid", number)
            records.append(writer.record(header, data))
    return [*records, writer.end()]


def _is_after(header: Layout, point: tuple[int, int]) -> bool:
    number: int = header.object  # type: ignore[attr-defined]
    offset = header.offset if isinstance(header, Write) else 1 << 62
    return (number, offset) >= point


OFFSETS = range(0, BLOCKS * BLOCK - PIECE, PIECE)
CHANGED = range(BLOCK + PIECE, 2 * BLOCK + PIECE, PIECE)
"Three of the four pieces of the second block, and the first of the third."
WRITES = 3
"Index of the first WRITE: behind BEGIN, OBJECT and FREE. The record behind each vouches for it: the last is not kept."


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with encrypted_pool(tmp_path / "pool") as made:
        yield made


def file_in(pool: Pool, number: int) -> bytes:
    snapshot = pool.snapshot(SnapshotName.parse(f"{HERE}@s{number}"))
    with OpenSnapshot(pool, snapshot, first_that_opens([KEY])) as opened:
        verify(opened)
        return b"".join(opened.read_block(2, at) for at in range(BLOCKS))


def wanted(number: int) -> bytes:
    whole = content("ab").ljust(BLOCKS * BLOCK, b"\0")
    if number == 1:
        return whole
    return whole[: CHANGED.start] + content("cd")[CHANGED.start : CHANGED.stop] + whole[CHANGED.stop :]


def records_of(number: int, point: tuple[int, int] | None = None) -> list[bytes]:
    if number == 1:
        return stream(1, parts_of(content("ab"), OFFSETS), point)
    return stream(2, parts_of(content("cd"), CHANGED), point)


def point_of(pool: Pool) -> tuple[int, int]:
    """Where zfs send -t would begin."""
    token = Token.decode(str(View(pool).get(pool.dataset(HERE), "receive_resume_token").value))
    return token.object, token.offset


@pytest.mark.parametrize("step", [1 << 40, 1, PIECE + 1])
def test_a_transaction_group_may_end_within_a_block(pool: Pool, step: int) -> None:
    for number in (1, 2):
        take(pool, b"".join(records_of(number)), step=step)
        assert file_in(pool, number) == wanted(number)
    assert [str(s.doc["name"]) for s in pool.snapshots(pool.dataset(HERE))] == ["s1", "s2"]
    assert not scrub(pool).errors


@pytest.mark.parametrize("cut", [2, 3, 4, 6, 9, 11])
@pytest.mark.parametrize("step", [1 << 40, PIECE + 1])
def test_p3_a_stream_that_breaks_off_within_a_block_goes_on_there(pool: Pool, cut: int, step: int) -> None:
    with pytest.raises(Interrupted):
        take(pool, b"".join(records_of(1)[: WRITES + cut]) + b"half", step=step, resumable=True)
    take(pool, b"".join(records_of(1, point_of(pool))), step=step, resumable=True)
    assert file_in(pool, 1) == wanted(1)
    assert not scrub(pool).errors


@pytest.mark.parametrize("cut", range(2, len(CHANGED) + 1))
def test_p3_pieces_of_a_block_join_those_of_the_snapshot_before_after_an_interruption(pool: Pool, cut: int) -> None:
    take(pool, b"".join(records_of(1)))
    with pytest.raises(Interrupted):
        take(pool, b"".join(records_of(2)[: WRITES + cut]), resumable=True)
    take(pool, b"".join(records_of(2, point_of(pool))), resumable=True)
    assert (file_in(pool, 1), file_in(pool, 2)) == (wanted(1), wanted(2))
    assert raw_stream(pool, f"{HERE}@s2", "@s1")


def test_p3_it_breaks_off_twice_within_the_same_block(pool: Pool) -> None:
    with pytest.raises(Interrupted):
        take(pool, b"".join(records_of(1)[: WRITES + 2]), resumable=True)
    first = point_of(pool)
    with pytest.raises(Interrupted):
        take(pool, b"".join(records_of(1, first)[: WRITES + 2]), resumable=True)
    assert point_of(pool) >= first
    take(pool, b"".join(records_of(1, point_of(pool))), resumable=True)
    assert file_in(pool, 1) == wanted(1)


def test_what_resumes_must_leave_nothing_out(pool: Pool) -> None:
    with pytest.raises(Interrupted):
        take(pool, b"".join(records_of(1)[: WRITES + 2]), resumable=True)
    number, offset = point_of(pool)
    with pytest.raises(Refused, match=f"needed is object {number}, offset {offset}[.]$"):
        take(pool, b"".join(records_of(1, (number, offset + PIECE))), resumable=True)
    take(pool, b"".join(records_of(1, (number, 0))), resumable=True)  # an older token sends more, and that is right
    assert file_in(pool, 1) == wanted(1)


def _destroyed(pool: Pool) -> None:
    options = destroy.DestroyOptions()
    destroy.execute(pool, destroy.plan_snapshots(View(pool), HERE, "s1", options))


@pytest.mark.parametrize("gone", [_destroyed, None])
def test_an_increment_needs_the_snapshot_of_its_source(pool: Pool, gone: Callable[[Pool], None] | None) -> None:
    """A sender may have its source as a bookmark only; what is received here must still be there."""
    take(pool, b"".join(records_of(1)))
    if gone is None:
        take(pool, b"".join(records_of(2)))
        return
    gone(pool)
    with pytest.raises(Refused, match="guid 0x1") as refused:
        take(pool, b"".join(records_of(2)))
    assert "\n" not in str(refused.value)
    assert not scrub(pool).errors
