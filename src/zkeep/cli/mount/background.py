"""Going on in the background, once what can go wrong at the start has not."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

READY = b"r"


@contextmanager
def background(log: Path, *, stay: bool = False) -> Iterator[Callable[[], None]]:
    """Do what is inside in another process, and end when that calls what it is given; with its status if it ends first.

    After the call its standard error is the log, and it has no terminal. `stay`: in this process, and with all of it.
    """
    if stay:
        yield lambda: None
        return
    reads, writes = os.pipe()
    child = os.fork()
    if child:
        os.close(writes)
        raise SystemExit(_waited(child, reads))
    os.close(reads)
    yield lambda: _detach(log, writes)


def _waited(child: int, reads: int) -> int:
    """The status to end with: 0 once the child is ready, else what it ended with."""
    try:
        if os.read(reads, 1) == READY:
            return 0
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)  # else it would go on, unseen
        raise
    return abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _detach(log: Path, writes: int) -> None:
    os.setsid()
    os.chdir("/")
    sys.stdout.flush()
    nothing = os.open(os.devnull, os.O_RDWR)
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    for fd, to in ((0, nothing), (1, nothing), (2, log_fd)):
        os.dup2(to, fd)
    os.write(writes, READY)
    for fd in (nothing, log_fd, writes):
        os.close(fd)
