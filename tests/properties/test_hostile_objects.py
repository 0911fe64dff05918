"""Objects that a hostile sender with the key sealed: parsers end, with their own errors, whatever they are fed."""

from __future__ import annotations

import struct
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from zkeep.format import sa
from zkeep.format import zap_layout as zap
from zkeep.format.zap import Zap, ZapEntry
from zkeep.format.zap_layout import BadZap
from zkeep.format.znode import COLUMNS, unpack_xattrs, znode_of, znode_with

SIZE = 1024
WORDS = st.lists(st.tuples(st.integers(0, SIZE // 2 - 1), st.integers(0, 0xFFFF)), max_size=12)


def _changed(block: bytes, words: list[tuple[int, int]]) -> bytes:
    out = bytearray(block)
    for at, word in words:
        struct.pack_into("<H", out, 2 * at, word)
    return bytes(out)


def _head(bits: int) -> bytes:
    fields = struct.pack("<13Q", zap.HEADER, zap.MAGIC, 0, 0, bits, 0, 0, 3, 2, 2, 1, 0, 0)
    return fields.ljust(SIZE // 2, b"\0") + struct.pack("<2Q", 1, 2).ljust(SIZE // 2, b"\0")


def _leaf() -> bytes:
    head = struct.pack("<3QI4HB11x", zap.LEAF, 0, 0, zap.LEAF_MAGIC, 0, 1, 1, 0xFFFF, 0)
    chunks = struct.pack("<B21sH", zap.ARRAY, b"name", 1) + struct.pack("<B21sH", zap.ARRAY, b"\1" * 8, 0xFFFF)
    chunks += struct.pack("<BBHHHHHIQ", zap.ENTRY, 8, 0xFFFF, 0, 5, 1, 1, 0, 7)
    return (head + bytes(2 * 32) + chunks).ljust(SIZE, b"\0")


@settings(max_examples=300, deadline=None)
@given(WORDS, WORDS, st.binary(max_size=20))
def test_p4_a_hostile_zap_ends_or_is_refused(
    head: list[tuple[int, int]], leaf: list[tuple[int, int]], name: bytes
) -> None:
    blocks = {0: _changed(_head(1), head), 1: _changed(_leaf(), leaf), 2: _leaf()}
    with suppress(BadZap):
        found = Zap(lambda number: blocks.get(number, bytes(SIZE)), SIZE)
        found.get(name)
        list(found)


def _entries(found: Zap) -> list[tuple[bytes, int]] | None:
    with suppress(BadZap):
        return [(entry.name, entry.number) for entry in found]
    return None


def _numbers(found: Zap) -> list[tuple[bytes, int]] | None:
    with suppress(BadZap):
        return list(found.numbers())
    return None


@settings(max_examples=500, deadline=None)
@given(WORDS)
def test_both_ways_to_read_a_folder_agree(leaf: list[tuple[int, int]]) -> None:
    blocks = {0: _head(1), 1: _changed(_leaf(), leaf), 2: _leaf()}
    found = Zap(lambda number: blocks.get(number, bytes(SIZE)), SIZE)
    assert _numbers(found) == _entries(found)


@given(st.integers(1, 255), st.integers(0, (1 << 64) - 1))
def test_names_of_any_length_are_read_whole(size: int, value: int) -> None:
    name = bytes(1 + n % 250 for n in range(size))
    parts = [(name + b"\0")[at : at + zap.ARRAY_BYTES] for at in range(0, size + 1, zap.ARRAY_BYTES)]
    chunks = [struct.pack("<B21sH", zap.ARRAY, part, at + 1) for at, part in enumerate(parts)]
    chunks.append(struct.pack("<B21sH", zap.ARRAY, value.to_bytes(8, "big"), 0xFFFF))
    chunks.append(struct.pack("<BBHHHHHIQ", zap.ENTRY, 8, 0xFFFF, 0, size + 1, len(parts), 1, 0, 7))
    blocks = {0: _head(1), 1: (_leaf()[:112] + b"".join(chunks)).ljust(SIZE, b"\0"), 2: _leaf()}
    found = Zap(blocks.__getitem__, SIZE)
    assert next(found.numbers()) == (name, value)
    assert _numbers(found) == _entries(found)


SCHEMA = sa.Schema(
    [ZapEntry(b"ZPL_DXATTR", 8, (20).to_bytes(8, "big"))],
    [ZapEntry(b"2", 2, struct.pack(">14H", 5, 6, 4, 12, 13, 7, 11, 0, 1, 2, 3, 8, 20, 20))],
    COLUMNS,
)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 63), st.booleans())
def test_p4_hostile_attributes_are_read_or_refused(rest: bytes, header: int, whole: bool) -> None:
    buffer = struct.pack("<IH", sa.MAGIC, header << 10 | 2) + rest
    with suppress(sa.BadAttributes):
        node = znode_with(1, *SCHEMA.decode_numbers(buffer)) if whole else znode_of(1, *SCHEMA.decode(buffer))
        assert 0 <= node.mode <= 0xFFFF
        unpack_xattrs(node.packed_xattrs)


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=136, max_size=400), st.integers(1, 4))
def test_both_ways_to_read_attributes_agree(rest: bytes, header: int) -> None:
    buffer = struct.pack("<IH", sa.MAGIC, header << 10 | 2) + rest
    try:
        expected = znode_of(1, *SCHEMA.decode(buffer))
    except sa.BadAttributes:
        return
    assert znode_with(1, *SCHEMA.decode_numbers(buffer)) == expected
