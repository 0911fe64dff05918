"""From rows and record headers to leaves: byte orders, sizes, and records that are not those of their rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from zkeep.errors import Damaged
from zkeep.format.dnode import pointer_prop
from zkeep.format.records import HEADER, LAYOUTS, NATIVE, ByteOrder, RecordFlag, RecordType
from zkeep.pool.timeline.spans import Array
from zkeep.pool.timeline.table import BLOCK, NOTHING
from zkeep.pool.timeline.timeline import LAST
from zkeep.snapshot.chunks import CHUNK_ROWS, Chunk, State, little_of


class Stored:
    """Records that lie in two segments: 0 of a little-endian sender, 1 of a big-endian one."""

    def __init__(self, headers: Array) -> None:
        self._headers = headers

    def byteorder(self, row: Array) -> ByteOrder:
        return "big" if row["segment"] else "little"

    def where(self, row: Array) -> str:
        return f"segment {row['segment']}"

    def headers(self, rows: Array, rtype: RecordType) -> Array:
        return self._headers


def rows(count: int = 1) -> Array:
    found = np.zeros(count, BLOCK)
    found["object"], found["kind"] = 5, RecordType.WRITE
    found["offset"] = np.arange(count) * 1024
    found["length"], found["size"] = 1024, HEADER + 512
    return found


def headers(blocks: Array) -> Array:
    found = np.zeros(len(blocks), LAYOUTS[RecordType.WRITE].dtype(NATIVE))
    found["object"], found["offset"], found["type"] = blocks["object"], blocks["offset"], 19
    found["logical_size"], found["compressed_size"], found["compressiontype"] = 1024, 512, 15
    return found


def leaves(blocks: Array, heads: Array) -> Array:
    return Chunk(replace(NOTHING, blocks=blocks), Stored(heads)).leaves  # type: ignore[arg-type]


def test_a_leaf_has_the_pointer_that_its_header_makes() -> None:
    blocks = rows()
    (leaf,) = leaves(blocks, headers(blocks))
    assert int(leaf["pointer"]["prop"]) == pointer_prop(1024, 512, 15, 19, little=True)
    assert (int(leaf["logical"]), int(leaf["compression"]), int(leaf["type"])) == (1024, 15, 19)


@pytest.mark.parametrize(
    ("segment", "flags", "little"),
    [
        pytest.param(0, 0, True, id="little-endian sender"),
        pytest.param(1, 0, False, id="big-endian sender"),
        pytest.param(0, RecordFlag.RAW_BYTESWAP, False, id="its disk had the other order"),
        pytest.param(1, RecordFlag.RAW_BYTESWAP, True, id="its disk had the other order, too"),
    ],
)
def test_the_byte_order_of_a_block_is_that_of_its_disk(segment: int, flags: int, little: bool) -> None:
    blocks = rows()
    blocks["segment"] = segment
    heads = headers(blocks)
    heads["flags"] = flags
    assert little_of(blocks, heads, Stored(heads)).tolist() == [little]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        pytest.param("object", 6, "of another block", id="another object"),
        pytest.param("offset", 4096, "of another block", id="another offset"),
        pytest.param("compressed_size", 1024, "not as long as its record says", id="another size than the row's"),
        pytest.param("logical_size", 1000, "not as long", id="no whole sectors"),
        pytest.param("logical_size", 0, "not as long", id="nothing"),
        pytest.param("logical_size", 32 << 20, "not as long", id="more than the largest block"),
    ],
)
def test_a_header_that_is_not_the_rows_is_damage(field: str, value: int, why: str) -> None:
    blocks = rows(2)
    heads = headers(blocks)
    heads[field][1] = value
    with pytest.raises(Damaged, match=why):
        leaves(blocks, heads)


def test_a_payload_that_was_dropped_has_its_leaf_all_the_same() -> None:
    blocks = rows()
    blocks["size"], blocks["bare"] = HEADER, 1
    (leaf,) = leaves(blocks, headers(blocks))
    assert int(leaf["pointer"]["prop"]) == pointer_prop(1024, 512, 15, 19, little=True)


class Marked:
    """A timeline that is cut at given keys."""

    def __init__(self, *keys: tuple[int, int]) -> None:
        self._keys = keys
        self.asked: list[tuple[tuple[int, int], tuple[int, int]]] = []

    def cuts(self, runs: object, rows: int) -> list[tuple[int, int]]:
        assert rows == CHUNK_ROWS
        return list(self._keys)

    def state(self, runs: object, low: tuple[int, int], high: tuple[int, int]) -> object:
        self.asked.append((low, high))
        return NOTHING


A, B = (10, 0), (10, 4096)
FIRST, SECOND, THIRD = ((0, 0), A), (A, B), (B, LAST)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        pytest.param((0, 0), (10, 0), [FIRST], id="up to a cut, which belongs to the next"),
        pytest.param((0, 0), (10, 1), [FIRST, SECOND], id="one byte behind it"),
        pytest.param((10, 0), (11, 0), [SECOND, THIRD], id="an object that is cut"),
        pytest.param((10, 4096), (10, 8192), [THIRD], id="from a cut on"),
        pytest.param((99, 0), (100, 0), [THIRD], id="behind all cuts"),
    ],
)
def test_only_chunks_that_may_have_the_rows_are_made(
    low: tuple[int, int], high: tuple[int, int], expected: list[object]
) -> None:
    timeline = Marked(A, B)
    state = State(timeline, [])  # type: ignore[arg-type]

    first = list(state.over(low, high))
    assert timeline.asked == expected
    assert all(a is b for a, b in zip(first, state.over(low, high), strict=True)), "chunks are cached"
    assert timeline.asked == expected
