"""The agent's socket: it comes to its place, and leaves it, without ever taking away somebody else's."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

QUEUE = 128
"Connections that wait to be accepted."


def accepts(path: str) -> bool:
    """Whether somebody listens there; a full queue, or one that we may not join, is somebody's, too."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.setblocking(False)
        try:
            caller.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True
    return True


class Door:
    """A listening socket at a path; to be left in the end, so that its name goes."""

    def __init__(self, path: str, listening: socket.socket) -> None:
        self.path = path
        self.socket = listening
        self._own = _identity(path)

    @classmethod
    def at(cls, path: str) -> Door | None:
        """None where somebody accepts connections already."""
        with _alone(path):
            return None if accepts(path) else cls(path, _listening(path))

    def __enter__(self) -> Door:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self.socket, suppress(OSError), _alone(self.path):
            if _identity(self.path) == self._own:
                os.unlink(self.path)


@contextmanager
def _alone(path: str) -> Iterator[None]:
    """Of all agents, only one at a time looks at what is at a place of this folder, and changes it."""
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _listening(path: str) -> socket.socket:
    """A socket that has its name when it listens, not before: who sees it may call."""
    door = socket.socket(socket.AF_UNIX)
    made = f"{path}~"
    with suppress(FileNotFoundError):
        os.unlink(made)
    before = os.umask(0o177)
    door.bind(made)
    os.umask(before)
    door.listen(QUEUE)
    os.rename(made, path)
    return door


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino
