"""Opening the only blocks of many small files together: what is done for each is what cannot be done for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from zkeep.crypto.block import MAC, BlockKeys, Forged
from zkeep.format.compress import BadCompression, decompress
from zkeep.format.records import HEADER
from zkeep.restore.records import Records

Array = npt.NDArray[Any]
Content = bytes | bytearray | memoryview


def opened_ahead(records: Records, keys: BlockKeys, leaves: Array) -> Iterator[tuple[int, Content]]:
    """The contents of blocks of encrypted types, each authentic, with their objects' numbers.

    Those that cannot be opened are left out: whoever asks for one of them by itself is told why.
    """
    sizes = leaves["size"].astype(np.int64)
    rows = rows_of(leaves)
    for mine, buffer, starts in records.pieces(leaves, sizes, MAC):
        view = buffer.data
        for index, start in zip(mine.tolist(), starts.tolist(), strict=True):
            row = rows[index]
            opened = bytearray(row.size - HEADER)
            with suppress(Forged, BadCompression):
                open_row(keys, row, view[start + HEADER : start + row.size + MAC], opened)
                yield row.number, decompress(opened, row.compression, row.logical)


class Row(NamedTuple):
    """Of a leaf what is needed to open its block."""

    number: int
    size: int
    compression: int
    logical: int
    salt: bytes
    iv: bytes
    mac: bytes


def rows_of(leaves: Array) -> list[Row]:
    numbers = [leaves[name].tolist() for name in ("object", "size", "compression", "logical")]
    seals = [_cut(leaves["salt"], 8), _cut(leaves["iv"], 12), _cut(leaves["pointer"]["mac"], MAC)]
    return list(map(Row._make, zip(*numbers, *seals, strict=True)))


def open_row(keys: BlockKeys, row: Row, sealed: memoryview, out: bytearray | memoryview) -> None:
    """Open a block into `out`, which is as long or longer. `sealed` ends with room for the MAC: it may be the next
    record's header, which nobody needs.

    Raises:
        Forged: its MAC does not verify.
    """
    sealed[-MAC:] = row.mac
    size = len(sealed) - MAC
    keys.open_into(row.salt, row.iv, sealed, out if len(out) == size else memoryview(out)[:size])


def _cut(column: Array, size: int) -> list[bytes]:
    content = column.tobytes()
    return [content[at : at + size] for at in range(0, len(content), size)]
