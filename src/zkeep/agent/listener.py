"""The listening socket of the agent: created and removed without ever removing that of another agent."""

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
    """Whether a process listens there. A full queue, or a socket that we may not connect to, counts as well."""
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            client.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True
    return True


class Listener:
    """A listening socket at a path. Use it as a context manager, so that the path is removed in the end."""

    def __init__(self, path: str, listening: socket.socket) -> None:
        self.path = path
        self.socket = listening
        self._own = _identity(path)

    @classmethod
    def at(cls, path: str) -> Listener | None:
        """Listen at a path; None if another agent listens there already."""
        with _alone(path):
            return None if accepts(path) else cls(path, _listening(path))

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self.socket, suppress(OSError), _alone(self.path):
            if _identity(self.path) == self._own:
                os.unlink(self.path)


@contextmanager
def _alone(path: str) -> Iterator[None]:
    """Lock the folder: only one agent at a time may look at a path in it, and change what is there."""
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _listening(path: str) -> socket.socket:
    """Make a socket that appears under its name only once it listens, so that clients can always connect."""
    listener = socket.socket(socket.AF_UNIX)
    made = f"{path}~"
    with suppress(FileNotFoundError):
        os.unlink(made)
    before = os.umask(0o177)
    listener.bind(made)
    os.umask(before)
    listener.listen(QUEUE)
    # rename() puts a socket that listens already in the place of a dead one.
    os.rename(made, path)
    return listener


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino
