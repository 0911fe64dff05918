"""Writing ZAPs: what the reader finds is what was put in, and what makes a kernel panic is never there."""

from __future__ import annotations

import struct
from collections import Counter
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zkeep.format.zap import Zap
from zkeep.format.zap_hash import hash_of
from zkeep.format.zap_layout import ARRAY, CHUNK, ENTRY, HASH_BITS, BadZap
from zkeep.format.zap_writer import BLOCK, BUCKETS, CHUNKS, FREE, FatZap, fits_micro, micro_block

SALT = 0x1234567
NAMES = st.binary(min_size=1, max_size=255).filter(lambda name: b"\0" not in name and b"/" not in name)
VALUES = st.integers(0, (1 << 64) - 1)


def reader(blocks: dict[int, bytes | None]) -> Zap:
    return Zap(lambda number: blocks[number] or bytes(BLOCK), BLOCK)


def written(zap: FatZap, before: dict[int, bytes | None] | None = None) -> dict[int, bytes | None]:
    return {**(before or {}), **zap.changed_blocks()}


def names_with_one_hash(count: int) -> list[bytes]:
    """Names whose 28-bit hashes are equal: among 30,000 there is a pair or more."""
    found: dict[int, list[bytes]] = {}
    for number in range(200_000):
        name = sha256(b"%d" % number).hexdigest()[:20].encode()
        same = found.setdefault(hash_of(name, SALT, HASH_BITS), [])
        same.append(name)
        if len(same) == count:
            return same
    raise AssertionError("no such names")


@given(st.dictionaries(NAMES.filter(lambda name: len(name) < 50), VALUES, max_size=100))
def test_micro_zap_reads_back(entries: dict[bytes, int]) -> None:
    block = micro_block(entries, SALT)
    assert len(block) % 512 == 0
    assert dict(Zap(lambda _: block, len(block)).numbers()) == entries


@pytest.mark.parametrize(("count", "size"), [(0, 512), (7, 512), (8, 1024), (15, 1024), (16, 1536), (2047, 128 << 10)])
def test_micro_zap_grows_by_sectors(count: int, size: int) -> None:
    assert len(micro_block({b"%d" % i: i for i in range(count)}, SALT)) == size


@pytest.mark.parametrize("entries", [{b"x" * 50: 1}, {b"%d" % i: i for i in range(2048)}])
def test_long_names_and_many_entries_need_a_fat_zap(entries: dict[bytes, int]) -> None:
    assert not fits_micro(entries, len(entries))
    with pytest.raises(ValueError, match="fat ZAP"):
        micro_block(entries, SALT)


def test_micro_zap_tells_equal_hashes_apart() -> None:
    """A kernel that meets one (hash, cd) twice panics when it opens the directory."""
    block = micro_block(dict.fromkeys(names_with_one_hash(2), 1), SALT)
    rows = [struct.unpack_from("<QIH50s", block, at) for at in range(64, 64 + 2 * 64, 64)]
    pairs = [(hash_of(name.rstrip(b"\0"), SALT, HASH_BITS), cd) for _, cd, _, name in rows]
    assert len(set(pairs)) == 2


@settings(deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=300))
def test_fat_zap_reads_back(entries: dict[bytes, int]) -> None:
    zap = FatZap(SALT)
    for name, value in entries.items():
        zap.put(name, value)
    found = reader(written(zap))
    assert dict(found.numbers()) == entries
    assert all(found.get(name) for name in entries)
    assert found.entries_count == len(entries)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.dictionaries(st.integers(0, 1500), st.one_of(st.none(), VALUES), max_size=400), max_size=5))
def test_fat_zap_goes_on_with_what_is_stored(rounds: list[dict[int, int | None]]) -> None:
    """Whatever is put and removed, over any number of times of loading: the entries are those of a dict."""
    model = {b"entry %d" % i: i for i in range(1000)}
    zap = FatZap(SALT)
    for name, value in model.items():
        zap.put(name, value)
    blocks = written(zap)
    for changes in rounds:
        zap = FatZap.load(lambda number, at=blocks: at[number] or b"", BLOCK)
        for number, wanted in changes.items():
            name = b"entry %d" % number
            if wanted is not None:
                zap.put(name, wanted)
                model[name] = wanted
            elif name in model:
                zap.remove(name)
                del model[name]
        blocks = written(zap, blocks)
        assert dict(reader(blocks).numbers()) == model
        assert zap.maxblkid >= max(blocks)


