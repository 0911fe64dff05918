"""Orphans: segments that no document names any more, and when they may be deleted.

Readers (send, scrub) hold the lock `readers` shared, because they open segments only when they reach them. Files are
deleted when nothing reads; those that have to wait are found again by compact.sweep().
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


def undo(pool: Pool, kind: str, key: str, segment_ids: Iterable[str]) -> None:
    """Delete the segments of unfinished work and the document that registers it, unless its transaction is committed.

    The transaction that finishes the work deletes that document with what names the segments. An interruption can come
    at any moment behind the commit, so the exception that led here tells nothing: what the journal says counts.
    """
    with pool.transaction() as t:
        if t.get(kind, key) is None:
            return
    for segment_id in segment_ids:
        pool.store.delete(segment_name(segment_id))
    with pool.transaction() as t:
        t.delete(kind, key)


def discard(pool: Pool, segment_ids: Iterable[str]) -> None:
    """Delete the files of segments that no document names any more, if no process is reading.

    Call it after the transaction is committed: what fails is a warning, and compact.sweep() finds the files again.
    """
    doomed = list(segment_ids)
    if not doomed:
        return
    with pool.afterwards("done, but its space is not given back yet"), suppress(TryAgain), pool.store.lock(READERS):
        for segment_id in doomed:
            pool.store.delete(segment_name(segment_id))
