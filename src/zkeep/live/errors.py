"""How an operation says that it fails."""

from __future__ import annotations

import errno
import os
from typing import NoReturn

from zkeep.pool.datasets.no_room import QuotaExceeded
from zkeep.tree.filesystem import NoSuchFile

FULL = (errno.ENOSPC, errno.EDQUOT)


class CallError(OSError):
    """A system call fails with this errno. Any other OSError is one of the pool's own files."""


def fail(number: int) -> NoReturn:
    """Raise CallError with an errno."""
    raise CallError(number, os.strerror(number))


def errno_of(error: Exception) -> int | None:
    """The errno for who asked; None if it is none of the call's, as are errors of the pool's own files.

    Of those, only a full disk is told.
    """
    if isinstance(error, NoSuchFile):
        return errno.ENOENT
    if isinstance(error, QuotaExceeded):
        return errno.EDQUOT
    is_told = isinstance(error, CallError) or (isinstance(error, OSError) and error.errno in FULL)
    return (error.errno or errno.EIO) if is_told and isinstance(error, OSError) else None
