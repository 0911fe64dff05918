"""The connections to the agent: all are served side by side, so that none waits for one that sends nothing.

A request may hold a key. It lies in one buffer of fixed size for each connection, which is never copied, and is
overwritten as soon as the request was answered or the connection ends.
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
"Connections at a time; one more replaces the oldest."
PATIENCE = 5.0
"Seconds that a client may take to send its request and to read the answer."
LONGEST = 60.0
"Seconds of one wait: epoll counts milliseconds in 31 bits, and not while the machine sleeps."

Answer = list[memoryview]
"Pieces of an answer, sent one after another from where they lie."


@dataclass(slots=True, eq=False)
class Connection:
    """A connection: first the request is received, then the answer is sent."""

    socket: socket.socket
    until: float
    buffer: bytearray = field(default_factory=lambda: bytearray(MAX_REQUEST), repr=False)
    filled: int = 0
    answer: Answer = field(default_factory=list, repr=False)


class Connections:
    """Serves all connections. `answer` returns the answer to a request, or None while the request is incomplete."""

    def __init__(self, listener: socket.socket, answer: Callable[[memoryview], Answer | None]) -> None:
        self._listener = listener
        self._answer = answer
        self._connections: list[Connection] = []
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)

    def __len__(self) -> int:
        return len(self._connections)

    def __enter__(self) -> Connections:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for connection in list(self._connections):
            self._drop(connection)
        self._selector.close()

    def serve(self, wait: float) -> None:
        """Wait until something arrives, `wait` seconds at most, and do what can be done without waiting."""
        # Wait no longer than until the first client's time is up.
        first = min((connection.until - time.monotonic() for connection in self._connections), default=LONGEST)
        ready = [key.data for key, _ in self._selector.select(max(min(wait, first, LONGEST), 0))]
        for connection in filter(None, ready):
            self._serve_one(connection)
        now = time.monotonic()
        for late in [each for each in self._connections if each.until <= now]:
            self._drop(late)
        if None in ready:
            self._accept()

    def _accept(self) -> None:
        if len(self._connections) >= MOST:
            self._drop(self._connections[0])
        with suppress(OSError):
            client = self._listener.accept()[0]
            if not is_own_user(client):
                client.close()
                return
            client.setblocking(False)
            connection = Connection(client, time.monotonic() + PATIENCE)
            self._selector.register(client, selectors.EVENT_READ, connection)
            self._connections.append(connection)

    def _serve_one(self, connection: Connection) -> None:
        try:
            ended = self._send(connection) if connection.answer else self._receive(connection)
        except BlockingIOError:
            return
        except OSError:
            ended = True
        if ended:
            self._drop(connection)

    def _receive(self, connection: Connection) -> bool:
        """Receive a part of the request. Returns whether the connection is done, as _send() does."""
        view = memoryview(connection.buffer)
        count = connection.socket.recv_into(view[connection.filled :])
        connection.filled += count
        answer = self._answer(view[: connection.filled]) if count else []
        if answer is None:
            return connection.filled == MAX_REQUEST
        # The key has been copied into its slot: nothing of the request is needed any more.
        wipe(connection.buffer)
        connection.answer = answer
        self._selector.modify(connection.socket, selectors.EVENT_WRITE, connection)
        return self._send(connection)

    def _send(self, connection: Connection) -> bool:
        while connection.answer:
            sent = connection.socket.send(connection.answer[0])
            connection.answer[0] = connection.answer[0][sent:]
            if not connection.answer[0]:
                connection.answer.pop(0)
        return True

    def _drop(self, connection: Connection) -> None:
        wipe(connection.buffer)
        self._connections.remove(connection)
        self._selector.unregister(connection.socket)
        connection.socket.close()


def is_own_user(client: socket.socket) -> bool:
    """Whether the process at the other end is of our user (or root)."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # the folder's and the socket's modes keep others away
    raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", raw)
    return user in (os.geteuid(), 0)
