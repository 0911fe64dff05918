"""Authenticating all of a snapshot, without making anything of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from zkeep.restore.opened import Opened

WINDOW = 16
"Portions that are being authenticated or wait for it, while what comes next is found out."


@dataclass
class Verified:
    """What was found authentic."""

    objects: int = 0
    blocks: int = 0
    bytes: int = 0


def verify(opened: Opened, tell: Callable[[Verified], object] = lambda done: None) -> Verified:
    """Hold every object and every block of an opened snapshot against the keys.

    Raises:
        Forgery: the first that fails.
        Damaged: it fails because the pool's own data is not what was stored.
    """
    done = Verified()
    for size, count in _abreast(opened, done):
        done.blocks += count
        done.bytes += size
        tell(done)
    return done


def _abreast(opened: Opened, done: Verified) -> Iterator[tuple[int, int]]:
    """Bytes and blocks of portions that are authentic, in the order in which they lie."""
    window: deque[tuple[Future[None], int, int]] = deque()
    for index in opened.numbers():
        for kind, leaves in opened.portions(index):
            under_way = opened.crew.submit(opened.check, kind, leaves)
            window.append((under_way, int(leaves["size"].sum(dtype="u8")), len(leaves)))
            if len(window) > WINDOW:
                yield _finished(*window.popleft())
        done.objects += len(opened.dnodes(index))
    while window:
        yield _finished(*window.popleft())


def _finished(under_way: Future[None], size: int, count: int) -> tuple[int, int]:
    under_way.result()
    return size, count
