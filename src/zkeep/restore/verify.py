"""Authenticating all of a snapshot, without making anything of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zkeep.restore.opened import Opened


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
    for index in opened.numbers():
        for size, count in opened.authenticate(index):
            done.blocks += count
            done.bytes += size
            tell(done)
        done.objects += len(opened.dnodes(index))
    return done
