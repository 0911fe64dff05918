"""ZAP objects: small ones in one block of fixed entries, large ones as a hash table of leaves.

No I/O here: the caller passes a function from a block's number to its content. Each block shows its byte order.

    micro    one block: a head of 64 bytes, then entries of 64 bytes (value u64, cd u32, 2 bytes unused, name 50)
    fat      block 0: a header, with a table of pointers in its second half, or in blocks of its own
             other blocks: leaves. The first bits of a name's hash are the index of its leaf in the table.

A fat leaf; a chunk's first byte is its type, an ARRAY's last two the number of the next chunk:

    0      48                    48 + 2 * buckets
    +------+---------------------+-----------------------------------------------------------------+
    | head | hash buckets, u16   | chunks of 24 bytes: ENTRY (places of name and value, hash),      |
    |      | each: first entry   | ARRAY (21 bytes of a name or a value), or free                  |
    +------+---------------------+-----------------------------------------------------------------+

A ZAP may come from a hostile sender who has the key. Reading one costs no more than its blocks: each leaf is read once,
however many pointers lead to it, and each chunk of a leaf belongs to one entry.

Source: OpenZFS include/sys/zap_impl.h, zap_leaf.h; module/zfs/zap.c, zap_micro.c zap_hash(), zap_leaf.c.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from zkeep.format.records import ByteOrder
from zkeep.format.zap_hash import hash_of
from zkeep.format.zap_layout import (
    ARRAY,
    ARRAY_BYTES,
    CHUNK,
    ENTRY,
    FLAG_HASH64,
    FLAG_PRE_HASHED,
    FLAG_UINT64_KEY,
    HASH_BITS,
    HEADER,
    LEAST_SHIFT,
    MAGIC,
    MAX_ENTRIES_BYTES,
    MICRO,
    MICRO_BLOCK,
    MICRO_ENTRY,
    MOST_SHIFT,
    BadZap,
    check_room,
    chunks_for,
    kind_of,
    leaf_shape,
)

ReadBlock = Callable[[int], bytes]


class ZapEntry(NamedTuple):
    """A name and its value: integers of `width` bytes, big-endian, back to back."""

    name: bytes
    width: int
    data: bytes

    @property
    def number(self) -> int:
        """The value as one integer; BadZap if it is not one of 8 bytes."""
        if self.width != 8 or len(self.data) != 8:
            raise BadZap(f"the value of {self.name[:100]!r} is not a number")
        return int.from_bytes(self.data, "big")

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(
            int.from_bytes(self.data[at : at + self.width], "big") for at in range(0, len(self.data), self.width)
        )


class Zap:
    """A ZAP object of blocks of `blksz` bytes.

    Raises (all methods):
        BadZap: its blocks are not what they should be.
    """

    def __init__(self, read: ReadBlock, blksz: int) -> None:
        self._read = read
        self._blksz = blksz
        first = read(0)
        self._order, self.kind = kind_of(first)
        mark = "<" if self._order == "little" else ">"
        if self.kind == MICRO:
            if len(first) > MICRO_BLOCK:
                raise BadZap(f"a small ZAP of {len(first)} bytes")
            self._first = first
            self.salt, self.normalization = struct.unpack_from(mark + "2Q", first, 8)
            return
        if self.kind != HEADER:
            raise BadZap("its first block is not the head of a ZAP")
        self._shift = blksz.bit_length() - 1
        if 1 << self._shift != blksz or not LEAST_SHIFT <= self._shift <= MOST_SHIFT:
            raise BadZap(f"blocks of {blksz} bytes")
        fields = struct.unpack_from(mark + "13Q", first, 8)
        magic, self._table, self._table_blocks, self._bits, _, _ = fields[:6]
        self._free, self._leaves, self.entries_count, self.salt, self.normalization, self.flags = fields[6:12]
        if magic != MAGIC or self._bits > 40:
            raise BadZap("the head of the ZAP makes no sense")
        self._pointers = first[blksz // 2 :]
        if not self._table and 8 << self._bits > len(self._pointers):
            raise BadZap("its table of pointers is too large")

    @property
    def is_micro(self) -> bool:
        return self.kind == MICRO

    @property
    def shape(self) -> tuple[int, int, int]:
        """A fat ZAP's log2 of the pointers in its table, next free block, and number of leaves."""
        return self._bits, self._free, self._leaves

    @property
    def external_table(self) -> tuple[int, int]:
        """The first block of its table of pointers, and how many there are; (0, 0) where the table is in the header."""
        return self._table, self._table_blocks

    def pointers(self) -> Iterator[int]:
        """The table of pointers of a fat one: for each prefix of a hash the number of its leaf's block."""
        return (self._pointer(index) for index in range(1 << self._bits))

    def __iter__(self) -> Iterator[ZapEntry]:
        if self.is_micro:
            yield from _micro_entries(self._first, self._order)
            return
        for block in self._leaf_blocks():
            yield from self._entries(block)

    def _leaf_blocks(self) -> Iterator[bytes]:
        """Each leaf once: its head says which prefix of hashes it has, so which pointers must lead to it."""
        index = 0
        while index < 1 << self._bits:
            block = self._leaf_block(self._pointer(index))
            # The bits with which the hashes of all names in this leaf begin, and how many these are.
            order, _ = kind_of(block)
            (prefix,) = struct.unpack_from("<Q" if order == "little" else ">Q", block, 16)
            length = int.from_bytes(block[32:34], order)
            # With 3 bits in the table a leaf of prefix 10 has two pointers, 100 and 101; the next leaf begins at 110.
            if length > self._bits or prefix << self._bits - length != index:
                raise BadZap("a leaf lies where its names do not belong")
            yield block
            index = prefix + 1 << self._bits - length

    def numbers(self) -> Iterator[tuple[bytes, int]]:
        """The names and values of a ZAP whose values are single numbers, as those of folders are."""
        from zkeep.format.zap_columns import leaf_numbers, micro_numbers

        if self.is_micro:
            yield from micro_numbers(self._first, self._order)
            return
        for block in self._leaf_blocks():
            plain = [] if self.flags & FLAG_UINT64_KEY else leaf_numbers(block, self._shift)
            yield from plain or ((entry.name, entry.number) for entry in self._entries(block))

    def get(self, name: bytes) -> ZapEntry | None:
        """The entry of exactly this name."""
        if self.is_micro:
            return _micro_entry(self._first, self._order, name)
        # Where names are folded, or hashed elsewhere, the hash here would be another: search all.
        if self.normalization or self.flags & (FLAG_UINT64_KEY | FLAG_PRE_HASHED):
            return next((entry for entry in self if entry.name == name), None)
        bits = 48 if self.flags & FLAG_HASH64 else HASH_BITS
        hashed = hash_of(name, self.salt, bits)
        leaf = self._leaf_block(self._pointer(hashed >> 64 - self._bits if self._bits else 0))
        return next((entry for entry in self._entries(leaf) if entry.name == name), None)

    def _pointer(self, index: int) -> int:
        mark = "<Q" if self._order == "little" else ">Q"
        if not self._table:
            return int(struct.unpack_from(mark, self._pointers, index * 8)[0])
        block, within = divmod(index * 8, self._blksz)
        if block >= self._table_blocks:
            raise BadZap("its table of pointers ends too early")
        return int(struct.unpack_from(mark, self._read(self._table + block), within)[0])

    def _entries(self, leaf: bytes) -> Iterator[ZapEntry]:
        return _leaf_entries(leaf, self._shift, bool(self.flags & FLAG_UINT64_KEY))

    def _leaf_block(self, number: int) -> bytes:
        # A pointer into nowhere must not make the caller read petabytes of holes.
        if not 0 < number < max(self._free, 1 << 20) or number >= 1 << 40:
            raise BadZap(f"it points to block {number}")
        block = self._read(number)
        if len(block) != self._blksz:
            raise BadZap(f"block {number} has {len(block)} bytes")
        return block


