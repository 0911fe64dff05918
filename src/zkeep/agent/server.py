"""The agent: holds wrapping keys in memory, for its own user, until they are unloaded or their time is up.

It is a process of its own with a unix socket, as ssh-agent is. It writes nothing to disk and prints nothing; keys reach
it through the socket, never as arguments; core dumps and other processes' looks into its memory are switched off where
the system can. It ends when it holds no key any more.

    request   {"do": "load", "pool": 1, "root": 2, "seconds": 60}\n  32 bytes of the key
    answer    {}\n
    request   {"do": "keys"}\n
    answer    {"keys": 2}\n  2 x 32 bytes

Key bytes are never in the JSON: they are only ever in fixed buffers, which are overwritten.

    python -m zkeep.agent.server SOCKET
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from zkeep.agent.connections import Answer, Connections
from zkeep.agent.listener import Listener
from zkeep.agent.memory import KEY, KeyMemory, keep_secret

EMPTY_FOR = 10.0
"Seconds that an agent waits for its first key."
LONGEST_LIFETIME = 100 * 366 * 86_400
"Seconds. More is as good as no lifetime, and clocks cannot count it."
NEWLINE = 0x0A
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Seconds on a clock that also counts while the machine sleeps."""
    return time.clock_gettime(_CLOCK)


@dataclass(slots=True)
class LoadedKey:
    """A wrapping key, for the roots of encryption of one pool."""

    pool: int
    root: int
    "The number of the dataset that is the root."
    slot: int
    "Where the key lies in the agent's KeyMemory."
    until: float | None = None
    "When it is forgotten, on the clock of now()."


class Agent:
    """Holds the keys and answers requests. Requests and answers are JSON objects."""

    def __init__(self) -> None:
        self.entries: list[LoadedKey] = []
        self._memory = KeyMemory()
        self._empty_until = now() + EMPTY_FOR

    def answer(self, request: dict[str, Any], key: memoryview | None = None) -> dict[str, Any]:
        """Answer a request. `key`: the bytes that followed it."""
        self.forget_the_old()
        match request:
            case {"do": "load", "pool": int(pool), "root": int(root)} if key is not None:
                return self._load(pool, root, key, request.get("seconds"))
            case {"do": "unload", "pool": int(pool), "root": int(root)}:
                return self._unload(pool, root)
            case {"do": "move", "pool": int(pool), "root": int(root), "to": int(to)}:
                return self._move(pool, root, to)
            case {"do": "roots", "pool": int(pool)}:
                return {"roots": sorted({entry.root for entry in self.entries if entry.pool == pool})}
            case {"do": "keys"}:
                return {"keys": len(self.entries)}
        return {"error": "the agent does not know this request"}

    def keys(self) -> list[memoryview]:
        """Views of all keys, not copies."""
        return [self._memory[entry.slot] for entry in self.entries]

    def _load(self, pool: int, root: int, key: memoryview, seconds: object) -> dict[str, Any]:
        # Not a bool, which is an int to Python, and not NaN, which lies in no range.
        is_number = (
            isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds <= LONGEST_LIFETIME
        )
        if seconds is not None and not is_number:
            return {"error": f"a lifetime is from 0 to {LONGEST_LIFETIME} seconds"}
        slot = self._memory.put(key)
        if slot is None:
            return {"error": "the agent holds as many keys as it can"}
        # Only now the old key goes: where there is no room for the new one, it stays.
        self._unload(pool, root)
        until = now() + seconds if isinstance(seconds, int | float) else None
        self.entries.append(LoadedKey(pool, root, slot, until))
        self._empty_until = 0.0
        return {}

    def _unload(self, pool: int, root: int) -> dict[str, Any]:
        """Forget the key of a root. `also` in the answer: the other roots for which the same key was loaded."""
        gone = [entry for entry in self.entries if (entry.pool, entry.root) == (pool, root)]
        known = [self._memory[entry.slot] for entry in gone]
        also = [[e.pool, e.root] for e in self.entries if e not in gone and self._memory[e.slot] in known]
        return {"found": self._drop(gone), "also": also}

    def _move(self, pool: int, root: int, to: int) -> dict[str, Any]:
        """Let a key be another root's, until the same time."""
        moved = [entry for entry in self.entries if (entry.pool, entry.root) == (pool, root)]
        if moved:
            self._unload(pool, to)
        for entry in moved:
            entry.root = to
        return {"found": bool(moved)}

    def forget_the_old(self) -> None:
        """Drop the keys whose time is up."""
        at = now()
        self._drop([entry for entry in self.entries if entry.until is not None and entry.until <= at])

    def _drop(self, gone: list[LoadedKey]) -> bool:
        for entry in gone:
            self._memory.drop(entry.slot)
            self.entries.remove(entry)
        return bool(gone)

    def next_end(self) -> float:
        """Seconds until the next lifetime ends, or until the wait for the first key ends."""
        ends = [entry.until for entry in self.entries if entry.until is not None]
        if not self.entries and not self.is_done():
            ends = [self._empty_until]
        return min(ends, default=math.inf) - now()

    def is_done(self) -> bool:
        """Whether the agent may end: it holds no key any more, or got none in time."""
        return not self.entries and now() >= self._empty_until


def answered(agent: Agent, received: memoryview) -> Answer | None:
    """The answer to a request as received so far; None: it is not complete."""
    # | {"do": "load", ...}\n | 32 bytes of key |       incomplete until the key is there, too
    end = next((at for at, byte in enumerate(received) if byte == NEWLINE), None)
    if end is None:
        return None
    request = _parsed(bytes(received[:end]))
    behind = received[end + 1 :]
    key = behind[:KEY] if request.get("do") == "load" else None
    if key is not None and len(key) < KEY:
        return None
    try:
        answer = agent.answer(request, key)
    except Exception:  # whatever a client sends, the other keys stay
        answer = {"error": "the agent does not know this request"}
    keys = agent.keys() if "keys" in answer else []
    return [memoryview(json.dumps(answer).encode() + b"\n"), *keys]


def _parsed(head: bytes) -> dict[str, Any]:
    try:
        request = json.loads(head)
    except (ValueError, RecursionError):
        return {}
    return request if isinstance(request, dict) else {}


def run(path: str) -> None:
    """Serve until no key is held. Returns at once if another agent serves this path."""
    keep_secret()
    listener = Listener.at(path)
    if listener is None:
        return
    agent = Agent()
    with listener, Connections(listener.socket, partial(answered, agent)) as connections:
        while connections or not agent.is_done():
            connections.serve(agent.next_end())
            agent.forget_the_old()


if __name__ == "__main__":
    run(sys.argv[1])
