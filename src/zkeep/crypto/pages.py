"""Keeping secrets from swap: the pages in which they lie are locked, as far as the system lets us."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def lock_pages(secret: bytes) -> None:
    """Lock the pages in which these bytes lie until the process ends; nothing happens where a limit forbids it.

    An ordinary user may mostly lock 8 MiB, of which a key takes a page or two.
    """
    with suppress(OSError, AttributeError):
        address = ctypes.cast(ctypes.c_char_p(secret), ctypes.c_void_p)
        ctypes.CDLL(None).mlock(address, ctypes.c_size_t(len(secret)))