def _micro_entries(block: bytes, order: ByteOrder) -> Iterator[ZapEntry]:
    """Entries of 64 bytes behind a head of 64; free ones have no name."""
    # 0        8      16     24            64            72   76  78             128
    # | kind   | salt | norm | 0           | value, u64  | cd | 0 | name, 50    | next entry ...
    # |<------- head ------------------->|<------------ entry ------------->|
    for at in range(MICRO_ENTRY, len(block) - MICRO_ENTRY + 1, MICRO_ENTRY):
        name = block[at + 14 : at + MICRO_ENTRY].split(b"\0", 1)[0]
        if name:
            yield ZapEntry(name, 8, _micro_value(block, at, order))


def _micro_entry(block: bytes, order: ByteOrder, name: bytes) -> ZapEntry | None:
    """_micro_entries() for one name, without decoding the others."""
    # Search the bytes; a hit counts only at the place of a name within an entry, and if it is all of the name.
    found = block.find(name, MICRO_ENTRY) if 0 < len(name) <= MICRO_ENTRY - 14 else -1
    while found >= 0:
        at, within = found & -MICRO_ENTRY, found % MICRO_ENTRY
        if within == 14 and block[at + 14 : at + MICRO_ENTRY].split(b"\0", 1)[0] == name:
            return ZapEntry(name, 8, _micro_value(block, at, order))
        found = block.find(name, at + 14 + (MICRO_ENTRY if within >= 14 else 0))
    return None


