"""The catalog: JSON documents by (kind, key), changed in transactions.

The journal is the truth, SQLite an index of it that can be rebuilt. A transaction counts once its line of
the journal is synced; the SQLite commit comes after. So at any moment:

    kill or power loss before the line is synced    the old state (a torn line is passed over)
    ... after it, before SQLite has committed        the next opening applies the line: the new state
    SQLite gone, or on a disk that takes no writes   made from the journal, in memory if need be

The index may be hostile, as any file of a pool's folder. SQLite obeys what it finds in its files: so it is given plain
files only, no rollback journal, and no schema but ours; else the index is rebuilt from the journal. It opens them by
their paths: where another user could exchange these meanwhile, the index is in memory.

The file `reserve` is room for one more transaction on a full disk, so that what fills it can be destroyed.

Writers, of all processes, take turns by the lock `catalog`. Readers never wait.
A Catalog serves one thread at a time; inside a transaction its own `get` and `scan` see the pending changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from typing import cast

from zkeep.errors import Damaged, Refused, TryAgain, ZkeepError
from zkeep.pool.store.disk import FULL, file_at
from zkeep.pool.store.index import (
    MEMORY,
    ROLLBACK,
    SUFFIXES,
    ChangeMark,
    ForeignIndex,
    Index,
    closing_on_error,
)
from zkeep.pool.store.journal import Journal, JournalPlace, Operation, encode
from zkeep.pool.store.port import Store
from zkeep.pool.store.row import REMEDY, Malformed
from zkeep.pool.types import Doc

__all__ = ["Catalog", "ChangeMark", "Malformed", "Transaction"]

INDEX = "catalog.sqlite"
RESERVE = "reserve"
_LOG = INDEX + "-wal"
_RESERVE_SIZE = 128 << 10
_PLENTY = 16 << 20
WAIT = 5.0
"Seconds that a writer waits for another one."


class Transaction:
    """The changes of one transaction; see Catalog.transaction."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.operations: list[Operation] = []

    def put(self, kind: str, key: str, document: Doc) -> None:
        self._do((kind, key, encode(document)))

    def delete(self, kind: str, key: str) -> None:
        self._do((kind, key, None))

    def get(self, kind: str, key: str) -> Doc | None:
        return self._index.get(kind, key)

    def scan(self, kind: str, prefix: str = "") -> list[tuple[str, Doc]]:
        return self._index.scan(kind, prefix)

    def sound(self, kind: str, prefix: str = "") -> list[tuple[str, Doc]]:
        return self._index.sound(kind, prefix)

    def next_id(self) -> int:
        """A number that no dataset or segment of this pool has had."""
        return self._count("next_id")

    def next_txg(self, count: int = 1) -> int:
        """The next transaction group, and the first of `count`: greater than all before, pool-wide."""
        return self._count("next_txg", count)

    def _count(self, counter: str, step: int = 1) -> int:
        pool = self.get("pool", "")
        if pool is None:
            raise Damaged("the catalog has no document of the pool itself")
        value = int(pool[counter])
        self.put("pool", "", {**pool, counter: value + step})
        return value

    def _do(self, operation: Operation) -> None:
        self.operations.append(operation)
        self._index.apply([operation])


class _LostIndex:
    """Stands for an index that cannot be read any more. What was committed stays; each query tries to read it again.

    `reopen`: puts an index in its place, and returns that.
    """

    def __init__(self, why: str, reopen: Callable[[], Index]) -> None:
        self._why = why
        self._reopen = reopen

    def close(self) -> None:
        """Nothing is open."""

    def __getattr__(self, name: str) -> object:
        try:
            return getattr(self._reopen(), name)
        except (OSError, ZkeepError):
            raise Damaged(self._why) from None


