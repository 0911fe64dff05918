"""The hash of a name in a ZAP: compiled (_kernel.c) if possible, else byte by byte with the same result.

Source: OpenZFS module/zfs/zap_micro.c zap_hash().
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache

POLYNOMIAL = 0xC96C5795D7870F42
"ECMA-182, reflected."


@cache
def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


def crc64(content: bytes, start: int) -> int:
    """CRC-64, seeded with `start`."""
    table = _table()
    value = start
    for byte in content:
        value = value >> 8 ^ table[(value ^ byte) & 0xFF]
    return value


def _compiled() -> Callable[[bytes, int], int] | None:
    if os.environ.get("ZKEEP_KERNEL") == "numpy":
        return None
    try:
        from zkeep.format import _kernel  # type: ignore[attr-defined]
    except ImportError:
        return None
    found: Callable[[bytes, int], int] | None = getattr(_kernel, "crc64", None)
    return found


_crc64 = _compiled() or crc64


def hash_of(name: bytes, salt: int, bits: int) -> int:
    """The hash by which a name is found, its ending zero not included (so is no normalization)."""
    # CRC-64 of the name, seeded with the ZAP's salt; the high bits choose the leaf, so the low ones can be dropped.
    return _crc64(name, salt) & ~((1 << 64 - bits) - 1)
