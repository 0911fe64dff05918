"""Encrypted blocks of many objects, read together.

What is needed to decrypt each of them is taken out of the arrays once for all: a look into an array for every block
costs more than the decryption of a small one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from zkeep.crypto.block import MAC, BlockKeys, Forged
from zkeep.format.compress import BadCompression, decompress
from zkeep.format.records import HEADER
from zkeep.pool.timeline.spans import Array
from zkeep.snapshot.records import StoredRecords
from zkeep.tree.objects import Content


class BlockRow(NamedTuple):
    """What is needed of a leaf to decrypt and decompress its block."""

    number: int
    size: int
    compression: int
    logical: int
    salt: bytes
    iv: bytes
    mac: bytes


def stored_blocks(records: StoredRecords, leaves: Array) -> Iterator[tuple[int, BlockRow, memoryview]]:
    """Read the blocks of leaves: each leaf's index, its row, and the stored bytes with room for the MAC behind them.

    That room overlaps the header of the next record, which is not needed any more.
    """
    numbers = [leaves[name].tolist() for name in ("object", "size", "compression", "logical")]
    parameters = [_cut(leaves["salt"], 8), _cut(leaves["iv"], 12), _cut(leaves["pointer"]["mac"], MAC)]
    rows = list(map(BlockRow._make, zip(*numbers, *parameters, strict=True)))
    # | header | ciphertext | header | ciphertext | ...      one read for many records
    #          |<--- view --------->|                       ends with 16 bytes of the next header, where the MAC is put
    for indices, buffer, starts in records.pieces(leaves, leaves["size"].astype(np.int64), MAC):
        view = buffer.data
        for index, start in zip(indices.tolist(), starts.tolist(), strict=True):
            row = rows[index]
            yield index, row, view[start + HEADER : start + row.size + MAC]


def read_ahead(records: StoredRecords, keys: BlockKeys, leaves: Array) -> Iterator[tuple[int, Content]]:
    """Objects' numbers and the contents of their blocks, all of encrypted types.

    Blocks that cannot be decrypted or decompressed are left out: reading such a block by itself says why.
    """
    for _, row, stored in stored_blocks(records, leaves):
        compressed = bytearray(row.size - HEADER)
        with suppress(Forged, BadCompression):
            decrypt_row(keys, row, stored, compressed)
            yield row.number, decompress(compressed, row.compression, row.logical)


def decrypt_row(keys: BlockKeys, row: BlockRow, stored: memoryview, out: bytearray | memoryview) -> None:
    """Decrypt a block into `out`, which is as long as its ciphertext. `stored` ends with room for the MAC.

    Raises:
        Forged: its MAC does not verify.
    """
    stored[-MAC:] = row.mac
    keys.decrypt_into(row.salt, row.iv, stored, out)


def _cut(column: Array, size: int) -> list[bytes]:
    content = column.tobytes()
    return [content[at : at + size] for at in range(0, len(content), size)]
