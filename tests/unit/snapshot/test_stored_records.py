"""Reading records: which are read together, and that each comes back to the row that asked for it."""

from __future__ import annotations

import numpy as np
import pytest

from zkeep.errors import Damaged
from zkeep.format.records import HEADER
from zkeep.pool.timeline.spans import Array
from zkeep.pool.timeline.table import BLOCK
from zkeep.snapshot.records import GAP, PIECE, Packed, StoredRecords

PATTERN = np.random.default_rng(12).integers(0, 256, 4 << 20, np.uint8)


class Blob:
    def __init__(self) -> None:
        self.reads: list[tuple[int, int]] = []

    def readinto(self, at: int, room: memoryview) -> None:
        self.reads.append((at, len(room)))
        room[:] = PATTERN[at : at + len(room)].tobytes()

    def readinto_each(self, places: Array, sizes: Array, out: memoryview, to: Array) -> None:
        for at, size, where in zip(places.tolist(), sizes.tolist(), to.tolist(), strict=True):
            self.readinto(at, out[where : where + size])


class Segment:
    big_endian = False
    name = "segment"

    def __init__(self) -> None:
        self.blob = Blob()


class Timeline:
    def __init__(self) -> None:
        self.segments = [Segment(), Segment()]

    def owner(self, number: int) -> tuple[None, Segment]:
        return None, self.segments[number]

    @property
    def reads(self) -> list[list[tuple[int, int]]]:
        return [segment.blob.reads for segment in self.segments]


def rows(*places: int, segment: int = 0) -> Array:
    found = np.zeros(len(places), BLOCK)
    found["pos"], found["segment"] = places, segment
    return found


H = HEADER


@pytest.mark.parametrize(
    ("found", "size", "expected"),
    [
        pytest.param(rows(0, H, 2 * H), H, [[(0, 3 * H)], []], id="neighbours are one read"),
        pytest.param(rows(2 * H, 0, H), H, [[(0, 3 * H)], []], id="in whatever order they are asked for"),
        pytest.param(rows(0, H + GAP), H, [[(0, 2 * H + GAP)], []], id="a gap is read along"),
        pytest.param(rows(0, H + GAP + 1), H, [[(0, H), (H + GAP + 1, H)], []], id="unless it is too large"),
        pytest.param(rows(0, 0), H, [[(0, H), (0, H)], []], id="two rows of one record are two reads"),
        pytest.param(rows(0, PIECE), PIECE, [[(0, PIECE), (PIECE, PIECE)], []], id="a read has a limit"),
        pytest.param(np.concatenate([rows(0), rows(0, segment=1)]), H, [[(0, H)], [(0, H)]], id="two segments"),
    ],
)
def test_records_are_read_together(found: Array, size: int, expected: list[list[tuple[int, int]]]) -> None:
    timeline = Timeline()
    packed = StoredRecords(timeline).packed(found, np.full(len(found), size))  # type: ignore[arg-type]
    assert timeline.reads == expected
    for index, place in enumerate(found["pos"].tolist()):
        assert bytes(packed.at(index)) == PATTERN[place : place + size].tobytes()


def test_each_piece_comes_back_to_its_row() -> None:
    """Many rows of many sizes, near and far, in no order."""
    dice = np.random.default_rng(3)
    found = rows(*dice.integers(0, 3 << 20, 300).tolist())
    found["segment"] = dice.integers(0, 2, 300)
    sizes = dice.integers(H, 2000, 300)
    packed = StoredRecords(Timeline()).packed(found, sizes)  # type: ignore[arg-type]
    for index, (place, size) in enumerate(zip(found["pos"].tolist(), sizes.tolist(), strict=True)):
        assert bytes(packed.at(index)) == PATTERN[place : place + size].tobytes()


def test_a_row_without_a_header_is_damage() -> None:
    with pytest.raises(Damaged, match="a row leads to no record"):
        StoredRecords(Timeline()).packed(rows(0), np.array([H - 1]))  # type: ignore[arg-type]


def test_pieces_are_cut_without_their_beginnings() -> None:
    packed = Packed.of(np.array([3, 4, 0]))
    packed.content[:] = np.frombuffer(b"abcdefg", np.uint8)
    bodies = packed.cut(1, np.array([2, 3, 0]))
    assert [bytes(bodies.at(index)) for index in range(3)] == [b"bc", b"efg", b""]
