"""Processes that share work: what one interpreter does for each of many small files, several do side by side."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from zkeep.errors import TryAgain

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkProcess

ENDS = {signal.SIGINT, signal.SIGTERM}
AHEAD = 2
"Portions that a process has been given: the one it works on, and the next."
Portion = TypeVar("Portion")
Work = Callable[[Portion, Callable[[Any], object]], object]


@dataclass
class _Hand:
    process: ForkProcess
    connection: Connection[Any, Any]
    waiting: int = 0
    "Portions that were given and are not done."


class Crew(Generic[Portion]):
    """Use it as a context manager. The processes are forked when the first portion is given, and end with the block.

    work(portion, tell) does a portion in one of them; what it tells, `heard` hears here. What it raises is raised here
    by give() or finish(). Whoever gives a portion must have no other thread running.
    """

    def __init__(self, work: Work[Portion], heard: Callable[[Any], object]) -> None:
        self._work = work
        self._heard = heard
        self._hands: list[_Hand] = []

    def __enter__(self) -> Crew[Portion]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for hand in self._hands:
            hand.connection.close()
            if kind is not None:
                hand.process.terminate()
        for hand in self._hands:
            hand.process.join()

    def give(self, portion: Portion) -> None:
        """Give it to whoever has the least to do; waits while all have enough."""
        if not self._hands:
            self._fork()
        while all(hand.waiting >= AHEAD for hand in self._hands):
            self._listen()
        hand = min(self._hands, key=lambda hand: hand.waiting)
        hand.waiting += 1
        try:
            hand.connection.send(portion)
        except OSError:
            self._listen()  # it may have said why it ended
            raise _lost() from None

    def finish(self) -> None:
        """Wait until all is done."""
        while any(hand.waiting for hand in self._hands):
            self._listen()

    def _fork(self) -> None:
        from multiprocessing import get_context

        context = get_context("fork")
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)  # they come when a process knows what to do then
        try:
            for _ in range(os.cpu_count() or 1):
                mine, its = context.Pipe()
                ours = [*(hand.connection for hand in self._hands), mine]
                process = context.Process(target=_serve, args=(self._work, its, ours), daemon=True)
                process.start()
                its.close()
                self._hands.append(_Hand(process, mine))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _listen(self) -> None:
        from multiprocessing.connection import wait

        heard = wait([hand.connection for hand in self._hands if hand.waiting])
        for hand in self._hands:
            if hand.connection in heard:
                self._hear(hand)

    def _hear(self, hand: _Hand) -> None:
        try:
            told = hand.connection.recv()
        except (EOFError, OSError):
            raise _lost() from None
        if isinstance(told, BaseException):
            raise told
        if told is None:
            hand.waiting -= 1
        else:
            self._heard(told)


def _lost() -> TryAgain:
    return TryAgain("a process that shared the work has ended before it was done")


def _serve(work: Work[Any], its: Connection[Any, Any], ours: list[Connection[Any, Any]]) -> None:
    """Do portions until there are no more. It ends, too, when the process that gives them has: nobody else holds it.

    A terminal's interrupt goes to all processes. It is left to the one that gave the work, which then ends the others.
    """
    for connection in ours:
        connection.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ended)
    with suppress(KeyboardInterrupt):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
        with suppress(EOFError, ConnectionError):
            _portions(work, its)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _ended(number: int, frame: FrameType | None) -> None:
    """Once is enough: what is begun is cleared away on the way out."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _portions(work: Work[Any], its: Connection[Any, Any]) -> None:
    """A thread takes what is given at any time: nobody waits to give while this process waits to tell."""
    given: SimpleQueue[Any] = SimpleQueue()
    Thread(target=_take, args=(its, given.put), daemon=True).start()
    while (portion := given.get()) is not None:
        try:
            work(portion, its.send)
        except Exception as error:
            its.send(error)
            return
        its.send(None)


def _take(its: Connection[Any, Any], put: Callable[[Any], None]) -> None:
    with suppress(EOFError, OSError):
        while True:
            put(its.recv())
    put(None)
