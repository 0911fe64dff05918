"""The room that a receive reserves under the quotas above it, before anything is written.

A document of kind `reserve`, with the receive's own key, says how many bytes the receive may write; others count it. It
grows in transactions, so that receives that begin at the same time cannot all be promised the same room. When the
receive is done the document is removed, and the snapshot counts instead; a partial receive keeps one for what it keeps.
The document of a process that died counts until its files are removed, which happens as soon as a receive needs room.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeVar

from zkeep.errors import Refused, TryAgain
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Dataset, Pool
from zkeep.pool.datasets.no_room import QuotaExceeded
from zkeep.pool.datasets.partial import receives
from zkeep.pool.datasets.room import disk_is_full
from zkeep.pool.datasets.view import View
from zkeep.pool.store.catalog import ChangeMark, Transaction
from zkeep.pool.store.port import segment_name
from zkeep.pool.types import Doc

Made = TypeVar("Made")
KIND = "reserve"
PLENTY = 1 << 30
"Where more than this is left, more than needed is reserved at once."
SHARE = 64
"1/SHARE of what is left is reserved then."


class Charges:
    """A cache of what quotas count, by dataset, for a stream of many snapshots; and the txgs of the next of them.

    What this process commits is added, rounded up. Everything is counted again after a change by another process, and
    before anything is refused.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._known: dict[int, int] = {}
        self._mark: ChangeMark | None = None
        self.exact = True
        self._txgs = range(0)
        "Txgs that a transaction allotted to this process, for what it writes next."
        self._allotted = range(0)
        "The same, of a transaction that is not committed yet."

    def allot(self, count: int = 1) -> None:
        """Get so many txgs, in a transaction of its own, unless they are there."""
        if len(self._txgs) < count:
            with self._pool.transaction() as t:
                first = t.next_txg(count)
            self._txgs = range(first, first + count)

    def allot_in(self, t: Transaction, count: int = 1) -> None:
        """Get txgs; they count when committed() is called."""
        first = t.next_txg(count)
        self._allotted = range(first, first + count)

    def take_txg(self, t: Transaction) -> int | None:
        """The first txg that was allotted, if the last is still the newest: a dataset's runs are in their order."""
        txgs, self._txgs, self._allotted = self._txgs, self._txgs[1:], range(0)
        newest = int((t.get("pool", "") or {"next_txg": 0})["next_txg"]) - 1
        return txgs[0] if txgs and txgs[-1] == newest else None

    def committed(self) -> None:
        """The transaction that allotted txgs last is committed."""
        self._txgs, self._allotted = self._allotted, range(0)

    def of(self, view: View, level: Dataset) -> int:
        # `changed` is None when another process may have made or removed runs: then nothing that is known counts.
        self._mark, changed = self._pool.catalog.changes("run", self._mark)
        if changed is None:
            self.forget()
        if level.id not in self._known:
            self._known[level.id] = view.charged(level)
        return self._known[level.id]

    def add(self, dataset: Dataset, size: int) -> None:
        """A snapshot was made that counts no more than `size`."""
        try:
            # The dataset's own amount grows, and that of every dataset above it.
            levels = [dataset, *self._pool.tree().ancestors(dataset)]
        except BaseException:
            self.forget()
            raise
        for level in levels:
            if level.id in self._known:
                self._known[level.id] += size
                self.exact = False

    def forget(self) -> None:
        """Drop the cache: datasets were made or renamed, or what was added was undone."""
        self._known.clear()
        self.exact = True


