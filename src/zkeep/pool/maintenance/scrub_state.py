"""How far a scrub is, for `zkeep pool status`; and that there is one at a time.

A scrub holds the lock `scrub`, and notes its progress in the catalog (document `scrub/running`). A request to stop is
a document, too (`scrub/cancel`), which it checks as often. Both are removed when a scrub is complete. The note of a
scrub that was killed stays; the free lock shows that it is not running.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from zkeep.clock import seconds_now
from zkeep.errors import Refused, TryAgain, ZkeepError
from zkeep.pool.datasets.lifecycle import SCRUB, SCRUB_RUNNING, scrub_runs
from zkeep.pool.datasets.model import Dataset, Pool

CANCEL = "cancel"
EVERY = 5.0
"Seconds between two notes."


class Cancelled(TryAgain):
    """This scrub was asked to stop."""


def found_damage(pool: Pool, dataset: Dataset) -> bool:
    """Whether the last complete scrub found damage in the dataset, or where it may concern any."""
    doc = pool.catalog.get(SCRUB, "") or {}
    damaged = doc.get("damaged")
    return bool(doc.get("errors")) and (damaged is None or dataset.id in damaged)


@contextmanager
def alone(pool: Pool) -> Iterator[None]:
    """Keep other scrubs away.

    Raises:
        TryAgain: one is at work.
    """
    if pool.catalog.read_only:
        yield
        return
    busy = f"cannot scrub {pool.name}: currently scrubbing; use 'zkeep pool scrub -s' to cancel scrub"
    with pool.store.lock(SCRUB, busy=busy):
        yield


def request_cancel(pool: Pool) -> None:
    """Ask the scrub of a pool to stop.

    Raises:
        Refused: there is none.
    """
    if not scrub_runs(pool):
        raise Refused(f"cannot cancel scrubbing {pool.name}: there is no active scrub")
    with pool.transaction() as t:
        t.put(SCRUB, CANCEL, {"at": seconds_now()})


@dataclass
class Notes:
    """Notes of one scrub in the catalog; in the thread that the pool belongs to."""

    pool: Pool
    started: float = field(default_factory=time.time)
    _due: float = field(default_factory=time.monotonic)

    def begin(self) -> None:
        """Remove a request to stop that was meant for an earlier scrub."""
        if not self.pool.catalog.read_only and self.pool.catalog.get(SCRUB, CANCEL):
            with self.pool.transaction() as t:
                t.delete(SCRUB, CANCEL)

    def update(self, done: int, total: int) -> None:
        """Note how far it is if it is time; a catalog that is busy, or a full disk, is no reason to stop.

        Raises:
            Cancelled: there is a request to stop.
        """
        if self.pool.catalog.read_only:
            return
        cancelled = self.pool.catalog.get(SCRUB, CANCEL) is not None
        if cancelled or time.monotonic() >= self._due:
            self._due = time.monotonic() + EVERY
            with suppress(ZkeepError, OSError), self.pool.transaction() as t:
                doc = {"started": int(self.started), "at": time.time(), "done": done, "total": total}
                t.put(SCRUB, SCRUB_RUNNING, {**doc, "pid": os.getpid()})
        if cancelled:
            raise Cancelled(f"the scrub of {self.pool.name} was cancelled")
