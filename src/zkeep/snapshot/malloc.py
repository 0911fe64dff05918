"""Settings of the C allocator, for memory that blocks no longer need."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from functools import cache

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8
"Parameters of mallopt(), as malloc.h of glibc numbers them."
LARGEST = 32 << 20
"Bytes of the largest piece that is kept; glibc allows no more. The largest block has half of it."
ARENAS = 2
"Pools of memory that threads share. Each has freed memory that the others cannot use."


@cache
def share_freed_memory() -> None:
    """Let threads use what others freed: blocks are read in one, encrypted in another and written in a third.

    Else glibc gives each thread a pool of its own. To be called before they begin. Does nothing elsewhere.
    """
    _set({M_ARENA_MAX: ARENAS})


@cache
def keep_freed_memory() -> None:
    """Keep freed memory for the next block.

    Giving it back to the system each time, and getting it zeroed again, takes longer than to read and decrypt the
    block. Does nothing if the C library is not glibc.
    """
    _set({M_MMAP_THRESHOLD: LARGEST, M_TRIM_THRESHOLD: 8 * LARGEST, M_TOP_PAD: LARGEST // 2})


def _set(values: dict[int, int]) -> None:
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in values.items():
            mallopt(parameter, value)
