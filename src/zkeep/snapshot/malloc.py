"""What the allocator does with memory that blocks no longer need."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from functools import cache

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"As malloc.h of glibc numbers them."
LARGEST = 32 << 20
"Bytes of the largest that is kept; glibc takes no more. A block has half of it."


@cache
def keep_freed_memory() -> None:
    """Let what is freed be there for the next block. To give it back each time, and have it cleared anew, takes longer
    than to read and open the block. Does nothing where the C library is another one.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, 8 * LARGEST)
        mallopt(M_TOP_PAD, LARGEST // 2)
