"""Settings of the C allocator, for memory that blocks no longer need."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from functools import cache

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"Parameters of mallopt(), as malloc.h of glibc numbers them."
LARGEST = 32 << 20
"Bytes of the largest piece that is kept; glibc allows no more. The largest block has half of it."


@cache
def keep_freed_memory() -> None:
    """Keep freed memory for the next block.

    Giving it back to the system each time, and getting it zeroed again, takes longer than to read and decrypt the
    block. Does nothing if the C library is not glibc.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, 8 * LARGEST)
        mallopt(M_TOP_PAD, LARGEST // 2)
