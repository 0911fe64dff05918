"""How an operation says that it fails."""

from __future__ import annotations

import os
from typing import NoReturn


class CallError(OSError):
    """A system call fails with this errno. Any other OSError is one of the pool's own files."""


def fail(number: int) -> NoReturn:
    """Raise CallError with an errno."""
    raise CallError(number, os.strerror(number))
