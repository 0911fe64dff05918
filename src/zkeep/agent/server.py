"""The agent: holds wrapping keys in memory, for its own user, until they are unloaded or their time is up.

It is a process of its own with a unix socket, as ssh-agent is. It writes nothing to disk and prints nothing; keys reach
it through the socket, never as arguments; core dumps and other processes' looks into its memory are switched off where
the system can. It ends when it holds nothing any more.

    python -m zkeep.agent.server SOCKET
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import selectors
import socket
import struct
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

MAX_LINE = 65_536
"Bytes of a request; the longest name and a key take less than a tenth."
PATIENCE = 5.0
"Seconds that a client may take to send its line."
EMPTY_FOR = 10.0
LONGEST = 86_400.0
"Seconds that it waits at a time: epoll counts milliseconds in 31 bits."
"Seconds that an agent waits for its first key."

_PR_SET_DUMPABLE = 4
_MCL_CURRENT_AND_FUTURE = 3


@dataclass(slots=True)
class Entry:
    """A wrapping key, for the roots of encryption of one pool."""

    pool: int
    root: int
    "The number of the dataset that is the root."
    key: bytes = field(repr=False)
    until: float | None = None
    "When it is forgotten, on the monotonic clock."


class Agent:
    """What is held, and what is answered. Requests and answers are JSON objects."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        self.forget_the_old()
        match request:
            case {"do": "load", "pool": int(pool), "root": int(root), "key": str(key)}:
                return self._load(pool, root, bytes.fromhex(key), request.get("seconds"))
            case {"do": "unload", "pool": int(pool), "root": int(root)}:
                return self._unload(pool, root)
            case {"do": "roots", "pool": int(pool)}:
                return {"roots": sorted({entry.root for entry in self.entries if entry.pool == pool})}
            case {"do": "keys"}:
                return {"keys": [entry.key.hex() for entry in self.entries]}
        return {"error": "the agent does not know this request"}

    def _load(self, pool: int, root: int, key: bytes, seconds: float | None) -> dict[str, Any]:
        self._unload(pool, root)
        until = time.monotonic() + seconds if isinstance(seconds, int | float) else None
        self.entries.append(Entry(pool, root, key, until))
        return {}

    def _unload(self, pool: int, root: int) -> dict[str, Any]:
        kept = [entry for entry in self.entries if (entry.pool, entry.root) != (pool, root)]
        found = len(kept) < len(self.entries)
        self.entries = kept
        return {"found": found}

    def forget_the_old(self) -> None:
        now = time.monotonic()
        self.entries = [entry for entry in self.entries if entry.until is None or entry.until > now]

    def next_end(self) -> float | None:
        """Seconds until the next key's time is up."""
        ends = [entry.until for entry in self.entries if entry.until is not None]
        return max(min(ends) - time.monotonic(), 0.0) if ends else None


def is_own_user(client: socket.socket) -> bool:
    """Whether the process at the other end is of our user (or root)."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # the folder's and the socket's modes keep others away
    raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", raw)
    return user in (os.geteuid(), 0)


def read_line(client: socket.socket) -> bytes:
    """Up to the end of the line; empty if it is too long or does not come."""
    client.settimeout(PATIENCE)
    line = b""
    while not line.endswith(b"\n"):
        piece = client.recv(4096)
        if not piece or len(line) > MAX_LINE:
            return b""
        line += piece
    return line


def serve_one(agent: Agent, client: socket.socket) -> None:
    with client, suppress(OSError, ValueError, RecursionError):
        if not is_own_user(client):
            return
        request = json.loads(read_line(client))
        if isinstance(request, dict):
            client.sendall(json.dumps(agent.answer(request)).encode() + b"\n")


def keep_secret(*, locked: bool = True) -> None:
    """No core file, no other process's look; `locked`: no swapped pages. As far as the system does it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if locked:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mlockall(_MCL_CURRENT_AND_FUTURE)


def _opened(path: str) -> socket.socket:
    """A socket that has its name when it listens, not before: who sees it may call."""
    door = socket.socket(socket.AF_UNIX)
    made = f"{path}~"
    with suppress(FileNotFoundError):
        os.unlink(made)
    before = os.umask(0o177)
    door.bind(made)
    os.umask(before)
    door.listen(16)
    os.rename(made, path)
    return door


def run(path: str) -> None:
    """Serve until nothing is held."""
    keep_secret()
    door = _opened(path)
    agent = Agent()
    wait: float | None = EMPTY_FOR
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(door, selectors.EVENT_READ)
            while True:
                if selector.select(wait):
                    serve_one(agent, door.accept()[0])
                agent.forget_the_old()
                if not agent.entries:
                    return
                wait = agent.next_end()
                wait = min(wait, LONGEST) if wait is not None else None
    finally:
        with suppress(OSError):
            os.unlink(path)


if __name__ == "__main__":
    run(sys.argv[1])
