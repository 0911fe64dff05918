"""The room that a receive takes under the quotas above it, before anything is written.

A document of kind `reserve`, by the receive's own key, tells how many bytes it may have brought; others count it. It
grows in transactions, so receives that begin at the same time cannot all be promised the same room. When the receive
is done it goes, and what was kept counts; of a partial receive it stays, with what is kept. That of a process that died
counts until what it left behind is removed, which is done as soon as somebody is short of room.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from zkeep.errors import Refused, TryAgain
from zkeep.pool.datasets.model import Dataset, Pool
from zkeep.pool.datasets.view import View
from zkeep.pool.store.catalog import Mark, Transaction
from zkeep.pool.store.port import segment_name

Doc = dict[str, Any]
KIND = "reserve"
PLENTY = 1 << 30
"""Where so much is left, more than is needed is taken at once."""
SHARE = 64
"""The part of what is left that is taken then."""


class QuotaExceeded(Refused):
    """A quota, of the dataset or of what is above it, has no room for what comes."""


class Charges:
    """What quotas count of what is there, by dataset; kept while a stream of many snapshots comes in.

    What this process commits is added, at most as much as it counts. After a change by another process all is counted
    again, and before anything is refused.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._known: dict[int, int] = {}
        self._mark: Mark | None = None
        self.exact = True

    def of(self, view: View, level: Dataset) -> int:
        self._mark, changed = self._pool.catalog.changes("run", self._mark)
        if changed is None:
            self.forget()
        if level.id not in self._known:
            self._known[level.id] = view.charged(level)
        return self._known[level.id]

    def add(self, dataset: Dataset, size: int) -> None:
        """A snapshot was committed that counts no more than `size`."""
        for level in (dataset, *self._pool.tree().ancestors(dataset)):
            if level.id in self._known:
                self._known[level.id] += size
                self.exact = False

    def forget(self) -> None:
        """Count again: datasets were made, or changed their places."""
        self._known.clear()
        self.exact = True


class Reservation:
    """The room of one receive. `settings`: the properties that the dataset is going to have."""

    def __init__(self, pool: Pool, name: str, settings: Mapping[str, str | None], charges: Charges) -> None:
        self._pool = pool
        self._charges = charges
        self._name = name
        self._settings = settings
        self._level: Dataset | None = None
        self._own = False
        self._key = ""
        self._held = 0

    def begin(self, t: Transaction, key: str, level: Dataset, total: int, *, own: bool) -> None:
        """Take the first `total` bytes. `own`: `level` is the dataset itself, else what is above it.

        Raises:
            QuotaExceeded: they are not there.
        """
        self._key, self._level, self._own = key, level, own
        self._take(t, total)

    def grow(self, total: int) -> None:
        """Have `total` bytes in all, in a transaction of its own if there is a quota.

        Raises:
            QuotaExceeded: they are not there.
        """
        if total <= self._held or not self._limits():
            return
        for last in (False, True):
            with suppress(QuotaExceeded), self._pool.transaction() as t:
                self._take(t, total)
                return
            if last or not remove_leftovers(self._pool):
                raise self._exceeded()

    def check(self, total: int) -> None:
        """Ask once more, at the end: quotas may have been set, or used otherwise, meanwhile.

        Raises:
            QuotaExceeded: it is too much by now.
        """
        self._room_for(total)

    def settle(self, t: Transaction, total: int) -> None:
        """Hold just what is kept."""
        self._held = total
        self._put(t)

    def end(self, t: Transaction) -> None:
        t.delete(KIND, self._key)

    def _take(self, t: Transaction, total: int) -> None:
        room = self._room_for(total)
        left = 0 if room is None else room - total
        self._held = total + (left // SHARE if left > PLENTY else 0)
        self._put(t)

    def _put(self, t: Transaction) -> None:
        assert self._level is not None
        t.put(KIND, self._key, {"dataset": self._level.id, "bytes": self._held})

    def _exceeded(self) -> QuotaExceeded:
        return QuotaExceeded(f"cannot receive {self._name}: the quota is used up")

    def _limits(self) -> list[tuple[Dataset | None, int]]:
        """The quotas in force, with what they bound; None: a dataset that is not there yet."""
        level, settings = self._now(), self._settings
        limits: list[tuple[Dataset | None, int]] = list(View(self._pool).quotas(level, settings if self._own else {}))
        if not self._own and (quota := int(settings.get("quota") or 0)):
            limits.append((None, quota))
        return limits

    def _now(self) -> Dataset:
        assert self._level is not None
        now = self._pool.tree().get(self._level.id)
        if now is None:
            raise Refused(f"cannot receive {self._name}: {self._level.name} was destroyed meanwhile")
        return now

    def _room_for(self, total: int) -> int | None:
        """As _room(), which is enough for `total`; it is refused only where that was counted to the byte."""
        room = self._room()
        if room is not None and total > room and not self._charges.exact:
            self._charges.forget()
            room = self._room()
        if room is not None and total > room:
            raise self._exceeded()
        return room

    def _room(self) -> int | None:
        """What this receive may bring in all; None where no quota bounds it."""
        limits = self._limits()
        if not limits:
            return None
        view = View(self._pool)
        rooms = []
        for level, limit in limits:
            if level is None:
                rooms.append(limit)
                continue
            rooms.append(limit - self._charges.of(view, level) - view.reserved(level, self._key))
        return min(rooms)


def remove_leftovers(pool: Pool) -> bool:
    """Remove the files that receives of processes that died left behind, and what was reserved for them.

    Of a partial receive what can be gone on with stays, and so much stays reserved. Returns whether there was anything.
    """
    found = False
    for key, doc in pool.catalog.scan("receive"):
        with suppress(TryAgain), _idle(pool, doc):
            now, reserved = pool.catalog.get("receive", key), pool.catalog.get(KIND, key)
            if now is None or now["txg"] != doc["txg"]:
                continue
            kept = set(now["tally"]["segments"]) if now["resumable"] else set()
            _remove_files(pool, int(now["txg"]), kept)
            found |= _forget(pool, key, now, reserved)
    return found


def _forget(pool: Pool, key: str, doc: Doc, reserved: Doc | None) -> bool:
    """Lower what is reserved to what is kept; returns whether that is less."""
    kept = kept_bytes(doc)
    if doc["resumable"]:
        if reserved is None or reserved["bytes"] <= kept:
            return False
        with pool.transaction() as t:
            t.put(KIND, key, {**reserved, "bytes": kept})
        return True
    with pool.transaction() as t:
        t.delete("receive", key)
        t.delete(KIND, key)
    return True


def kept_bytes(doc: Doc) -> int:
    """What a partial receive counts: what came with its BEGIN, and the records that are kept."""
    return int(doc.get("base", 0)) + int(doc["tally"]["bytes"]) + int(doc["tally"].get("extra", 0))


def _remove_files(pool: Pool, txg: int, kept: set[str]) -> None:
    mine = f"{txg:x}-"
    folder = segment_name(mine).rpartition("/")[0]
    for name in pool.store.names(folder):
        segment_id = name.rpartition("/")[2].removesuffix(".seg")
        if segment_id.startswith(mine) and segment_id not in kept:
            pool.store.delete(name)
    for draft in pool.store.drafts():
        if draft.startswith(mine):
            pool.store.draft(draft).discard()


@contextmanager
def _idle(pool: Pool, doc: Doc) -> Iterator[None]:
    """Hold off who would go on with a receive. TryAgain if it is under way."""
    with pool.store.lock(f"receive-{doc['txg']:x}", passing=True):
        yield
