"""Writing ZAP objects: the twin of format/zap.py. Pure: names and values in, blocks out.

A directory is a micro ZAP, one block of 64-byte entries, as long as its names are short and few; then it becomes a fat
one: a header block, a table of pointers, and leaves found by the top bits of a name's hash. A fat ZAP can be changed
leaf by leaf, so that one new name in a million costs one leaf and the header.

A fat leaf of 16 KiB:

    0     48                    1072                                                  16384
    +-----+---------------------+-----------------------------------------------------+
    |head | 512 buckets, u16:   | 638 chunks of 24 bytes: an ENTRY (hash, cd, places   |
    |     | first entry's chunk | of name and value), ARRAYs of 21 bytes, FREE ones    |
    +-----+---------------------+-----------------------------------------------------+

Source: OpenZFS include/sys/zap_impl.h, zap_leaf.h; module/zfs/zap_micro.c mze_insert(), zap_leaf.c
zap_leaf_chunk_alloc(), zap_leaf_transfer_entry(); module/zfs/zap.c zap_table_grow(), zap_expand_leaf().
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

from zkeep.format.folding import NORMFLAGS, folding
from zkeep.format.zap import ReadBlock, Zap
from zkeep.format.zap_hash import hash_of
from zkeep.format.zap_layout import (
    ARRAY,
    ARRAY_BYTES,
    CHAIN_END,
    CHUNK,
    ENTRY,
    HASH_BITS,
    HEADER,
    LEAF,
    LEAF_MAGIC,
    MAGIC,
    MICRO,
    BadZap,
)

FREE = 253
BLOCK_SHIFT = 14
BLOCK = 1 << BLOCK_SHIFT
BUCKETS = 1 << BLOCK_SHIFT - 5
CHUNKS = (BLOCK - 2 * BUCKETS) // CHUNK - 2
"Chunks of a leaf; its head takes the room of two."
EMBEDDED_BITS = BLOCK_SHIFT - 4
"Log2 of the pointers in the second half of the header block."
POINTERS = BLOCK // 8
"Pointers in a block of an external table."
MAX_BITS = 40
MICRO_NAME = 49
MAX_MICRO = 2047
"Entries of a micro ZAP: one of 128 KiB is full."
MAX_NAME = 255


def fits_micro(names: Iterable[bytes], count: int) -> bool:
    """Whether a micro ZAP can hold `count` entries with these names."""
    return count <= MAX_MICRO and all(len(name) <= MICRO_NAME for name in names)


def _hashed(name: bytes, salt: int, flags: int) -> int:
    """The hash by which a kernel looks for a name, folded as the ZAP's normflags say."""
    fold = folding(flags)
    return hash_of(fold(name) if fold is not None else name, salt, HASH_BITS)


