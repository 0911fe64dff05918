"""Which keys are in use: a file for each, locked by every process that works with what the key opens.

A lock ends with its process, however that ends, and is seen whatever name a dataset has now, and wherever it is shown.
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
    """Beside the agent's socket: who asks the same agent, sees the same locks."""
    return client.path().parent / "in-use"


class InUse:
    """The keys, by the guid of what they open, that this process works with until it ends or release()."""

    def __init__(self) -> None:
        self._locks: dict[int, int] = {}

    def hold(self, guid: int) -> None:
        """Nothing is done where no agent of this user's could be, either."""
        if guid in self._locks:
            return
        with suppress(OSError, Refused):
            folder = _folder()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if client.is_ours(folder.parent) and client.is_ours(folder):
                self._locks[guid] = _locked(folder / f"{guid:016x}", fcntl.LOCK_SH)

    def release(self) -> None:
        """No key is in use any more."""
        for guid, fd in self._locks.items():
            with suppress(OSError):  # the last one takes the file away
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (_folder() / f"{guid:016x}").unlink()
            os.close(fd)
        self._locks.clear()


def _locked(path: Path, mode: int) -> int:
    """A lock of the file that has this name now."""
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
    """Nobody begins to use these keys inside.

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
