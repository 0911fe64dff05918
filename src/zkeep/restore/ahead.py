"""Opening the only blocks of many small files together: what is done for each is what cannot be done for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

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
    rows = _rows(leaves)
    for mine, buffer, starts in records.pieces(leaves, sizes, MAC):
        view = buffer.data
        for index, start in zip(mine.tolist(), starts.tolist(), strict=True):
            number, size, compression, logical, salt, iv, mac = rows[index]
            sealed = view[start + HEADER : start + size + MAC]
            sealed[-MAC:] = mac  # on the next record's header, which nobody needs
            opened = bytearray(size - HEADER)
            with suppress(Forged, BadCompression):
                keys.open_into(salt, iv, sealed, opened)
                yield number, decompress(opened, compression, logical)


def _rows(leaves: Array) -> list[tuple[int, int, int, int, bytes, bytes, bytes]]:
    numbers = [leaves[name].tolist() for name in ("object", "size", "compression", "logical")]
    seals = [_cut(leaves["salt"], 8), _cut(leaves["iv"], 12), _cut(leaves["pointer"]["mac"], MAC)]
    return list(zip(*numbers, *seals, strict=True))


def _cut(column: Array, size: int) -> list[bytes]:
    content = column.tobytes()
    return [content[at : at + size] for at in range(0, len(content), size)]
