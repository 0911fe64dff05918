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
from functools import cache
from typing import Literal, NamedTuple

from zkeep.format.records import ByteOrder

LEAF, HEADER, MICRO = 1 << 63, (1 << 63) + 1, (1 << 63) + 3
MAGIC = 0x2F52AB2AB
LEAF_MAGIC = 0x2AB1EAF
CHUNK = 24
ARRAY_BYTES = CHUNK - 3
CHAIN_END = 0xFFFF
ENTRY, ARRAY = 252, 251
HASH_BITS = 28
FLAG_HASH64, FLAG_UINT64_KEY, FLAG_PRE_HASHED = 1, 2, 4
POLYNOMIAL = 0xC96C5795D7870F42
"ECMA-182, reflected."
MAX_ENTRIES_BYTES = 1 << 16
"Bytes, divided by 8, that an entry's name or value may have."
LEAST_SHIFT, MOST_SHIFT = 9, 20
"Blocks of a large ZAP: chunks are numbered in 16 bits, and blocks of 2 MiB would have more of them than that."
MICRO_BLOCK = 1 << 20
"The largest block of a small one, whose entries are numbered in 15 bits (MZAP_MAX_SIZE)."
MICRO_ENTRY = 64

ReadBlock = Callable[[int], bytes]


class BadZap(ValueError):
    """The bytes are no ZAP, or contradict one another."""


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
        self._order, self.kind = _kind(first)
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
            order, _ = _kind(block)
            (prefix,) = struct.unpack_from("<Q" if order == "little" else ">Q", block, 16)
            length = int.from_bytes(block[32:34], order)
            # With 3 bits in the table a leaf of prefix 10 has two pointers, 100 and 101; the next leaf begins at 110.
            if length > self._bits or prefix << self._bits - length != index:
                raise BadZap("a leaf lies where its names do not belong")
            yield block
            index = prefix + 1 << self._bits - length

    def numbers(self) -> Iterator[tuple[bytes, int]]:
        """The names and values of a ZAP whose values are single numbers, as those of folders are."""
        if self.is_micro:
            yield from ((entry.name, entry.number) for entry in self)
            return
        for block in self._leaf_blocks():
            plain = [] if self.flags & FLAG_UINT64_KEY else _leaf_numbers(block, self._shift)
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


def _kind(block: bytes) -> tuple[ByteOrder, int]:
    kinds = (LEAF, HEADER, MICRO)
    if len(block) >= 128:
        little, big = int.from_bytes(block[:8], "little"), int.from_bytes(block[:8], "big")
        if little in kinds:
            return "little", little
        if big in kinds:
            return "big", big
    raise BadZap("it does not begin as a ZAP does")


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


def _leaf_shape(block: bytes, shift: int) -> tuple[Literal["<", ">"], int, int]:
    """A leaf's byte order, where its chunks begin, and how many there are."""
    order, kind = _kind(block)
    mark: Literal["<", ">"] = "<" if order == "little" else ">"
    (magic,) = struct.unpack_from(mark + "I", block, 24)
    if kind != LEAF or magic != LEAF_MAGIC:
        raise BadZap("a leaf does not begin as a leaf does")
    hashes = 1 << shift - 5
    return mark, 48 + 2 * hashes, ((1 << shift) - 2 * hashes) // CHUNK - 2


def _leaf_entries(block: bytes, shift: int, numeric: bool) -> Iterator[ZapEntry]:
    """The entries of one leaf, in the order of their chunks.

    No two entries have a chunk together, so that a leaf holds no more than its own bytes.
    """
    mark, start, count = _leaf_shape(block, shift)
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
        used += 1 + _chunks(size) + _chunks(value_ints * width)
        _check_room(used, count)
        name = _array(block, mark, start, count, name_at, size)
        yield ZapEntry(
            name if numeric else name.split(b"\0", 1)[0],
            width,
            _array(block, mark, start, count, value_at, value_ints * width),
        )


def _leaf_numbers(block: bytes, shift: int) -> list[tuple[bytes, int]]:
    """_leaf_entries() in columns, for values that are single numbers; [] if any entry is of another kind, or odd."""
    import numpy as np

    mark, start, count = _leaf_shape(block, shift)
    # Every chunk a row; those of type ENTRY, with the chunks where their names and values begin.
    chunks = np.frombuffer(block, np.uint8, count * CHUNK, start).reshape(-1, CHUNK)
    entries = chunks[chunks[:, 0] == ENTRY]
    names, sizes, values, counts = np.ascontiguousarray(entries[:, 4:12]).view(mark + "u2").T
    if (entries[:, 1] != 8).any() or (counts != 1).any() or (np.maximum(names, values) >= count).any():
        return []
    if (chunks[names, 0] != ARRAY).any() or (chunks[values, 0] != ARRAY).any():
        return []
    _check_room(2 * len(entries) + int(((sizes.astype(np.int64) + ARRAY_BYTES - 1) // ARRAY_BYTES).sum()), count)
    # Values are one chunk each; names that are longer than one chunk are followed one by one.
    numbers = np.ascontiguousarray(chunks[values, 1:9]).view(">u8").reshape(-1).tolist()
    heads = chunks[names, 1 : 1 + ARRAY_BYTES].tobytes()
    found = []
    for at, (name, size, number) in enumerate(zip(names.tolist(), sizes.tolist(), numbers, strict=True)):
        first = at * ARRAY_BYTES
        whole = heads[first : first + size] if size <= ARRAY_BYTES else _array(block, mark, start, count, name, size)
        found.append((whole.split(b"\0", 1)[0], number))
    return found


def _chunks(size: int) -> int:
    """The number of chunks that so many bytes take."""
    return (size + (ARRAY_BYTES - 1)) // ARRAY_BYTES


def _check_room(used: int, count: int) -> None:
    if used > count:
        raise BadZap("the entries of a leaf take more chunks than it has")


def _array(block: bytes, mark: str, start: int, count: int, chunk: int, size: int) -> bytes:
    """The bytes in a chain of chunks. `size` bounds the walk, so that a ring of chunks ends too."""
    if size > MAX_ENTRIES_BYTES * 8:
        raise BadZap(f"an entry of {size} bytes")
    if size <= ARRAY_BYTES and chunk < count:
        at = start + chunk * CHUNK
        if block[at] == ARRAY:
            return block[at + 1 : at + 1 + size]
    parts = []
    for _ in range(_chunks(size)):
        at = start + chunk * CHUNK
        if chunk >= count or block[at] != ARRAY:
            raise BadZap("a chain of chunks breaks off")
        parts.append(block[at + 1 : at + 1 + ARRAY_BYTES])
        chunk = int.from_bytes(block[at + 22 : at + 24], "little" if mark == "<" else "big")
    return b"".join(parts)[:size]


@cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


def hash_of(name: bytes, salt: int, bits: int) -> int:
    """The hash by which a name is found, its ending zero not included (so is no normalization)."""
    # CRC-64 of the name, seeded with the ZAP's salt; the high bits choose the leaf, so the low ones can be dropped.
    table = _crc_table()
    value = salt
    for byte in name:
        value = value >> 8 ^ table[(value ^ byte) & 0xFF]
    return value & ~((1 << 64 - bits) - 1)
