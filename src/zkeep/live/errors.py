"""How an operation says that it fails."""

from __future__ import annotations

import os
from typing import NoReturn


def fail(number: int) -> NoReturn:
    """Raise OSError with an errno."""
    raise OSError(number, os.strerror(number))
