"""A pool of worker processes: Python work on many small files runs on all cores."""

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

ENDS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
AHEAD = 2
"Portions that a worker holds at a time: the one it works on, and the next."
Portion = TypeVar("Portion")
Work = Callable[[Portion, Callable[[Any], object]], object]


@dataclass
class _Worker:
    process: ForkProcess
    connection: Connection[Any, Any]
    pending: int = 0
    "Portions that were submitted and are not done."


class WorkerPool(Generic[Portion]):
    """Use it as a context manager. Workers are forked at the first submit(), and end with the block.

    A worker calls work(portion, report). Each value that it reports is passed to `on_result` in this process, during
    submit() or finish(), which also raise what work() raised. As workers are forked, the process that submits must have
    no other thread running.
    """

    def __init__(self, work: Work[Portion], on_result: Callable[[Any], object]) -> None:
        self._work = work
        self._on_result = on_result
        self._workers: list[_Worker] = []

    def __enter__(self) -> WorkerPool[Portion]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for worker in self._workers:
            worker.connection.close()
            if kind is not None:
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join()

    def submit(self, portion: Portion) -> None:
        """Send a portion to the worker with the least to do; waits while all have enough."""
        if not self._workers:
            self._fork()
        # Each worker has its next portion before it is done with one; more would only take memory.
        while all(worker.pending >= AHEAD for worker in self._workers):
            self._wait_for_results()
        worker = min(self._workers, key=lambda worker: worker.pending)
        worker.pending += 1
        try:
            worker.connection.send(portion)
        except OSError:
            self._wait_for_results()  # its last message may say why it ended
            raise _lost() from None

    def finish(self) -> None:
        """Wait until all portions are done."""
        while any(worker.pending for worker in self._workers):
            self._wait_for_results()

    def _fork(self) -> None:
        from multiprocessing import get_context

        # Workers are forks, so what was opened and cached here is theirs, too, without being copied or sent.
        context = get_context("fork")
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)  # delivered once a worker has its handlers
        try:
            for _ in range(os.cpu_count() or 1):
                # A worker inherits our ends of the pipes of those before it. It closes them: else they would stay open
                # if we died, and no worker would see that.
                parent_end, work_end = context.Pipe()
                parent_ends = [*(worker.connection for worker in self._workers), parent_end]
                process = context.Process(target=_run_worker, args=(self._work, work_end, parent_ends), daemon=True)
                process.start()
                work_end.close()
                self._workers.append(_Worker(process, parent_end))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _wait_for_results(self) -> None:
        from multiprocessing.connection import wait

        ready = wait([worker.connection for worker in self._workers if worker.pending])
        for worker in self._workers:
            if worker.connection in ready:
                self._receive(worker)

    def _receive(self, worker: _Worker) -> None:
        try:
            result = worker.connection.recv()
        except (EOFError, OSError):
            raise _lost() from None
        # A worker sends values that it reports, then None when a portion is done, or what work() raised.
        if isinstance(result, BaseException):
            raise result
        if result is None:
            worker.pending -= 1
        else:
            self._on_result(result)


def _lost() -> TryAgain:
    return TryAgain("a process that shared the work has ended before it was done")


def _run_worker(work: Work[Any], work_end: Connection[Any, Any], parent_ends: list[Connection[Any, Any]]) -> None:
    """Work until the connection closes. Only the parent holds its other end, so a worker never outlives the parent.

    A terminal sends SIGINT and SIGHUP to all processes. Workers ignore them: the parent handles them, and then
    terminates the workers.
    """
    for connection in parent_ends:
        connection.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _on_sigterm)
    with suppress(KeyboardInterrupt):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
        with suppress(EOFError, ConnectionError):
            _work_off(work, work_end)
        _ignore_sigterm()


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    """Unwind the stack, so that unfinished files are removed; a second SIGTERM must not interrupt that."""
    _ignore_sigterm()
    raise KeyboardInterrupt


def _ignore_sigterm() -> None:
    """Ignore SIGTERM from here on. It is blocked first: one that arrived is handled before Python finds it ignored."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _work_off(work: Work[Any], work_end: Connection[Any, Any]) -> None:
    """Do the portions that arrive.

    A thread reads them at any time into a queue. Without it, parent and worker could block each other, both writing to
    full pipes.
    """
    queue: SimpleQueue[Any] = SimpleQueue()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)  # signals are for the main thread
    Thread(target=_fill_queue, args=(work_end, queue.put), daemon=True).start()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    while (portion := queue.get()) is not None:
        try:
            work(portion, work_end.send)
        except Exception as error:
            work_end.send(error)
            return
        work_end.send(None)


def _fill_queue(work_end: Connection[Any, Any], put: Callable[[Any], None]) -> None:
    with suppress(EOFError, OSError):
        while True:
            put(work_end.recv())
    put(None)