class Catalog:
    """Documents by (kind, key). Opening it applies what the index lacks, unless another process is writing."""

    def __init__(self, store: Store, wait: float = WAIT) -> None:
        self._store = store
        self._wait = wait
        self._journal = Journal(store)
        self._path = store.root / INDEX
        self._locked = False
        self._exposed = store.is_exposed()
        self.read_only = not store.is_writable()
        self._index = self._to_read() if self.read_only else self._on_disk()

    def close(self) -> None:
        self._index.close()

    # Reading

    def get(self, kind: str, key: str) -> Doc | None:
        return self._index.get(kind, key)

    def scan(self, kind: str, prefix: str = "") -> list[tuple[str, Doc]]:
        """All documents of `kind` whose key begins with `prefix`, by key."""
        return self._index.scan(kind, prefix)

    def sound(self, kind: str, prefix: str = "") -> list[tuple[str, Doc]]:
        """What scan() says, without documents that are not what one of their kind is: whole, and forged or a bug's."""
        return self._index.sound(kind, prefix)

    def keys(self, kind: str, prefix: str = "") -> list[str]:
        return self._index.keys(kind, prefix)

    def lookup(self, kind: str, field: str, term: str, prefix: str = "") -> list[tuple[str, Doc]]:
        """The documents of `kind` whose `field` (terms.FIELDS) is `term` and whose key begins with `prefix`."""
        return self._index.lookup(kind, field, term, prefix)

    def below(self, kind: str, field: str, start: str) -> list[tuple[str, Doc]]:
        """The documents of `kind` whose `field` begins with `start`, by field."""
        return self._index.below(kind, field, start)

    def sums(self, prefix: str = "") -> list[tuple[str, Doc]]:
        """The keys of runs, as scan() has them, and of each document `bytes`, `logical` and `dead`."""
        with self.reading():  # figures that are long are read in a query of their own
            return self._index.sums(prefix)

    def last(self, kind: str, prefix: str = "") -> tuple[str, Doc] | None:
        """The document with the greatest key that begins with `prefix`."""
        return self._index.last(kind, prefix)

    def after(self, kind: str, prefix: str, key: str, last: str = "") -> list[tuple[str, Doc]]:
        """The documents whose keys begin with `prefix` and are greater than `key`, up to `last`, by key."""
        return self._index.after(kind, prefix, key, last)

    def changes(self, kind: str, mark: ChangeMark | None) -> tuple[ChangeMark, list[str] | None]:
        """The keys of documents that this process changed since `mark`; None if another process may have, too."""
        self._follow_file()
        return self._index.changes(kind, mark)

    def version(self) -> tuple[int, ...]:
        """Differs after every change that a reader here would see."""
        self._follow_file()
        return self._index.number, *self._index.version()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read one state: what other processes commit meanwhile is not seen. No effect inside a transaction."""
        if self._index.in_transaction:
            yield
            return
        self._follow_file()
        self._index.begin("DEFERRED")
        try:
            yield
        finally:
            self._index.rollback()

    def _follow_file(self) -> None:
        """Open the index that another process has made again: in the old file nothing changes any more."""
        before = self._index
        if before.in_transaction or (before.file is None and not self._exposed):
            return
        if self._exposed:
            if not self.read_only and not self._locked:
                with suppress(TryAgain), self._exclusive(0.0):
                    self._catch_up(before)
            return
        found = file_at(self._path)
        # As long as there is none, the old one is as good as any.
        if found is not None and found != before.file:
            self._index = self._on_disk()
            before.close()

    # Writing

    @contextmanager
    def transaction(self, urgent: bool = False) -> Iterator[Transaction]:
        """Change documents, all or nothing: durable when the block ends, undone if it raises.

        `urgent`: the transaction is to free space, so on a full disk it may use up the reserve.

        Raises:
            TryAgain: another process is writing.
        """
        with self._exclusive(self._wait):
            # What other processes committed comes first, so that this transaction follows the journal's last line.
            place = self._catch_up(self._index)
            self._index.begin()
            transaction = Transaction(self._index)
            try:
                yield transaction
                # The synced line is the commit: before it, everything is undone; after it, nothing is.
                after = self._record(place, transaction.operations, urgent)
            except BaseException:
                self._index.rollback()
                raise
            self._settle(after)
            if not urgent:
                # Reserve some bytes, if the disk has plenty, for a transaction on a full disk.
                with suppress(OSError, ZkeepError):
                    if not self._store.exists(RESERVE):
                        disk = os.statvfs(self._store.root)
                        if disk.f_bavail * disk.f_frsize > _PLENTY:
                            self._store.put(RESERVE, os.urandom(_RESERVE_SIZE))

    def _record(self, place: JournalPlace, operations: list[Operation], urgent: bool) -> JournalPlace:
        if not operations:
            return place
        try:
            return self._journal.append(place, operations)
        except OSError as error:
            if not urgent or error.errno not in FULL or not self._store.exists(RESERVE):
                raise
        # The disk is full and this transaction is to free space: the reserve's blocks are for its line.
        self._store.delete(RESERVE)
        return self._journal.append(place, operations)

    def _settle(self, place: JournalPlace) -> None:
        """The line is durable, so the transaction stands: where SQLite cannot follow, memory does.

        Nothing here may make the caller believe that it failed.
        """
        try:
            self._index.move(place)
            self._index.commit()
        except (OSError, ZkeepError):
            self._index.close()
            try:
                self._index = self._in_memory()
            except (OSError, ZkeepError) as error:
                lost = _LostIndex(f"{self._store.root}: the catalog cannot be read any more: {error}", self._reopened)
                self._index = cast(Index, lost)
        except BaseException:
            self._index.rollback()  # interrupted: the next transaction reads the line from the journal
            raise
        with suppress(OSError, ZkeepError):
            if self._journal.is_long(place):
                self._checkpoint(place)

    def _reopened(self) -> Index:
        """The index, made from the journal, in place of one that was lost: the disk may answer again."""
        self._index = self._in_memory()
        return self._index

    def _checkpoint(self, place: JournalPlace) -> JournalPlace:
        # journal/0.log   |--- 5000 lines ---|      becomes      journal/5000.ckpt.gz + journal/5000.log, empty
        place = self._journal.checkpoint(place, self._index.rows())
        self._index.move(place)
        self._journal.prune(place.generation)
        return place

    def renew(self) -> None:
        """Leave nothing of former documents in the catalog's files: what they said is gone for good.

        Idempotent: if the process is killed meanwhile, the next call finishes the work.
        """
        with self._exclusive(self._wait):
            place = self._catch_up(self._index)
            if place.number == place.generation:  # a checkpoint is made once; what is beside it has to go, too
                place = self._journal.append(place, [])
            self._checkpoint(place)
            self._index.close()
            _delete_index(self._store)
            self._store.sweep()
        self._index = self._on_disk()

    @contextmanager
    def _exclusive(self, wait: float) -> Iterator[None]:
        if self.read_only:
            raise Refused(f"{self._store.root} cannot be written to")
        if self._locked:
            raise RuntimeError("a transaction inside a transaction")
        busy = f"the catalog of {self._store.root} is busy: another process is changing it"
        with self._store.lock("catalog", wait=wait, busy=busy):
            self._locked = True
            try:
                yield
            finally:
                self._locked = False

    # The index follows the journal

    def _on_disk(self) -> Index:
        if self._exposed:
            return self._in_memory()
        try:
            with closing_on_error(self._plain_index()) as index:
                place = index.place()
                if place is None:
                    # An empty index is filled, however long another process holds the lock ...
                    with self._exclusive(self._wait):
                        self._catch_up(index)
                elif place.offset != self._journal.length(place.generation) or (
                    place.generation != self._journal.generation()
                ):
                    # ... one that lags is brought up to date only if the lock is free.
                    with suppress(TryAgain), self._exclusive(0.0):
                        self._catch_up(index)
                if not index.is_complete():
                    raise Damaged(f"{self._path}: documents are missing or not what was stored; {REMEDY}")
                return index
        except OSError:
            return self._in_memory()

    def _to_read(self) -> Index:
        """The index where nothing can be written: made from the journal, or its own file if the journal is damaged."""
        try:
            return self._in_memory()
        except Damaged:
            # The index's own file serves only if SQLite may read it as it is: no links, nothing left in its log.
            if self._exposed or not _is_plain(self._store) or (self._store.exists(_LOG) and self._store.size(_LOG)):
                raise
            with suppress(Damaged, OSError), closing_on_error(Index(str(self._path), self._wait, frozen=True)) as index:
                if index.is_complete() and index.place():
                    return index
            raise

    def _plain_index(self) -> Index:
        """The index in its file, which is made again if SQLite must not be given what lies there."""
        if not _is_plain(self._store):
            with self._exclusive(self._wait):
                if not _is_plain(self._store):
                    _delete_index(self._store)
        # Noted before it is opened: if it is replaced in between, that is seen the next time.
        file = file_at(self._path)
        try:
            index = Index(str(self._path), self._wait)
        except ForeignIndex:
            with self._exclusive(self._wait):
                _delete_index(self._store)
            file, index = None, Index(str(self._path), self._wait)
        index.file = file or file_at(self._path)
        return index

    def _catch_up(self, index: Index) -> JournalPlace:
        """Bring the index to the journal's end, past a torn tail if there is one. Needs the lock."""
        newest = self._journal.generation()
        place = index.place()
        # The index may stand at the journal's end already; a checkpoint that it is ahead of was lost.
        if place and place.generation > newest:
            raise Damaged(f"{self._store.root}: the journal's checkpoint {place.generation} is gone; {REMEDY}")
        if place and place.generation == newest and place.offset == self._journal.length(newest):
            return place
        # Lines that a killed process left unsynced must be durable before the index follows them.
        self._journal.sync(newest)
        with index.change():
            # Start from the checkpoint if it is newer than the index; then apply the log's lines after that place.
            if place is None or place.number < newest:
                place = self._load(index)
            elif place.generation < newest:
                place = replace(place, generation=newest, offset=0)
            place = self._follow(index, place)
            place = replace(place, offset=self._journal.length(newest))
            index.move(place)
        return place

    def _follow(self, index: Index, place: JournalPlace) -> JournalPlace:
        for after, operations in self._journal.entries(place):
            index.apply(operations)
            place = after
        return place

    def _load(self, index: Index) -> JournalPlace:
        """Fill the index from the newest checkpoint; within a transaction of the index."""
        place, rows = self._journal.load(self._journal.generation())
        index.clear()
        index.apply(rows)
        return place

    def _in_memory(self) -> Index:
        with closing_on_error(Index(MEMORY, self._wait)) as index:
            for _ in range(4):
                # Load the checkpoint, then apply every line after it; a writer that prunes meanwhile makes us begin
                # again.
                with suppress(FileNotFoundError), index.change():  # a writer may prune what is being read
                    index.move(self._follow(index, self._load(index)))
                    return index
            raise TryAgain(f"the catalog of {self._store.root} is busy: another process is changing it")

    def shrink(self) -> None:
        """Return unused pages of the index to the disk, unless another process is writing."""
        with suppress(OSError, TryAgain), self._exclusive(0.0):
            self._index.shrink()

    # Verifying and rebuilding

    def verify(self) -> list[str]:
        """One line for each fault of the rows, of the journal, or of their agreement."""
        with self._exclusive(self._wait):
            faults = list(self._index.faults())
            try:
                self._catch_up(self._index)
                # Make a second index from the journal alone, and compare row by row.
                with closing(self._in_memory()) as truth:
                    if faults:
                        return faults
                    differing = set(truth.rows(terms=True)) ^ set(self._index.rows(terms=True))
                    return sorted({f"catalog: {kind} {key} is not as the journal says" for kind, key, _ in differing})
            except Damaged as error:
                return [*faults, f"journal: {error}"]

    @classmethod
    def rebuild(cls, store: Store, wait: float = WAIT) -> Catalog:
        """Rebuild the index from the journal; before that, a damaged journal from a sound index.

        Raises:
            Damaged: neither of the two is whole; nothing was changed.
        """
        busy = f"the catalog of {store.root} is busy: another process is changing it"
        with store.lock("catalog", wait=wait, busy=busy):
            _mend_journal(store, wait)
            _delete_index(store)
        return cls(store, wait)


