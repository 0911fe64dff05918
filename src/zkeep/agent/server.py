"""The agent: holds wrapping keys in memory, for its own user, until they are unloaded or their time is up.

It is a process of its own with a unix socket, as ssh-agent is. It writes nothing to disk and prints nothing; keys reach
it through the socket, never as arguments; core dumps and other processes' looks into its memory are switched off where
the system can. It ends when it holds nothing any more.

    python -m zkeep.agent.server SOCKET
"""

from __future__ import annotations

import ctypes
import json
import math
import resource
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from zkeep.agent.connections import Callers
from zkeep.agent.listener import Door

EMPTY_FOR = 10.0
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
        self._empty_until = time.monotonic() + EMPTY_FOR

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
        self._empty_until = 0.0
        return {}

    def _unload(self, pool: int, root: int) -> dict[str, Any]:
        kept = [entry for entry in self.entries if (entry.pool, entry.root) != (pool, root)]
        found = len(kept) < len(self.entries)
        self.entries = kept
        return {"found": found}

    def forget_the_old(self) -> None:
        now = time.monotonic()
        self.entries = [entry for entry in self.entries if entry.until is None or entry.until > now]

    def next_end(self) -> float:
        """Seconds until a key's time is up, or the wait for the first one."""
        ends = [entry.until for entry in self.entries if entry.until is not None]
        if not self.entries and not self.is_done():
            ends = [self._empty_until]
        return min(ends, default=math.inf) - time.monotonic()

    def is_done(self) -> bool:
        """Whether it holds nothing any more, or was given nothing in time."""
        return not self.entries and time.monotonic() >= self._empty_until


def answered(agent: Agent, line: bytes) -> bytes:
    """The line that answers one."""
    try:
        request = json.loads(line)
        answer = agent.answer(request if isinstance(request, dict) else {})
    except (ValueError, RecursionError):
        answer = agent.answer({})
    return json.dumps(answer).encode() + b"\n"


def keep_secret(*, locked: bool = True) -> None:
    """No core file, no other process's look; `locked`: no swapped pages. As far as the system does it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if locked:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mlockall(_MCL_CURRENT_AND_FUTURE)


def run(path: str) -> None:
    """Serve until nothing is held; not at all where another agent does."""
    keep_secret()
    door = Door.at(path)
    if door is None:
        return
    agent = Agent()
    with door, Callers(door.socket, partial(answered, agent)) as callers:
        while callers or not agent.is_done():
            callers.serve(agent.next_end())
            agent.forget_the_old()


if __name__ == "__main__":
    run(sys.argv[1])