def micro_block(entries: Mapping[bytes, int], salt: int, flags: int = 0) -> bytes:
    """The only block of a micro ZAP, a multiple of 512 bytes. `flags`: its normflags.

    Two names with the same 28-bit hash get different `cd`s: a kernel that opens the ZAP puts (hash, cd) into a tree
    and panics where it is there already.

    Raises:
        ValueError: the entries need a fat ZAP.
    """
    if not fits_micro(entries, len(entries)):
        raise ValueError("these entries need a fat ZAP")
    seen: dict[int, int] = {}
    rows = [struct.pack("<3Q40x", MICRO, salt, flags)]
    for name, value in entries.items():
        hashed = _hashed(name, salt, flags)
        differentiator = seen.get(hashed, 0)
        seen[hashed] = differentiator + 1
        rows.append(struct.pack("<QIH50s", value, differentiator, 0, name))
    block = b"".join(rows)
    return block.ljust(-(-len(block) // 512) * 512, b"\0")


@dataclass(slots=True)
class _Entry:
    hashed: int
    differentiator: int
    name: bytes
    value: bytes
    "Integers, big-endian, back to back."
    chunks: int = 0

    def __post_init__(self) -> None:
        self.chunks = 1 + (len(self.name) // ARRAY_BYTES + 1) + -(-len(self.value) // ARRAY_BYTES)


@dataclass(slots=True)
class _Leaf:
    """One leaf, decoded: all entries whose hash begins with the `bits` bits of `prefix`."""

    block: int
    prefix: int
    bits: int
    entries: dict[bytes, _Entry] = field(default_factory=dict)
    hashes: set[int] = field(default_factory=set)
    "Hashes of its entries, and of removed ones. A hash that is not in here is new: no entry can have the same."
    used: int = 0
    changed: bool = True

    def add(self, entry: _Entry) -> None:
        self.entries[entry.name] = entry
        self.hashes.add(entry.hashed)
        self.used += entry.chunks


class FatZap:
    """A fat ZAP that is being written; `width` is the bytes of an integer in its values, `flags` are its normflags.

    `FatZap(salt)` is empty; `FatZap.load()` goes on with one that is there, and reads only the leaves that it needs.
    `changed_blocks()` gives what has to be written.
    """

    def __init__(self, salt: int, width: int = 8, flags: int = 0) -> None:
        self.salt = salt
        self.flags = flags
        self.count = 0
        self._width = width
        self._bits = 0
        "Log2 of the pointers in the table that are told apart; the table itself never has less than 2^10."
        self._leaves: dict[int, _Leaf] = {1: _Leaf(1, 0, 0)}
        self._table = [1]
        self._leaf_count = 1
        self._next = 2
        "The next block that was never used."
        self._external = 0, 0
        "First block and number of blocks of an external table."
        self._dropped: list[int] = []
        self._table_changed = True
        self._read: ReadBlock | None = None

    @classmethod
    def load(cls, read: ReadBlock, blksz: int) -> FatZap:
        """Change a ZAP whose blocks `read` returns.

        Raises:
            BadZap: it is none that this class, or a kernel with blocks of 16 KiB, would have written.
        """
        old = Zap(read, blksz)
        if old.is_micro or blksz != BLOCK or old.normalization & ~NORMFLAGS or old.flags:
            raise BadZap("it cannot be changed here")
        zap = cls(old.salt, flags=old.normalization)
        zap._read = read
        zap.count = old.entries_count
        zap._bits, zap._next, zap._leaf_count = old.shape
        zap._external = old.external_table
        zap._table = list(old.pointers())
        zap._leaves = {}
        zap._table_changed = False
        return zap

    @property
    def maxblkid(self) -> int:
        return self._next - 1

    def put(self, name: bytes, value: int | bytes) -> None:
        """Add an entry, or replace the value of the one of this name.

        Raises:
            ValueError: more names share one hash than a leaf can hold.
        """
        data = value if isinstance(value, bytes) else value.to_bytes(8, "big")
        hashed = _hashed(name, self.salt, self.flags)
        leaf = self._leaf_of(hashed)
        old = leaf.entries.get(name)
        if old is not None:
            old.value, leaf.changed = data, True
            return
        entry = _Entry(hashed, 0, name, data)
        # Split the leaf until the entry fits.
        while leaf.used + entry.chunks > CHUNKS:
            leaf = self._split(leaf, hashed)
        # Entries with equal hashes get different `cd`s, the lowest that is free.
        if hashed in leaf.hashes:
            taken = {each.differentiator for each in leaf.entries.values() if each.hashed == hashed}
            entry.differentiator = next(number for number in range(len(taken) + 1) if number not in taken)
        leaf.add(entry)
        leaf.changed = True
        self.count += 1

    def remove(self, name: bytes) -> None:
        """Raises KeyError: there is no such name."""
        hashed = _hashed(name, self.salt, self.flags)
        leaf = self._leaf_of(hashed)
        leaf.used -= leaf.entries.pop(name).chunks
        leaf.changed = True
        self.count -= 1

    def changed_blocks(self) -> dict[int, bytes | None]:
        """Blocks by number, to be written; None: it is a hole from now on. The header is always among them."""
        found: dict[int, bytes | None] = dict.fromkeys(self._dropped)
        found[0] = self._header()
        if self._table_changed and self._external[1]:
            first, blocks = self._external
            packed = struct.pack(f"<{len(self._table)}Q", *self._table)
            for at in range(blocks):
                found[first + at] = packed[at * BLOCK : at * BLOCK + BLOCK]
        for leaf in self._leaves.values():
            if leaf.changed:
                found[leaf.block] = _leaf_block(leaf, self._width)
        return dict(sorted(found.items()))

    # The table of pointers

    def _leaf_of(self, hashed: int) -> _Leaf:
        number = self._table[hashed >> 64 - self._bits if self._bits else 0]
        found = self._leaves.get(number)
        if found is None:
            found = self._leaves[number] = self._loaded(number)
        return found

    def _loaded(self, number: int) -> _Leaf:
        if self._read is None:
            raise BadZap(f"it points to block {number}")
        block = self._read(number)
        prefix, bits, entries = _decoded(block)
        leaf = _Leaf(number, prefix, bits, changed=False)
        for entry in entries:
            leaf.add(entry)
        return leaf

    def _split(self, leaf: _Leaf, hashed: int) -> _Leaf:
        """Move half of a full leaf's hashes to a new leaf. Returns the one of the two where `hashed` belongs."""
        if all(entry.hashed == hashed for entry in leaf.entries.values()):
            raise ValueError("too many names have the same hash")
        if leaf.bits == self._bits:
            self._grow_table()
        # The leaf keeps the lower half of its hashes; the upper half, and the pointers to it, go to a new block.
        leaf.bits += 1
        leaf.prefix <<= 1
        upper = _Leaf(self._next, leaf.prefix | 1, leaf.bits)
        self._next += 1
        self._leaf_count += 1
        entries, leaf.entries, leaf.hashes, leaf.used, leaf.changed = leaf.entries, {}, set(), 0, True
        for entry in entries.values():
            (upper if entry.hashed >> 64 - leaf.bits & 1 else leaf).add(entry)
        self._leaves[upper.block] = upper
        # table, 3 bits   000 001 010 011 100 101 110 111      the leaf with prefix 0 is split into 00 and 01:
        # before           A   A   A   A   B   B   C   C
        # after            A   A   D   D   B   B   C   C
        span = 1 << self._bits - leaf.bits
        self._table[upper.prefix * span : (upper.prefix + 1) * span] = [upper.block] * span
        self._table_changed = True
        return upper if hashed >> 64 - leaf.bits & 1 else leaf

    def _grow_table(self) -> None:
        """Double the table: each pointer becomes two."""
        if self._bits == MAX_BITS:
            raise ValueError("too many names have the same hash")
        self._bits += 1
        self._table = [number for number in self._table for _ in (0, 1)]
        self._table_changed = True
        if self._bits > EMBEDDED_BITS:
            # The old table's blocks are given up, and the new one lies behind all that was ever used.
            first, blocks = self._external
            self._dropped += range(first, first + blocks)
            count = len(self._table) // POINTERS
            self._external = self._next, count
            self._next += count

    def _header(self) -> bytes:
        first, blocks = self._external
        bits, table = self._bits, self._table
        if not blocks:
            # An embedded table always has 2^10 pointers: spread the few that differ over all of them.
            spread = 1 << EMBEDDED_BITS - bits
            table = [number for number in table for _ in range(spread)]
            bits = EMBEDDED_BITS
        # 0      8       16      24       32     40  48  56     64       72        80     88     96     104   8192
        # | kind | magic | table | blocks | bits | 0 | 0 | free | leaves | entries | salt | norm | flag | ... | pointers
        counts = self._next, self._leaf_count, self.count
        fields = (HEADER, MAGIC, first, blocks, bits, 0, 0, *counts, self.salt, self.flags, 0)
        head = struct.pack("<13Q", *fields).ljust(BLOCK // 2, b"\0")
        embedded = struct.pack(f"<{len(table)}Q", *table) if not blocks else b""
        return (head + embedded).ljust(BLOCK, b"\0")


def _leaf_block(leaf: _Leaf, width: int) -> bytes:
    from zkeep.format.zap_columns import LeafEntry, leaf_chunks

    # The bucket: the nine bits of the hash behind those that all names in the leaf share.
    entries = [LeafEntry(each.hashed, each.differentiator, each.name, each.value) for each in leaf.entries.values()]
    buckets = [each.hashed >> 64 - 9 - leaf.bits & BUCKETS - 1 for each in entries]
    table, chunks = leaf_chunks(entries, buckets, BUCKETS, width)
    # What is left is one chain of free chunks.
    used = len(chunks) // CHUNK
    free = used if used < CHUNKS else CHAIN_END
    counts = (CHUNKS - used, len(entries), leaf.bits, free)
    head = struct.pack("<3QI4HB11x", LEAF, 0, leaf.prefix, LEAF_MAGIC, *counts, 0)
    return (head + table + chunks + _free_chunks()[used * CHUNK :]).ljust(BLOCK, b"\0")


@cache
def _free_chunks() -> bytes:
    """The chunks of a leaf without entries."""
    following = [*range(1, CHUNKS), CHAIN_END]
    return b"".join(struct.pack("<B21xH", FREE, number) for number in following)


def _decoded(block: bytes) -> tuple[int, int, list[_Entry]]:
    """A leaf's prefix, its length in bits, and its entries.

    Raises:
        BadZap: it is no leaf in little-endian byte order.
    """
    kind, _, prefix, magic, _, _, bits, _ = struct.unpack_from("<3QI4H", block)
    if len(block) != BLOCK or kind != LEAF or magic != LEAF_MAGIC or bits > MAX_BITS:
        raise BadZap("a leaf does not begin as a leaf does")
    start = 48 + 2 * BUCKETS
    entries = []
    for at in range(start, start + CHUNKS * CHUNK, CHUNK):
        if block[at] == ENTRY:
            _, width, _, name_at, name_size, value_at, values, cd, hashed = struct.unpack_from("<BBHHHHHIQ", block, at)
            name = _array(block, start, name_at, name_size)[:-1]
            entries.append(_Entry(hashed, cd, name, _array(block, start, value_at, values * width)))
    return prefix, bits, entries


def _array(block: bytes, start: int, chunk: int, size: int) -> bytes:
    parts = []
    for _ in range(-(-size // ARRAY_BYTES)):
        at = start + chunk * CHUNK
        if chunk >= CHUNKS or block[at] != ARRAY:
            raise BadZap("a chain of chunks breaks off")
        parts.append(block[at + 1 : at + 1 + ARRAY_BYTES])
        chunk = int.from_bytes(block[at + 22 : at + 24], "little")
    return b"".join(parts)[:size]
