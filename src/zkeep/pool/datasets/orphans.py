"""Segments that no document names any more, and who may delete them when.

Readers (send, scrub) hold the lock `readers` shared, because they open segments as they come to them. Files go when no
one reads; what has to stay for a while is found again by compact.sweep().
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress

from zkeep.errors import TryAgain
from zkeep.pool.datasets.model import Pool
from zkeep.pool.store.port import segment_name

READERS = "readers"


def reading(pool: Pool) -> AbstractContextManager[None]:
    """While this is held, every segment that a document names stays."""
    return pool.store.lock(READERS, shared=True, wait=60.0)


def discard(pool: Pool, segment_ids: Iterable[str]) -> None:
    """Delete the files of segments that no document names any more, if nobody is reading.

    It follows a transaction that stands: what fails is a warning, and the files are found again by compact.sweep().
    """
    doomed = list(segment_ids)
    if not doomed:
        return
    with pool.afterwards("done, but its space is not given back yet"), suppress(TryAgain), pool.store.lock(READERS):
        for segment_id in doomed:
            pool.store.delete(segment_name(segment_id))
