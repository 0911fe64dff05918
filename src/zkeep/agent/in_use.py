"""Tracks which keys are in use: a file for each, locked by every process that works with data that the key opens.

A lock ends with its process, however that ends. It holds whatever name the dataset has, and wherever it is mounted.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from zkeep.agent import client
from zkeep.errors import Refused, TryAgain


class Busy(TryAgain):
    """A key is in use."""


def _folder() -> Path:
    """The folder of the lock files, beside the agent's socket: clients of the same agent see the same locks."""
    return client.path().parent / "in-use"


class InUse:
    """The keys that this process uses, by the guid of the master key, until it ends or calls release()."""

    def __init__(self) -> None:
        self._locks: dict[int, int] = {}

    def hold(self, guid: int) -> None:
        """Mark a key as in use. Does nothing where this user could have no agent either."""
        if guid in self._locks:
            return
        with suppress(OSError, Refused):
            folder = _folder()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if client.is_ours(folder.parent) and client.is_ours(folder):
                self._locks[guid] = _locked(folder / f"{guid:016x}", fcntl.LOCK_SH)

    def release(self) -> None:
        """Mark all keys as no longer in use."""
        for guid, fd in self._locks.items():
            with suppress(OSError):  # the last user removes the file
                # A process that gets the lock alone is the last user, and removes the file.
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (_folder() / f"{guid:016x}").unlink()
            os.close(fd)
        self._locks.clear()


def _locked(path: Path, mode: int) -> int:
    """Lock the file that has this name now: the last user may remove it between open and lock."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, mode)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), path.stat()):
                    return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


@contextmanager
def unused(guids: Iterable[int], busy: str) -> Iterator[None]:
    """Keep other processes from starting to use these keys while the block runs.

    Raises:
        Busy: with the text `busy`: a process works with one of them.
    """
    with ExitStack() as held:
        for guid in sorted(set(guids)):
            path = _folder() / f"{guid:016x}"
            if path.exists():
                try:
                    held.callback(os.close, _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB))
                except BlockingIOError:
                    raise Busy(busy) from None
        yield
