"""Sealed blocks of many objects: fetched together, and what is needed to open each at hand without a look at arrays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from zkeep.crypto.block import MAC, BlockKeys, Forged
from zkeep.format.compress import BadCompression, decompress
from zkeep.format.records import HEADER
from zkeep.snapshot.records import Records

Array = npt.NDArray[Any]
Content = bytes | bytearray | memoryview


class Row(NamedTuple):
    """Of a leaf what is needed to open its block."""

    number: int
    size: int
    compression: int
    logical: int
    salt: bytes
    iv: bytes
    mac: bytes


def fetched(records: Records, leaves: Array) -> Iterator[tuple[int, Row, memoryview]]:
    """The blocks of leaves, as they lie in the pool: the leaf's index, and what is stored, with room for the MAC.

    That room is the next record's header, which nobody needs then.
    """
    rows = _rows(leaves)
    for mine, buffer, starts in records.pieces(leaves, leaves["size"].astype(np.int64), MAC):
        view = buffer.data
        for index, start in zip(mine.tolist(), starts.tolist(), strict=True):
            row = rows[index]
            yield index, row, view[start + HEADER : start + row.size + MAC]


def opened_ahead(records: Records, keys: BlockKeys, leaves: Array) -> Iterator[tuple[int, Content]]:
    """The contents of blocks of encrypted types, each authentic, with their objects' numbers.

    Those that cannot be opened are left out: whoever asks for one of them by itself is told why.
    """
    for _, row, sealed in fetched(records, leaves):
        opened = bytearray(row.size - HEADER)
        with suppress(Forged, BadCompression):
            open_row(keys, row, sealed, opened)
            yield row.number, decompress(opened, row.compression, row.logical)


def open_row(keys: BlockKeys, row: Row, sealed: memoryview, out: bytearray | memoryview) -> None:
    """Open a block into `out`, which is as long. `sealed` ends with room for the MAC.

    Raises:
        Forged: its MAC does not verify.
    """
    sealed[-MAC:] = row.mac
    keys.open_into(row.salt, row.iv, sealed, out)


def _rows(leaves: Array) -> list[Row]:
    numbers = [leaves[name].tolist() for name in ("object", "size", "compression", "logical")]
    seals = [_cut(leaves["salt"], 8), _cut(leaves["iv"], 12), _cut(leaves["pointer"]["mac"], MAC)]
    return list(map(Row._make, zip(*numbers, *seals, strict=True)))


def _cut(column: Array, size: int) -> list[bytes]:
    content = column.tobytes()
    return [content[at : at + size] for at in range(0, len(content), size)]
