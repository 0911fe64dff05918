"""Memory for keys: pages that are locked and excluded from core files, with bytes that are overwritten after use.

Python copies `bytes` and `str` as it likes and never clears them. So a key in the agent goes from the socket into a
buffer of fixed size, from there into its slot here, and from the slot straight to the socket. None of these is copied,
and all are overwritten.
"""

from __future__ import annotations

import ctypes
import mmap
import resource
from contextlib import suppress
from pathlib import Path

KEY = 32
"Bytes of a wrapping key."
MOST = 4096
"How many keys can be held at a time."
_PR_SET_DUMPABLE = 4
_MCL_CURRENT_AND_FUTURE, _MCL_ONFAULT = 3, 4
_CAP_IPC_LOCK = 14


def keep_secret(*, locked: bool = True) -> None:
    """Switch off core files and access by other processes, and with `locked` swapping, as far as the system can.

    Each process calls it before it is given a key.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if locked:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mlockall(_MCL_CURRENT_AND_FUTURE)


def lock_as_used() -> bool:
    """Lock every page once it is used, from now on, and tell whether that is so: then nothing here is swapped out.

    Where the system sets a limit to locked memory, nothing is locked: what is allocated beyond it would fail.
    """
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY and not _may_lock_without_limit():
        return False
    with suppress(OSError, AttributeError):
        return bool(ctypes.CDLL(None).mlockall(_MCL_CURRENT_AND_FUTURE | _MCL_ONFAULT) == 0)
    return False


def _may_lock_without_limit() -> bool:
    """Whether this process has CAP_IPC_LOCK, as root's mostly have."""
    with suppress(OSError, ValueError):
        lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
        effective = next(line.split()[1] for line in lines if line.startswith("CapEff:"))
        return bool(int(effective, 16) >> _CAP_IPC_LOCK & 1)
    return False


def wipe(secret: bytearray | memoryview) -> None:
    """Overwrite bytes in place."""
    secret[:] = bytes(len(secret))


class KeyMemory:
    """Slots of 32 bytes each, in anonymous pages that exist once written to."""

    def __init__(self, slots: int = MOST) -> None:
        self._pages = mmap.mmap(-1, slots * KEY, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for advice in ("MADV_DONTDUMP", "MADV_DONTFORK"):
            with suppress(AttributeError, OSError):
                self._pages.madvise(getattr(mmap, advice))
        self._view = memoryview(self._pages)
        self._free = list(range(slots - 1, -1, -1))

    def put(self, key: memoryview) -> int | None:
        """Copy a key in; returns its slot, or None if there is no room."""
        if not self._free:
            return None
        slot = self._free.pop()
        view = self[slot]
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).mlock(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(view))), KEY)
        # Locked first, then written: the key is never in a page that can be swapped out.
        view[:] = key
        return slot

    def __getitem__(self, slot: int) -> memoryview:
        """The key in a slot, as it lies there: it becomes zeros when the slot is wiped."""
        return self._view[slot * KEY : (slot + 1) * KEY]

    def drop(self, slot: int) -> None:
        """Overwrite a key."""
        wipe(self[slot])
        self._free.append(slot)
