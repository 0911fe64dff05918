"""A block of a ZAP decoded or encoded as a whole, on arrays: what zap.py and zap_writer.py do entry by entry.

Folders are what this is for: names, with one number each. zap.py has the layout of the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zkeep.format.records import ByteOrder
from zkeep.format.zap_layout import ARRAY, ARRAY_BYTES, CHAIN_END, CHUNK, ENTRY, MICRO_ENTRY, check_room, leaf_shape

LONGEST = 13
"Chunks of a name that is gathered together with the others: 256 bytes, as long as names of files get."
_MICRO_ROW = np.dtype([("value", "u8"), ("cd", "u4"), ("unused", "u2"), ("name", "S50")])
_ENTRY_ROW = np.dtype(
    [
        *(("type", "u1"), ("width", "u1"), ("next", "<u2"), ("name_at", "<u2"), ("name_size", "<u2")),
        *(("value_at", "<u2"), ("values", "<u2"), ("cd", "<u4"), ("hash", "<u8")),
    ]
)
Array = np.ndarray


class LeafEntry(NamedTuple):
    """An entry of a fat leaf. `value`: integers, big-endian, back to back."""

    hashed: int
    differentiator: int
    name: bytes
    value: bytes


def micro_numbers(block: bytes, order: ByteOrder) -> list[tuple[bytes, int]]:
    """The names and values of a micro ZAP."""
    dtype = _MICRO_ROW.newbyteorder("<" if order == "little" else ">")
    rows = np.frombuffer(block, dtype, len(block) // MICRO_ENTRY - 1, MICRO_ENTRY)
    # A name ends at its first zero, whatever is behind it; what has none is free.
    found = zip(rows["name"].tolist(), rows["value"].tolist(), strict=True)
    return [(name.split(b"\0", 1)[0], value) for name, value in found if name[:1] not in (b"", b"\0")]


def leaf_numbers(block: bytes, shift: int) -> list[tuple[bytes, int]]:
    """The names and values of a leaf whose values are single numbers; [] if any entry is of another kind, or odd."""
    mark, start, count = leaf_shape(block, shift)
    # Every chunk a row; those of type ENTRY, with the chunks where their names and values begin.
    chunks = np.frombuffer(block, np.uint8, count * CHUNK, start).reshape(-1, CHUNK)
    entries = chunks[chunks[:, 0] == ENTRY]
    names, sizes, values, counts = np.ascontiguousarray(entries[:, 4:12]).view(mark + "u2").T.astype(np.int64)
    if (entries[:, 1] != 8).any() or (counts != 1).any() or (values >= count).any():
        return []
    if (chunks[values, 0] != ARRAY).any():
        return []
    check_room(2 * len(entries) + int(((sizes + ARRAY_BYTES - 1) // ARRAY_BYTES).sum()), count)
    found = _names(chunks, mark, names, sizes)
    numbers = np.ascontiguousarray(chunks[values, 1:9]).view(">u8").reshape(-1).tolist()
    return list(zip(found, numbers, strict=True)) if found is not None else []


def _names(chunks: Array, mark: str, at: Array, sizes: Array) -> list[bytes] | None:
    """The bytes in chains of chunks, up to the first zero of each; None: one of them is odd."""
    most = int(sizes.max(initial=0)) + ARRAY_BYTES - 1
    if most // ARRAY_BYTES > LONGEST:
        return None
    width = most // ARRAY_BYTES * ARRAY_BYTES
    text = np.zeros((len(at), width), np.uint8)
    # One chunk of all names at a time: those that are longer have another one.
    left = np.arange(len(at))
    for begin in range(0, width, ARRAY_BYTES):
        left = left[sizes[left] > begin]
        here = at[left]
        if (here >= len(chunks)).any() or (chunks[here, 0] != ARRAY).any():
            return None
        text[left, begin : begin + ARRAY_BYTES] = chunks[here, 1 : 1 + ARRAY_BYTES]
        at[left] = np.ascontiguousarray(chunks[here, 1 + ARRAY_BYTES :]).view(mark + "u2").reshape(-1)
    whole = text.tobytes()
    # Where no name has a byte, the width is 0, and each of them is there all the same.
    return [whole[n * width : n * width + size].split(b"\0", 1)[0] for n, size in enumerate(sizes.tolist())]


def leaf_chunks(entries: Sequence[LeafEntry], buckets: Sequence[int], count: int, width: int) -> tuple[bytes, bytes]:
    """The table of buckets of a leaf, and the chunks that its entries take.

    `buckets`: of each entry; `count`: how many there are; `width`: bytes of an integer in the values.
    """
    # 1. Bucket by bucket. A chain ascends by hash and cd, so its last entry is written first.
    order = sorted(range(len(entries)), key=lambda at: (-buckets[at], *entries[at][:2]), reverse=True)
    every = [entries[at] for at in order]
    bucket = np.array([buckets[at] for at in order], np.int64)
    # 2. Of each entry the chunks of its name and a zero, those of its value, and then its own.
    names = np.array([len(each.name) // ARRAY_BYTES + 1 for each in every], np.int64)
    sizes = np.array([len(each.value) for each in every], np.int64)
    values = (sizes + ARRAY_BYTES - 1) // ARRAY_BYTES
    own = np.cumsum(names + values + 1) - 1
    first = own - names - values
    used = int(own[-1]) + 1 if every else 0
    chunks = np.zeros((used, CHUNK), np.uint8)
    # 3. Each chunk of a name or value leads to the next one, but for the last.
    following = np.arange(1, used + 1).astype("<u2")
    following[first + names - 1] = CHAIN_END
    following[own - 1] = CHAIN_END
    arrays = np.ones(used, bool)
    arrays[own] = False
    chunks[arrays, 0] = ARRAY
    chunks[arrays, 1 : 1 + ARRAY_BYTES] = np.frombuffer(_text(every), np.uint8).reshape(-1, ARRAY_BYTES)
    chunks[arrays, 1 + ARRAY_BYTES :] = following.view(np.uint8).reshape(-1, 2)[arrays]
    # 4. Each entry leads to the one of its bucket that was written before, and the table to the last.
    rows = np.empty(len(every), _ENTRY_ROW)
    again = np.append(False, bucket[1:] == bucket[:-1])[: len(every)]
    rows["type"], rows["width"] = ENTRY, width
    rows["next"] = np.where(again, np.append(0, own[:-1])[: len(every)], CHAIN_END)
    rows["name_at"], rows["name_size"] = first, [len(each.name) + 1 for each in every]
    rows["value_at"], rows["values"] = first + names, sizes // width
    rows["hash"], rows["cd"] = [each.hashed for each in every], [each.differentiator for each in every]
    chunks[own] = rows.view(np.uint8).reshape(-1, CHUNK)
    table = np.full(count, CHAIN_END, "<u2")
    table[bucket] = own
    return table.tobytes(), chunks.tobytes()


def _text(entries: Sequence[LeafEntry]) -> bytes:
    """Names and values, each filled with zeros to whole chunks."""
    parts = []
    for each in entries:
        parts.append(each.name.ljust((len(each.name) // ARRAY_BYTES + 1) * ARRAY_BYTES, b"\0"))
        parts.append(each.value.ljust(-(-len(each.value) // ARRAY_BYTES) * ARRAY_BYTES, b"\0"))
    return b"".join(parts)