class Reservation:
    """The room of one receive, by the receive's own key.

    `settings`: the properties that the dataset is going to have. `level`: the dataset itself if `own`, else the
    nearest one above it.
    """

    def __init__(
        self,
        pool: Pool,
        charges: Charges,
        name: str,
        settings: Mapping[str, str | None],
        key: str,
        level: Dataset,
        *,
        own: bool,
    ) -> None:
        self._pool = pool
        self._charges = charges
        self._name = name
        self._settings = settings
        self._key = key
        self._level = level
        self._own = own
        self._reserved = 0

    def begin(self, t: Transaction, total: int) -> None:
        """Reserve the first `total` bytes. Raises QuotaExceeded."""
        self._reserve(t, total)

    def grow(self, total: int) -> None:
        """Reserve `total` bytes in all, in a transaction of its own if there is a quota. Raises QuotaExceeded."""
        if total <= self._reserved or not self._limits():
            return
        # Where it does not fit, what dead processes left is removed, and it is tried once more.
        for last in (False, True):
            with suppress(QuotaExceeded), self._pool.transaction() as t:
                self._reserve(t, total)
                return
            if last or not remove_leftovers(self._pool):
                raise self._exceeded()

    def check(self, total: int) -> None:
        """Check again at the end: quotas may have been set, or used by others, meanwhile. Raises QuotaExceeded."""
        self._room_for(total)

    def settle(self, t: Transaction, total: int) -> None:
        """Reserve exactly `total` bytes: what is kept."""
        self._reserved = total
        self._put(t)

    def end(self, t: Transaction) -> None:
        t.delete(KIND, self._key)

    def _reserve(self, t: Transaction, total: int) -> None:
        # Where there is plenty of room, some is reserved ahead, so that not every batch needs a transaction.
        room = self._room_for(total)
        left = 0 if room is None else room - total
        self._reserved = total + (left // SHARE if left > PLENTY else 0)
        self._put(t)

    def _put(self, t: Transaction) -> None:
        t.put(KIND, self._key, {"dataset": self._level.id, "bytes": self._reserved})

    def _exceeded(self) -> QuotaExceeded:
        return QuotaExceeded(f"cannot receive {self._name}: the quota is used up")

    def _limits(self) -> list[tuple[Dataset | None, int]]:
        """The quotas in force, each with its dataset; None for one that does not exist yet."""
        now = self._pool.tree().get(self._level.id)
        if now is None:
            raise Refused(f"cannot receive {self._name}: {self._level.name} was destroyed meanwhile")
        settings = self._settings
        limits: list[tuple[Dataset | None, int]] = list(View(self._pool).quotas(now, settings if self._own else {}))
        if not self._own and (quota := int(settings.get("quota") or 0)):
            limits.append((None, quota))
        return limits

    def _room_for(self, total: int) -> int | None:
        """What _room() says, if that is enough for `total`; before refusing, everything is counted again."""
        # The cache rounds up, so only an exact count may refuse.
        room = self._room()
        if room is not None and total > room and not self._charges.exact:
            self._charges.forget()
            room = self._room()
        if room is not None and total > room:
            raise self._exceeded()
        return room

    def _room(self) -> int | None:
        """The bytes that this receive may write in all; None if no quota limits it."""
        limits = self._limits()
        if not limits:
            return None
        view = View(self._pool)
        rooms = []
        for level, limit in limits:
            if level is None:
                rooms.append(limit)
                continue
            # For each quota: what it allows, less what is there already, less what other receives have reserved.
            rooms.append(limit - self._charges.of(view, level) - view.reserved(level, self._key))
        return min(rooms)


def refuse_full_disk(pool: Pool, name: DatasetName) -> None:
    """Leave room on the disk that no client of a server can fill: with it, snapshots can be destroyed, and compacted.

    Raises:
        QuotaExceeded: the disk has no more than that.
    """
    if pool.scope is not None and disk_is_full(pool):
        raise QuotaExceeded(f"cannot receive {name}: out of space")


def with_room(pool: Pool, make: Callable[[], Made]) -> Made:
    """Register; where a quota is used up, once more without what dead processes left behind."""
    try:
        return make()
    except QuotaExceeded:
        if not remove_leftovers(pool):
            raise
        return make()


def remove_leftovers(pool: Pool) -> bool:
    """Remove the files and reservations of receives whose processes died.

    What a partial receive can go on with stays, and stays reserved. Returns whether anything was removed.
    """
    found = False
    for key, doc in receives(pool.catalog):
        with suppress(TryAgain), pool.store.lock(f"receive-{doc['txg']:x}", passing=True):
            # Only now it is certain that no process works on it: look at its document again.
            now, reserved = pool.catalog.get("receive", key), pool.catalog.get(KIND, key)
            if now is None or now["txg"] != doc["txg"]:
                continue
            kept = set(now["tally"]["segments"]) if now["resumable"] else set()
            _remove_files(pool, int(now["txg"]), kept)
            found |= _forget(pool, key, now, reserved)
    return found


def _forget(pool: Pool, key: str, doc: Doc, reserved: Doc | None) -> bool:
    """Reduce the reservation to what is kept, or remove it; returns whether that gave room."""
    # A partial receive keeps its document, and room for the segments that it can go on from.
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
    """The bytes that a partial receive counts: what came with its BEGIN, and the records that are kept."""
    return int(doc.get("base", 0)) + int(doc["tally"]["bytes"]) + int(doc["tally"].get("extra", 0))


def _remove_files(pool: Pool, txg: int, kept: set[str]) -> None:
    # Segments are called TXG-NUMBER, and a txg belongs to one receive: all that begins so was written by this one.
    mine = f"{txg:x}-"
    folder = segment_name(mine).rpartition("/")[0]
    for name in pool.store.names(folder):
        segment_id = name.rpartition("/")[2].removesuffix(".seg")
        if segment_id.startswith(mine) and segment_id not in kept:
            pool.store.delete(name)
    for draft in pool.store.drafts():
        if draft.startswith(mine):
            pool.store.draft(draft).discard()
