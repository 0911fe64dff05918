"""The registration of a receive: its document and its lock, which show that it is under way, and its room under quotas.

A document of kind `receive` names the txg under which the receive writes its segments. The lock of that txg is held as
long as the process lives: a document whose lock is free belongs to a partial receive, or to a process that died.
"""

from __future__ import annotations

from contextlib import ExitStack

from zkeep.clock import seconds_now
from zkeep.errors import Damaged, Refused, TryAgain
from zkeep.format.objtypes import ObjsetType
from zkeep.format.records import Feature
from zkeep.names import DatasetName
from zkeep.pool.datasets import charge, head
from zkeep.pool.datasets.begin import Opening
from zkeep.pool.datasets.destroy import lock_name
from zkeep.pool.datasets.model import Dataset, Pool
from zkeep.pool.datasets.namespace import make_parents
from zkeep.pool.datasets.partial import receives
from zkeep.pool.store.catalog import Transaction
from zkeep.pool.store.shapes import fault
from zkeep.pool.timeline.ingest import ResumePoint, Tally
from zkeep.pool.timeline.resume import Resumed
from zkeep.pool.transfer.admit import ReceivePlan, ReceiveTarget, nearest
from zkeep.pool.transfer.begin_rules import redaction_of
from zkeep.pool.transfer.reserve import KIND, Charges, Reservation, kept_bytes
from zkeep.pool.transfer.token import Token
from zkeep.pool.types import Doc


class Registration:
    """One receive that is under way, from register() or register_again(). close() gives the lock back."""

    def __init__(
        self,
        pool: Pool,
        target: ReceiveTarget,
        dataset: Dataset | None,
        key: str,
        doc: Doc,
        reservation: Reservation,
        lock: ExitStack,
    ) -> None:
        self._pool = pool
        self._target = target
        self._key = key
        self._reservation = reservation
        self._lock = lock
        self.doc = doc
        self.dataset = dataset
        "Where the snapshot goes, whatever that is called at the end. None: a dataset that is made at the end."
        self.txg = int(doc["txg"])
        self.base = int(doc.get("base", 0))
        "Bytes that came before the records, and what goes with them."
        self.size = kept_bytes(doc) - self.base
        "Bytes of records so far, those that a partial receive had kept included."

    def close(self) -> None:
        self._lock.close()

    def grow(self, size: int) -> None:
        """Count `size` more bytes of records. Raises QuotaExceeded."""
        self.size += size
        self._reservation.grow(self.base + self.size)

    def check(self, t: Transaction) -> None:
        """Check all bytes against the quotas as they are now. Raises QuotaExceeded."""
        self._reservation.check(self.base + self.size)

    def note(self, mark: ResumePoint) -> None:
        """Register a finished segment of a resumable receive: from here on it survives this process."""
        with self._pool.transaction() as t:
            # What others wrote stays: a promotion, where the source is now. What they removed does not come back.
            now = t.get("receive", self._key)
            if now is None or now["txg"] != self.txg:
                raise Refused(f"cannot receive {self._target.name}: the receive was given up meanwhile")
            # The tally, the checksum and the last key are of the same moment: a resumed stream goes on exactly there.
            doc = {**now, "tally": mark.tally.doc(), "state": list(mark.state), "last": list(mark.last)}
            if mark.write:
                doc["object"], doc["offset"] = mark.write
            doc["token"] = token_of(doc).encode()
            _put(t, self._key, doc)
        self.doc = doc

    def source(self, t: Transaction) -> tuple[int, int] | None:
        """The dataset's id and the txg of what an increment follows, as they are now: a promotion may have moved it."""
        doc = t.get("receive", self._key) or self.doc
        return (int(doc["source"][0]), int(doc["source"][1])) if doc["source"] else None

    def is_there(self, t: Transaction) -> bool:
        """Whether the receive is registered still; the commit of its snapshot ends that."""
        return t.get("receive", self._key) is not None

    def remove(self, t: Transaction) -> None:
        """The receive is over: nothing is registered or reserved any more."""
        t.delete("receive", self._key)
        self._reservation.end(t)

    def committed(self) -> None:
        """The transaction that made the snapshot is committed."""

    def settle(self) -> None:
        """Reserve only what a partial receive keeps."""
        with self._pool.transaction() as t:
            # As the catalog has it: the note of the last segment may have been interrupted once it was there.
            if kept := t.get("receive", self._key):
                self._reservation.settle(t, kept_bytes(kept))

    @property
    def kept(self) -> tuple[DatasetName, str] | None:
        """The dataset that keeps what arrived, and its resume token, if there is anything."""
        if not (self._target.resumable and self.dataset):
            return None
        doc = self._pool.catalog.get("receive", self._key)
        now = self._pool.tree().by_id.get(self.dataset.id)
        return (now.name, str(doc["token"])) if doc and now else None


