"""fletcher-4, and the arithmetic that makes it cheap: the sum over A then B follows from the two sums.

Four 64-bit accumulators, every word w of 32 bits: a += w, b += a, c += b, d += c, all mod 2^64. So n words
appended to a state shift it by a fixed matrix and add their own sum. `Words` is (a, b, c, d).

Source: OpenZFS module/zcommon/zfs_fletcher.c.
"""

from __future__ import annotations

from zkeep.format.records import Words
from zkeep.names import MAX_UINT64

ZERO: Words = (0, 0, 0, 0)
MIX = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)
"K1..K4 of a record's check, see kernel.py. Stored checks depend on them: never change."


def shift(state: Words, nbytes: int) -> Words:
    """The state after `nbytes` zero bytes; a multiple of 4."""
    a, b, c, d = state
    n = nbytes >> 2
    # n zero words: a stays, b grows by n times a, c by n times b and by 1 + 2 + ... + n times a, d likewise.
    t2 = n * (n + 1) >> 1
    t3 = n * (n + 1) * (n + 2) // 6
    return a, b + n * a & MAX_UINT64, c + n * b + t2 * a & MAX_UINT64, d + n * c + t2 * b + t3 * a & MAX_UINT64


def combine(first: Words, second: Words, second_bytes: int) -> Words:
    """The sum over A then B, from the sum over A, the sum over B alone and B's length."""
    a, b, c, d = shift(first, second_bytes)
    e, f, g, h = second
    return a + e & MAX_UINT64, b + f & MAX_UINT64, c + g & MAX_UINT64, d + h & MAX_UINT64
