"""Blocks of ZAPs that are decoded as a whole say what each entry by itself does."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkeep.format.zap import Zap
from zkeep.format.zap_columns import leaf_numbers, micro_numbers
from zkeep.format.zap_layout import ENTRY, MICRO, BadZap
from zkeep.format.zap_writer import BLOCK, FatZap

NAMES = st.binary(min_size=1, max_size=300).map(lambda name: name.replace(b"\0", b"x"))
NUMBERS = st.integers(0, (1 << 64) - 1)


@given(st.dictionaries(NAMES, NUMBERS, max_size=60))
def test_a_fat_one(entries: dict[bytes, int]) -> None:
    zap = FatZap(7)
    for name, number in entries.items():
        zap.put(name, number)
    blocks = zap.changed_blocks()
    read = Zap(lambda number: blocks[number] or b"", BLOCK)
    one_by_one = [(entry.name, entry.number) for entry in read]
    assert list(read.numbers()) == one_by_one
    assert dict(one_by_one) == entries


@pytest.mark.parametrize("order", ["little", "big"])
@given(st.lists(st.tuples(NUMBERS, st.binary(max_size=50)), max_size=20))
def test_a_micro_one(order: str, rows: list[tuple[int, bytes]]) -> None:
    """Whatever lies there: free entries, names with zeros in them or before them."""
    mark = "<" if order == "little" else ">"
    block = struct.pack(mark + "3Q40x", MICRO, 1, 0)
    block += b"".join(struct.pack(mark + "QIH50s", number, 0, 0, name) for number, name in rows)
    block = block.ljust(512, b"\0")
    read = Zap(lambda number: block, len(block))
    assert micro_numbers(block, order) == [(entry.name, entry.number) for entry in read]  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [1, 20, 21, 22, 255, 272, 273, 274, 5000])
def test_a_chain_that_breaks_off_is_left_to_who_says_so(length: int) -> None:
    zap = FatZap(7)
    zap.put(b"n" * length, 1)
    block = bytearray(zap.changed_blocks()[1] or b"")
    start = 48 + 1024
    # The last chunk of the name is no part of an array any more.
    block[start + length // 21 * 24] = 0
    assert leaf_numbers(bytes(block), 14) == []
    with pytest.raises(BadZap, match="breaks off"):
        list(Zap(lambda number: bytes(block) if number else zap.changed_blocks()[0] or b"", BLOCK).numbers())


def test_values_of_another_kind_are_left_to_who_reads_each() -> None:
    zap = FatZap(7, 2)
    zap.put(b"layout", bytes(range(6)))
    block = zap.changed_blocks()[1] or b""
    assert leaf_numbers(block, 14) == []


@pytest.mark.parametrize("sizes", [(0,), (0, 0, 0), (0, 2), (2, 0), (1,), (1, 1)])
@pytest.mark.parametrize("name", [b"n", b""])
def test_names_without_a_byte(sizes: tuple[int, ...], name: bytes) -> None:
    """Who has the key can write names of no bytes, as many as fit."""
    zap = FatZap(7)
    for number in range(len(sizes)):
        zap.put(bytes([97 + number]), 1 << number)
    blocks = {number: bytearray(block or b"") for number, block in zap.changed_blocks().items()}
    # Each entry takes three chunks: its name, its value, and itself.
    for at, size in enumerate(sizes):
        entry = 48 + 1024 + (3 * at + 2) * 24
        assert blocks[1][entry] == ENTRY
        blocks[1][entry + 6 : entry + 8] = size.to_bytes(2, "little")
        blocks[1][entry - 48 + 1 : entry - 48 + 2] = name or b"\0"
    read = Zap(lambda number: bytes(blocks[number]), BLOCK)
    one_by_one = [(entry.name, entry.number) for entry in read]
    assert [each for each, _ in one_by_one] == [name if size else b"" for size in sizes]
    assert list(read.numbers()) == one_by_one
