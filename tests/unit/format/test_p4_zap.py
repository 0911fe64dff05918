"""A hostile ZAP costs no more than its blocks: pointers that lead to one leaf, entries that share what they hold."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import pytest

from zkeep.format import zap_layout as zap
from zkeep.format.compress import BadCompression, Compression, decompress
from zkeep.format.zap import Zap
from zkeep.format.zap_layout import BadZap

SIZE = 1024
PER_BLOCK = SIZE // 8
NO_NEXT = zap.CHAIN_END


class Blocks:
    """A ZAP's blocks, which are counted as they are read."""

    def __init__(self, *blocks: bytes) -> None:
        self.blocks = blocks
        self.read = 0

    def __call__(self, number: int) -> bytes:
        self.read += 1
        return self.blocks[number] if number < len(self.blocks) else bytes(SIZE)


def head(bits: int, table: int = 0, count: int = 0, pointers: Iterable[int] = (), entries: int = 1) -> bytes:
    fields = struct.pack("<13Q", zap.HEADER, zap.MAGIC, table, count, bits, 0, 0, 1 << 30, 1, entries, 1, 0, 0)
    numbers = list(pointers)
    inner = struct.pack(f"<{len(numbers)}Q", *numbers)
    return fields.ljust(SIZE // 2, b"\0") + inner.ljust(SIZE // 2, b"\0")


def array(content: bytes, following: int = NO_NEXT) -> bytes:
    return struct.pack("<B21sH", zap.ARRAY, content, following)


def entry(name: int, length: int, value: int, width: int = 8, count: int = 1) -> bytes:
    return struct.pack("<BBHHHHHIQ", zap.ENTRY, width, NO_NEXT, name, length, value, count, 0, 0)


def leaf(*chunks: bytes, prefix: int = 0, length: int = 0) -> bytes:
    start = struct.pack("<3QI4HB11x", zap.LEAF, 0, prefix, zap.LEAF_MAGIC, 0, 1, length, 0xFFFF, 0)
    return (start + bytes(2 * 32) + b"".join(chunks)).ljust(SIZE, b"\0")


def named(name: bytes, **place: int) -> bytes:
    return leaf(array(name + b"\0"), array(bytes(7) + b"\5"), entry(0, len(name) + 1, 1), **place)


def both(blocks: Blocks) -> list[bytes]:
    """The names, read either way."""
    names = [each.name for each in Zap(blocks, SIZE)]
    assert [name for name, _ in Zap(blocks, SIZE).numbers()] == names
    return names


def test_a_leaf_to_which_all_pointers_lead_is_read_once() -> None:
    table = [struct.pack(f"<{PER_BLOCK}Q", *[1] * PER_BLOCK)] * 8
    blocks = Blocks(head(10, 2, 8), named(b"one"), *table)
    assert both(blocks) == [b"one"]
    assert blocks.read == 2 * 3  # its head, one block of pointers, the leaf


def test_a_table_of_any_size_costs_no_more_than_its_leaves() -> None:
    """A ZAP as large as a head can claim, and 2^40 pointers lead to two leaves."""
    blocks = Blocks(head(40, 3, 1 << 33), named(b"a", length=1), named(b"b", prefix=1, length=1))
    blocks.blocks += (struct.pack("<Q", 1).ljust(SIZE, b"\0"),)
    with pytest.raises(BadZap, match="points to block 0"):
        list(Zap(blocks, SIZE))  # the second half of the table is a hole
    assert blocks.read < 10


@pytest.mark.parametrize(
    "second",
    [named(b"a"), named(b"a", length=1), named(b"a", prefix=1, length=2), named(b"a", prefix=5, length=60)],
    ids=["of the whole table", "of the first half", "of a quarter", "of more bits than there are"],
)
def test_a_leaf_lies_where_its_names_belong(second: bytes) -> None:
    blocks = Blocks(head(1, pointers=(1, 2)), named(b"a", length=1), second)
    with pytest.raises(BadZap, match="where its names do not belong"):
        both(blocks)


def test_leaves_that_lead_back_are_refused() -> None:
    with pytest.raises(BadZap, match="where its names do not belong"):
        both(Blocks(head(2, pointers=(1, 1, 1, 1)), named(b"a", length=2)))


@pytest.mark.parametrize("width", [1, 8])
def test_entries_that_share_chunks_are_refused(width: int) -> None:
    """Each would be as long as the leaf, and there are as many as it has room for."""
    long = [array(b"n" * 21, at + 1) for at in range(19)] + [array(b"n" * 20), array(bytes(8))]
    many = [entry(0, 420, 20, width, 8 // width) for _ in range(10)]
    with pytest.raises(BadZap, match="more chunks than it has"):
        list(Zap(Blocks(head(0, pointers=(1,)), leaf(*long, *many)), SIZE))
    with pytest.raises(BadZap, match=r"more chunks than it has|is not a number"):
        list(Zap(Blocks(head(0, pointers=(1,)), leaf(*long, *many)), SIZE).numbers())


def test_a_chain_that_leads_in_a_ring_is_as_long_as_it_says() -> None:
    ring = [array(b"a" * 21, 1), array(b"b" * 21, 0), array(bytes(8))]
    with pytest.raises(BadZap, match="more chunks than it has"):
        both(Blocks(head(0, pointers=(1,)), leaf(*ring, entry(0, 60_000, 2))))
    assert both(Blocks(head(0, pointers=(1,)), leaf(*ring, entry(0, 63, 2)))) == [b"a" * 21 + b"b" * 21 + b"a" * 21]


@pytest.mark.parametrize(("size", "what"), [(1 << 21, "blocks of"), (1 << 24, "blocks of"), (3000, "blocks of")])
def test_a_leaf_has_no_more_chunks_than_can_be_numbered(size: int, what: str) -> None:
    with pytest.raises(BadZap, match=what):
        Zap(lambda number: head(0, pointers=(1,)), size)


def test_a_small_zap_is_no_larger_than_any_that_was_written() -> None:
    block = struct.pack("<3Q", zap.MICRO, 1, 0).ljust(2 << 20, b"\0")
    with pytest.raises(BadZap, match="a small ZAP of"):
        Zap(lambda number: block, len(block))


@pytest.mark.parametrize("name", [b"a", b"b", b"ab", b"aab", b"x" * 49, b"", b"x" * 50, b"x" * 51])
def test_an_entry_of_a_small_zap_is_found_as_it_is_listed(name: bytes) -> None:
    """Also where other entries, and their values, hold the same bytes."""
    entries = [(b"aab", 0x6161616161616161), (b"ab", 1), (b"a", 2), (b"x" * 49, 3)]
    rows = [struct.pack("<QIH50s", value, 0x61616161, 0, each) for each, value in entries]
    block = (struct.pack("<3Q40x", zap.MICRO, 1, 0) + b"".join(rows)).ljust(SIZE, b"\0")
    found = Zap(lambda number: block, SIZE)
    assert found.get(name) == next((each for each in found if each.name == name), None)


def bomb(blocks: int, told: int) -> bytes:
    """A frame of zstd of so many runs of 128 KiB that says how large its content is."""
    runs = [(128 << 10) << 3 | 1 << 1 | (at == blocks - 1) for at in range(blocks)]
    frame = b"\xe0" + struct.pack("<Q", told) + b"".join(run.to_bytes(3, "little") + b"a" for run in runs)
    return struct.pack(">II", len(frame), 0) + frame


def test_a_frame_is_given_no_more_memory_than_its_block_has() -> None:
    assert len(decompress(bomb(1, 128 << 10), Compression.ZSTD, 128 << 10)) == 128 << 10
    with pytest.raises(BadCompression, match="10485760 bytes where 131072 should be"):
        decompress(bomb(80, 10 << 20), Compression.ZSTD, 128 << 10)
    with pytest.raises(BadCompression, match="1099511627776 bytes where"):
        decompress(bomb(1, 1 << 40), Compression.ZSTD, 128 << 10)
