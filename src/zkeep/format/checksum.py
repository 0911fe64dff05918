"""The fletcher-4 sum of a buffer. numpy and the compiled kernel are loaded with the first call."""

from __future__ import annotations

from zkeep.format.fletcher import ZERO
from zkeep.format.records import Words


def fletcher4(buffer: bytes | bytearray | memoryview, state: Words = ZERO, swap: bool = False) -> Words:
    """Add a buffer, whose length is a multiple of 4, to a running sum.

    `swap`: its words are in the byte order opposite to this machine's.
    """
    from zkeep.format import kernel

    return kernel.fletcher4(buffer, state, swap)