def _micro_value(block: bytes, at: int, order: ByteOrder) -> bytes:
    value = block[at : at + 8]
    return value if order == "big" else value[::-1]


def _leaf_entries(block: bytes, shift: int, numeric: bool) -> Iterator[ZapEntry]:
    """The entries of one leaf, in the order of their chunks.

    No two entries have a chunk together, so that a leaf holds no more than its own bytes.
    """
    mark, start, count = leaf_shape(block, shift)
    unpack = struct.Struct(mark + "BBHHHHHIQ").unpack_from
    # 0      1       2        4         6         8         10         12      16     24
    # | 252  | width | next   | name at | name    | value at| value    | cd    | hash | ENTRY
    # |      |       | in row | chunk   | length  | chunk   | integers |       |      |
    # | 251  | 21 bytes of a name or value                 ... | next chunk            | ARRAY
    used = 0
    for at in range(start, start + count * CHUNK, CHUNK):
        if block[at] != ENTRY:
            continue
        _, width, _, name_at, name_ints, value_at, value_ints, _, _ = unpack(block, at)
        if width not in (1, 2, 4, 8):
            raise BadZap(f"a value of integers of {width} bytes")
        size = name_ints * 8 if numeric else name_ints
        used += 1 + chunks_for(size) + chunks_for(value_ints * width)
        check_room(used, count)
        name = _array(block, mark, start, count, name_at, size)
        yield ZapEntry(
            name if numeric else name.split(b"\0", 1)[0],
            width,
            _array(block, mark, start, count, value_at, value_ints * width),
        )


def _array(block: bytes, mark: str, start: int, count: int, chunk: int, size: int) -> bytes:
    """The bytes in a chain of chunks. `size` bounds the walk, so that a ring of chunks ends too."""
    if size > MAX_ENTRIES_BYTES * 8:
        raise BadZap(f"an entry of {size} bytes")
    if size <= ARRAY_BYTES and chunk < count:
        at = start + chunk * CHUNK
        if block[at] == ARRAY:
            return block[at + 1 : at + 1 + size]
    parts = []
    for _ in range(chunks_for(size)):
        at = start + chunk * CHUNK
        if chunk >= count or block[at] != ARRAY:
            raise BadZap("a chain of chunks breaks off")
        parts.append(block[at + 1 : at + 1 + ARRAY_BYTES])
        chunk = int.from_bytes(block[at + 22 : at + 24], "little" if mark == "<" else "big")
    return b"".join(parts)[:size]