def test_one_name_more_changes_one_leaf_and_the_header() -> None:
    zap = FatZap(SALT)
    for i in range(30_000):
        zap.put(b"a name of some length %d" % i, i)
    blocks = written(zap)
    zap = FatZap.load(lambda number: blocks[number] or b"", BLOCK)
    zap.put(b"new", 1)
    assert len(zap.changed_blocks()) <= 3


def test_table_moves_out_of_the_header_when_it_outgrows_it() -> None:
    zap = FatZap(SALT)
    for i in range(50_000):
        zap.put(b"%d" % i + b"-" * 249, i)
    blocks = written(zap)
    found = reader(blocks)
    first, count = found.external_table
    assert count
    assert 1 << found.shape[0] == count * BLOCK // 8
    assert sum(1 for _ in found.numbers()) == 50_000
    assert None in blocks.values() or first > 1


def test_leaf_is_what_a_kernel_can_write_on() -> None:
    """Free chunks form one chain, linked at byte 22; each bucket's chain ascends by cd; counts are right."""
    zap = FatZap(SALT)
    for name in [*names_with_one_hash(2), *(b"n%d" % i for i in range(50))]:
        zap.put(name, 1)
    leaf = zap.changed_blocks()[1]
    assert leaf
    free, entries, bits, head = struct.unpack_from("<4H", leaf, 28)
    start = 48 + 2 * BUCKETS
    kinds = Counter(leaf[start + i * CHUNK] for i in range(CHUNKS))
    assert (kinds[FREE], kinds[ENTRY], bits) == (free, entries, 0)
    assert kinds[ARRAY] == CHUNKS - free - entries
    seen = 0
    while head != 0xFFFF:
        at = start + head * CHUNK
        assert leaf[at] == FREE
        assert leaf[at + 1 : at + 22] == bytes(21)
        (head,) = struct.unpack_from("<H", leaf, at + 22)
        seen += 1
    assert seen == free
    for bucket in struct.unpack_from(f"<{BUCKETS}H", leaf, 48):
        pairs = []
        following = bucket
        while following != 0xFFFF:
            _, _, following, *_, cd, hashed = struct.unpack_from("<BBHHHHHIQ", leaf, start + following * CHUNK)
            pairs.append((hashed, cd))
        assert pairs == sorted(set(pairs))


def test_zap_of_another_shape_is_not_changed() -> None:
    block = micro_block({b"a": 1}, SALT)
    with pytest.raises(BadZap):
        FatZap.load(lambda _: block, len(block))


def test_removing_what_is_not_there_says_so() -> None:
    with pytest.raises(KeyError):
        FatZap(SALT).remove(b"a")


def _other_case(name: bytes) -> bytes:
    return name.decode().swapcase().encode()


@pytest.mark.parametrize("count", [20, 3000])
def test_names_of_folders_without_case_are_found_by_the_hash_of_their_capitals(count: int) -> None:
    """A kernel hashes the name that it looks for in upper case: the entry must be in that leaf, under that hash."""
    names = {"\u00e4\u03c3 Name %d".encode().replace(b"%d", b"%d" % number): number for number in range(count)}
    zap = FatZap(SALT, flags=2)
    for name, value in names.items():
        zap.put(name, value)
    blocks = written(zap)
    # It goes on as one that a kernel wrote.
    zap = FatZap.load(lambda number: blocks[number] or bytes(BLOCK), BLOCK)
    for name in list(names)[::3]:
        zap.remove(name)
        zap.put(_other_case(name), names[name])
    blocks = written(zap, blocks)
    read = reader(blocks)
    assert read.normalization == 2
    assert sorted(value for _, value in read.numbers()) == list(range(count))
    # Look for each as the kernel does: by the hash of its capitals, in the leaf that the table names for it.
    pointers = list(read.pointers())
    for name in map(_other_case, names):
        hashed = hash_of(name.decode().upper().encode(), SALT, HASH_BITS)
        leaf = blocks[pointers[hashed >> 64 - read.shape[0]]]
        assert leaf is not None
        assert struct.pack("<Q", hashed) in leaf


def test_names_that_differ_in_their_case_share_a_hash_and_are_told_apart() -> None:
    block = micro_block({b"a": 1, b"A": 2, b"\xc3\xa4": 3, b"\xc3\x84": 4}, SALT, 2)
    assert struct.unpack_from("<3Q", block)[2] == 2
    assert [struct.unpack_from("<I", block, 64 * (1 + at) + 8)[0] for at in range(4)] == [0, 1, 0, 1]