class Unregistered(Registration):
    """A receive that is registered nowhere: a snapshot is checked, written and made in one transaction.

    Nothing of it is written before, so nothing has to be found again, and no other process has to wait for it. Its txg
    was allotted by an earlier transaction: should this one be undone, what it wrote has a name that nothing else gets.
    """

    def __init__(
        self, pool: Pool, plan: ReceivePlan, target: ReceiveTarget, charges: Charges, size: int, *, alone: bool
    ) -> None:
        """`size`: bytes of all records. `alone`: its transaction makes no other snapshot."""
        doc = _document(pool, plan, target, 0, made=False)
        level = plan.dataset or nearest(pool, target.name)
        reservation = _reservation(pool, target, charges, "", level, own=plan.dataset is not None)
        super().__init__(pool, target, plan.dataset, "", doc, reservation, ExitStack())
        self._charges = charges
        self._alone = alone
        self.size = size

    def check(self, t: Transaction) -> None:
        """Raises Refused: another process got a txg meanwhile, and the records need one that was allotted before."""
        txg = self._charges.take_txg(t)
        if txg is None and self.size:
            raise Refused(f"cannot receive {self._target.name}: another process is changing the pool")
        self.txg = t.next_txg() if txg is None else txg
        super().check(t)

    def source(self, t: Transaction) -> tuple[int, int] | None:
        return (int(self.doc["source"][0]), int(self.doc["source"][1])) if self.doc["source"] else None

    def is_there(self, t: Transaction) -> bool:
        return False

    def remove(self, t: Transaction) -> None:
        """Nothing is registered. The next snapshot of the package gets its txg."""
        if self._alone:
            self._charges.allot_in(t)

    def committed(self) -> None:
        self._charges.committed()

    def settle(self) -> None:
        """Nothing is reserved."""

    @property
    def kept(self) -> tuple[DatasetName, str] | None:
        return None


def register(
    pool: Pool, plan: ReceivePlan, target: ReceiveTarget, charges: Charges, replaced: Doc | None = None
) -> Registration:
    """Register a receive in one transaction: its txg, its dataset (-s), its room for the BEGIN, its document.

    `replaced`: the registration of a partial receive that this one replaces.

    Raises:
        QuotaExceeded: there is no room.
    """
    with ExitStack() as locks, pool.transaction() as t:
        # The source as it was admitted: from here on a promotion that moves it is followed.
        if plan.source is not None and head.state_at(pool, plan.source.dataset.id, plan.source.txg) is None:
            raise TryAgain(f"cannot receive {target.name}: {plan.source.name}, its source, was changed meanwhile")
        # The lock comes before anybody can see the document, and take its owner for dead.
        txg = t.next_txg()
        _lock_txg(pool, target, txg, locks)
        dataset = plan.dataset
        if target.resumable and dataset is None:
            dataset = make_dataset(pool, t, plan, target)
            charges.forget()
            locks.enter_context(pool.store.lock(lock_name(dataset)))
        # A resumable receive is found again by its dataset, any other only by this process, by its txg.
        key = dataset.key if target.resumable and dataset else f"txg/{txg:020d}"
        doc = _document(pool, plan, target, txg, made=dataset is not plan.dataset)
        doc["local"] = dict(dataset.doc["local"]) if dataset else {}
        if replaced:
            doc["new"] = replaced["new"]
        level = dataset or nearest(pool, target.name)
        reservation = _reservation(pool, target, charges, key, level, own=dataset is not None)
        reservation.begin(t, doc["base"])
        _put(t, key, doc)
        lock = locks.pop_all()
    return Registration(pool, target, dataset, key, doc, reservation, lock)


def refuse_no_room(pool: Pool, plan: ReceivePlan, target: ReceiveTarget, charges: Charges) -> None:
    """Check what comes before the records against the quotas, as register() does. Raises QuotaExceeded."""
    dataset = plan.dataset
    key = dataset.key if target.resumable and dataset else ""
    made = target.resumable and dataset is None
    level = dataset or nearest(pool, target.name)
    base = _document(pool, plan, target, 0, made=made)["base"]
    _reservation(pool, target, charges, key, level, own=dataset is not None).check(base)


def _put(t: Transaction, key: str, doc: Doc) -> None:
    """Store the document of a receive. Raises Damaged: nobody could read it again, so there is a fault in it."""
    if wrong := fault("receive", key, doc):
        raise Damaged(f"the state of a receive {wrong}: it is not kept")
    t.put("receive", key, doc)


