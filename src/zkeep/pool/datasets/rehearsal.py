"""A pool that nothing is written to: changes are seen by its caller only, and lost when it is closed.

`receive -n` is a receive into it, so it refuses what the real one would, snapshot after snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from zkeep.pool.datasets.model import Pool
from zkeep.pool.store.catalog import Catalog, Transaction
from zkeep.pool.store.files import LocalStore
from zkeep.pool.store.port import Buffer


def rehearsal(pool: Pool) -> Pool:
    """The pool as it is now. Close it."""
    store = _ReadOnlyStore(pool.path)
    copy = Pool(store, _ScratchCatalog(store), pool.name)
    copy.scope = pool.scope
    return copy


class _ReadOnlyStore(LocalStore):
    """Reads files; put and delete do nothing."""

    def put(self, name: str, content: Buffer) -> None:
        """Nothing."""

    def delete(self, name: str) -> None:
        """Nothing."""

    def drafts(self) -> list[str]:
        return []

    @contextmanager
    def lock(
        self, name: str, *, wait: float = 0.0, shared: bool = False, busy: str = "", passing: bool = False
    ) -> Iterator[None]:
        yield


class _ScratchCatalog(Catalog):
    """A copy of the documents in memory, which transactions change."""

    def __init__(self, store: LocalStore) -> None:
        super().__init__(store)
        on_disk, self._index = self._index, self._in_memory()
        on_disk.close()
        self._exposed = False  # it follows nobody

    @contextmanager
    def transaction(self, urgent: bool = False) -> Iterator[Transaction]:
        # As a Catalog does, without lock and journal: what is committed is in memory only.
        self._index.begin()
        try:
            yield Transaction(self._index)
        except BaseException:
            self._index.rollback()
            raise
        self._index.commit()
