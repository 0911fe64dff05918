"""How the blocks of ZAPs are laid out: what reads and writes them shares this. zap.py draws them.

Source: OpenZFS include/sys/zap_impl.h, zap_leaf.h.
"""

from __future__ import annotations

import struct
from typing import Literal

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
MAX_ENTRIES_BYTES = 1 << 16
"Bytes, divided by 8, that an entry's name or value may have."
LEAST_SHIFT, MOST_SHIFT = 9, 20
"Blocks of a large ZAP: chunks are numbered in 16 bits, and blocks of 2 MiB would have more of them than that."
MICRO_BLOCK = 1 << 20
"The largest block of a small one, whose entries are numbered in 15 bits (MZAP_MAX_SIZE)."
MICRO_ENTRY = 64


class BadZap(ValueError):
    """The bytes are no ZAP, or contradict one another."""


def kind_of(block: bytes) -> tuple[ByteOrder, int]:
    kinds = (LEAF, HEADER, MICRO)
    if len(block) >= 128:
        little, big = int.from_bytes(block[:8], "little"), int.from_bytes(block[:8], "big")
        if little in kinds:
            return "little", little
        if big in kinds:
            return "big", big
    raise BadZap("it does not begin as a ZAP does")


def leaf_shape(block: bytes, shift: int) -> tuple[Literal["<", ">"], int, int]:
    """A leaf's byte order, where its chunks begin, and how many there are."""
    order, kind = kind_of(block)
    mark: Literal["<", ">"] = "<" if order == "little" else ">"
    (magic,) = struct.unpack_from(mark + "I", block, 24)
    if kind != LEAF or magic != LEAF_MAGIC:
        raise BadZap("a leaf does not begin as a leaf does")
    hashes = 1 << shift - 5
    return mark, 48 + 2 * hashes, ((1 << shift) - 2 * hashes) // CHUNK - 2


def chunks_for(size: int) -> int:
    """The number of chunks that so many bytes take."""
    return (size + (ARRAY_BYTES - 1)) // ARRAY_BYTES


def check_room(used: int, count: int) -> None:
    if used > count:
        raise BadZap("the entries of a leaf take more chunks than it has")
