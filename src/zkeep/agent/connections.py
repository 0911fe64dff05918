"""The connections to the agent: all are served side by side, so that none waits for one that says nothing.

What is received may hold a key. It lies in one buffer of fixed size for each connection, which is never copied, and
overwritten as soon as it was answered or the connection ends.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType

from zkeep.agent.memory import wipe

MAX_REQUEST = 4096
"Bytes of a request; the longest one with its key takes less than a tenth."
MOST = 64
"Callers at a time; one more takes the place of who has been there longest."
PATIENCE = 5.0
"Seconds that a caller may take to send its line and to read the answer."
LONGEST = 60.0
"Seconds of one wait: epoll counts milliseconds in 31 bits, and none of those in which the machine sleeps."

Answer = list[memoryview]
"Pieces of an answer, sent one after another from where they lie."


@dataclass(slots=True, eq=False)
class Caller:
    """A connection: first a request comes, then the answer goes."""

    socket: socket.socket
    until: float
    buffer: bytearray = field(default_factory=lambda: bytearray(MAX_REQUEST), repr=False)
    filled: int = 0
    answer: Answer = field(default_factory=list, repr=False)


class Callers:
    """`answer` makes an answer of a request, or None as long as the request is not complete."""

    def __init__(self, door: socket.socket, answer: Callable[[memoryview], Answer | None]) -> None:
        self._door = door
        self._answer = answer
        self._callers: list[Caller] = []
        self._selector = selectors.DefaultSelector()
        door.setblocking(False)
        self._selector.register(door, selectors.EVENT_READ)

    def __len__(self) -> int:
        return len(self._callers)

    def __enter__(self) -> Callers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for caller in list(self._callers):
            self._drop(caller)
        self._selector.close()

    def serve(self, wait: float) -> None:
        """Waits until something comes, `wait` seconds at most, and does what can be done at once."""
        first = min((caller.until - time.monotonic() for caller in self._callers), default=LONGEST)
        ready = [key.data for key, _ in self._selector.select(max(min(wait, first, LONGEST), 0))]
        for caller in filter(None, ready):
            self._attend(caller)
        self._drop_the_late()
        if None in ready:
            self._welcome()

    def _welcome(self) -> None:
        if len(self._callers) >= MOST:
            self._drop(self._callers[0])
        with suppress(OSError):
            client = self._door.accept()[0]
            if not is_own_user(client):
                client.close()
                return
            client.setblocking(False)
            caller = Caller(client, time.monotonic() + PATIENCE)
            self._selector.register(client, selectors.EVENT_READ, caller)
            self._callers.append(caller)

    def _attend(self, caller: Caller) -> None:
        try:
            ended = self._give(caller) if caller.answer else self._take(caller)
        except BlockingIOError:
            return
        except OSError:
            ended = True
        if ended:
            self._drop(caller)

    def _take(self, caller: Caller) -> bool:
        """Whether there is nothing more to do for it; so with the next."""
        view = memoryview(caller.buffer)
        count = caller.socket.recv_into(view[caller.filled :])
        caller.filled += count
        answer = self._answer(view[: caller.filled]) if count else []
        if answer is None:
            return caller.filled == MAX_REQUEST
        wipe(caller.buffer)
        caller.answer = answer
        self._selector.modify(caller.socket, selectors.EVENT_WRITE, caller)
        return self._give(caller)

    def _give(self, caller: Caller) -> bool:
        while caller.answer:
            sent = caller.socket.send(caller.answer[0])
            caller.answer[0] = caller.answer[0][sent:]
            if not caller.answer[0]:
                caller.answer.pop(0)
        return True

    def _drop_the_late(self) -> None:
        now = time.monotonic()
        for caller in [caller for caller in self._callers if caller.until <= now]:
            self._drop(caller)

    def _drop(self, caller: Caller) -> None:
        wipe(caller.buffer)
        self._callers.remove(caller)
        self._selector.unregister(caller.socket)
        caller.socket.close()


def is_own_user(client: socket.socket) -> bool:
    """Whether the process at the other end is of our user (or root)."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # the folder's and the socket's modes keep others away
    raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", raw)
    return user in (os.geteuid(), 0)