def _is_plain(store: Store) -> bool:
    """Whether SQLite may open the index: it would follow links, and do what a rollback journal says."""
    return all(store.is_own(INDEX + suffix) for suffix in SUFFIXES) and not store.exists(INDEX + ROLLBACK)


def _delete_index(store: Store) -> None:
    for suffix in (*SUFFIXES, ROLLBACK):
        store.delete(INDEX + suffix)


def _mend_journal(store: Store, wait: float) -> None:
    """If the journal is damaged or shorter than a sound index, write it again from the index.

    Raises Damaged: the index is not sound either, or lacks what lies behind the damage.
    """
    journal = Journal(store)
    trouble: Damaged | None = None
    number = -1
    try:
        # A sound index that is ahead of the journal has what the journal lost.
        number = journal.end().number
    except Damaged as error:
        trouble = error
    with _sound_index(store, wait) as index:
        place = index.place() if index else None
        if index and place and place.number > number:
            # The index may lag: what the journal has behind the index's place was acknowledged as well.
            with index.change():
                for after, operations in journal.following(place):
                    index.apply(operations)
                    place = after
                index.move(place)
            journal.renew(place, index.rows())
        elif trouble:
            raise trouble


@contextmanager
def _sound_index(store: Store, wait: float) -> Iterator[Index | None]:
    """The index on disk, if every row of it is what was stored."""
    with ExitStack() as held:
        sound = None
        if store.exists(INDEX) and _is_plain(store) and not store.is_exposed():
            with suppress(Damaged, OSError):
                index = held.enter_context(closing(Index(str(store.root / INDEX), wait)))
                sound = None if any(index.faults()) else index
        yield sound
