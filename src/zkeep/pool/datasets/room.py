"""Room for what a client of a server makes here without sending it: holds, bookmarks, settings of snapshots.

It counts under the client's quota like what is sent (charge.py), and so is refused where a stream would be.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from zkeep.errors import Refused
from zkeep.pool.datasets.model import Dataset, Pool
from zkeep.pool.datasets.view import View

RESERVED, RESERVED_SHARE = 1 << 30, 32
"""Bytes of the disk that clients of a server cannot fill: at most 1 GiB, and 1/32 of it."""


def free_bytes(pool: Pool) -> int:
    """What this user may still write on the pool's disk."""
    disk = os.statvfs(pool.path)
    return disk.f_bavail * disk.f_frsize


def disk_is_full(pool: Pool) -> bool:
    """Whether the disk has no more than the room that is left for destroying snapshots, and compacting."""
    disk = os.statvfs(pool.path)
    return free_bytes(pool) <= min(RESERVED, disk.f_blocks * disk.f_frsize // RESERVED_SHARE)


def refuse_overdraft(pool: Pool, datasets: Iterable[Dataset], where: str) -> None:
    """Call it in a transaction, after what makes these datasets larger; the administrator is not bound.

    Raises:
        Refused: it is a client's, and there is no room for it.
    """
    if pool.scope is None:
        return
    view = View(pool)
    # Each quota once, however many datasets it is above.
    limits = {level.id: (level, limit) for dataset in datasets for level, limit in view.quotas(dataset)}
    if any(view.charged(level) + view.reserved(level) > limit for level, limit in limits.values()):
        raise Refused(f"{where}: the quota is used up")
    if disk_is_full(pool):
        raise Refused(f"{where}: out of space")
