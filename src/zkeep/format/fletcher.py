"""fletcher-4, and the arithmetic that makes it cheap: the sum over A then B follows from the two sums.

Four 64-bit accumulators, every word w of 32 bits: a += w, b += a, c += b, d += c, all mod 2^64. So n words
appended to a state shift it by a fixed matrix and add their own sum. `Words` is (a, b, c, d).

Source: OpenZFS module/zcommon/zfs_fletcher.c.
"""

from __future__ import annotations

from zkeep.format.records import Words

ZERO: Words = (0, 0, 0, 0)
_MASK = (1 << 64) - 1


def shift(state: Words, nbytes: int) -> Words:
    """The state after `nbytes` zero bytes; a multiple of 4."""
    a, b, c, d = state
    n = nbytes >> 2
    t2 = n * (n + 1) >> 1
    t3 = n * (n + 1) * (n + 2) // 6
    return a, b + n * a & _MASK, c + n * b + t2 * a & _MASK, d + n * c + t2 * b + t3 * a & _MASK


def combine(first: Words, second: Words, second_bytes: int) -> Words:
    """The sum over A then B, from the sum over A, the sum over B alone and B's length."""
    a, b, c, d = shift(first, second_bytes)
    e, f, g, h = second
    return a + e & _MASK, b + f & _MASK, c + g & _MASK, d + h & _MASK


def fletcher4(buffer: bytes | bytearray | memoryview, state: Words = ZERO, swap: bool = False) -> Words:
    """Add a buffer, whose length is a multiple of 4, to a running sum.

    `swap`: its words are in the byte order opposite to this machine's.
    """
    from zkeep.format import kernel

    return kernel.fletcher4(buffer, state, swap)