def register_again(pool: Pool, target: ReceiveTarget, charges: Charges, resumed: Resumed) -> Registration:
    """Take over the registration of a partial receive.

    Raises:
        TryAgain: another process is receiving it.
        QuotaExceeded: there is no room any more for what is kept.
    """
    dataset = pool.dataset(target.name)
    with ExitStack() as locks, pool.transaction() as t:
        _lock_txg(pool, target, resumed.txg, locks)
        reservation = _reservation(pool, target, charges, dataset.key, dataset, own=True)
        reservation.begin(t, kept_bytes(resumed.doc))
        lock = locks.pop_all()
    # Compaction may have renamed the runs that the tally names before the lock was ours.
    doc = pool.catalog.get("receive", dataset.key) or dict(resumed.doc)
    return Registration(pool, target, dataset, dataset.key, doc, reservation, lock)


def _lock_txg(pool: Pool, target: ReceiveTarget, txg: int, locks: ExitStack) -> None:
    busy = f"{target.name} is being received already"
    locks.enter_context(pool.store.lock(f"receive-{txg:x}", busy=busy, passing=True))


def _reservation(
    pool: Pool, target: ReceiveTarget, charges: Charges, key: str, level: Dataset, *, own: bool
) -> Reservation:
    return Reservation(pool, charges, target.name.text, target.fields.get("local", {}), key, level, own=own)


def make_dataset(pool: Pool, t: Transaction, plan: ReceivePlan, target: ReceiveTarget) -> Dataset:
    if target.parents:
        make_parents(pool, t, target.name, implied=True)
    kind = "volume" if plan.begin.type == ObjsetType.VOLUME else "filesystem"
    source = plan.source if plan.clone else None
    origin = {"dataset": source.dataset.id, "txg": source.txg} if source else None
    return pool.create_dataset(t, target.name, kind, origin=origin, **target.fields)


def _missing(pool: Pool, target: ReceiveTarget) -> int:
    """How many datasets above the target are still to be made (receive -d)."""
    return target.name.depth - nearest(pool, target.name).name.depth - 1 if pool.find(target.name) is None else 0


def _document(pool: Pool, plan: ReceivePlan, target: ReceiveTarget, txg: int, *, made: bool) -> Doc:
    begin = plan.begin
    # Everything before the records counts, too; a new dataset has its properties in its own document, and parents that
    # were made for it count themselves.
    given = {} if made else target.fields
    fields = charge.of_snapshot(target.snapshot_fields) + charge.of_properties(given.get("received", {}))
    fields += charge.of_settings(given.get("local", {})) + charge.PARENT * _missing(pool, target)
    doc = {
        "txg": txg,
        "snapshot": target.snapshot,
        "resumable": target.resumable,
        "toguid": begin.toguid,
        "fromguid": begin.fromguid,
        "features": int(begin.features),
        "toname": begin.name.decode("utf-8", "surrogateescape"),
        "begin": plan.opening.doc(),
        "source": [plan.source.dataset.id, plan.source.txg] if plan.source else None,
        "clone": plan.clone,
        "new": plan.dataset is None,
        "fields": target.fields,
        "snapshot_fields": target.snapshot_fields,
        "base": charge.of_begin(plan.opening) + fields,
        "started": seconds_now(),
        "tally": Tally().doc(),
        "state": None,
        "last": None,
        "object": 1,
        "offset": 0,
    }
    return doc | {"token": token_of(doc).encode()} if target.resumable else doc


def token_of(doc: Doc) -> Token:
    """The resume token of a receive's document."""
    return Token(
        toname=doc["toname"],
        toguid=doc["toguid"],
        object=doc["object"],
        offset=doc["offset"],
        bytes=doc["tally"]["file_bytes"],
        fromguid=doc["fromguid"],
        features=Feature(doc["features"]),
        redaction=redaction_of(Opening.from_doc(doc["begin"])),
    )


def under_way(pool: Pool) -> list[DatasetName]:
    """The datasets in the pool's scope that are being received into now."""
    found = set()
    for key, doc in receives(pool.catalog):
        # A receive into a new dataset has no id yet: its reservation names the nearest dataset above.
        level = (pool.catalog.get(KIND, key) or {}).get("dataset", 0)
        dataset = pool.tree().get(int(key) if key.isdecimal() else int(level))
        if dataset is None or not pool.sees(dataset.name) or (doc["new"] and not doc["resumable"]):
            continue
        try:
            with pool.store.lock(f"receive-{doc['txg']:x}", shared=True):
                pass  # it is a partial one, and no process works on it
        except TryAgain:
            found.add(dataset.name)
    return sorted(found)
