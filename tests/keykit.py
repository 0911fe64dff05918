"""Key files as people keep them: files of tests/data can be read by all, and zkeep warns of that."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="zkeep-keys-"))
    atexit.register(shutil.rmtree, folder, True)
    return folder


def private() -> Iterator[None]:
    """A fixture: what is written belongs to its owner alone."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def write(path: Path, content: bytes) -> str:
    """Write a key file that only its owner can read; returns its keylocation."""
    path.touch(0o600)
    path.write_bytes(content)
    return f"file://{path}"


def location(key: Path) -> str:
    """The keylocation of a copy that only its owner can read."""
    return write(_folder() / key.name, key.read_bytes())
