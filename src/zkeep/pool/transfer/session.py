"""One snapshot's stream landing in a dataset: judged at its BEGIN, taken in, and committed at its END.

All or nothing: what the batches bring lies in segments that no document names until the one transaction that makes the
snapshot. A resumable receive registers its finished segments as it goes; they are still invisible.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any

from zkeep.errors import Refused, ZkeepError
from zkeep.format.events import Batch, SubBegin, SubEnd
from zkeep.format.fletcher import fletcher4
from zkeep.format.records import NATIVE, BeginFlag, Feature
from zkeep.names import DatasetName
from zkeep.pool.datasets import charge
from zkeep.pool.datasets.begin import Opening, number
from zkeep.pool.datasets.destroy import drop_after, lock_name
from zkeep.pool.datasets.history import History, has_runs, history_of
from zkeep.pool.datasets.model import Dataset, Pool, Snapshot, txg_key
from zkeep.pool.datasets.namespace import make_parents, remove_if_deferred
from zkeep.pool.datasets.orphans import discard, reading
from zkeep.pool.datasets.summaries import sum_up
from zkeep.pool.datasets.view import View
from zkeep.pool.store.catalog import Transaction
from zkeep.pool.timeline.ingest import Mark, RecordCounter, SegmentWriter, Source, Tally
from zkeep.pool.timeline.resolve import Kind
from zkeep.pool.timeline.resume import Resumed
from zkeep.pool.timeline.timeline import Timeline
from zkeep.pool.transfer.admit import Plan, Target, judge, nearest, refuse_needed, refuse_open_streams
from zkeep.pool.transfer.begin_rules import ZVOL
from zkeep.pool.transfer.continued import begun_target, goes_on, resume
from zkeep.pool.transfer.reserve import KIND, Charges, QuotaExceeded, Reservation, kept_bytes, remove_leftovers
from zkeep.pool.transfer.token import Token

Doc = dict[str, Any]
DSL_CRYPTO = {
    "suite": "DSL_CRYPTO_SUITE",
    "guid": "DSL_CRYPTO_GUID",
    "version": "DSL_CRYPTO_VERSION",
    "keyformat": "keyformat",
    "pbkdf2iters": "pbkdf2iters",
}


class ReceiveSession:
    """Takes the events of one substream. Use land()."""

    def __init__(self, pool: Pool, plan: Plan, target: Target, resumed: Resumed | None, charges: Charges) -> None:
        self._pool = pool
        self._charges = charges
        self._plan = plan
        self._target = target
        self._resumed = resumed
        self._stack = ExitStack()
        self._history = History([])
        self._dataset = plan.dataset
        "Where it lands: that dataset, whatever it is called by the end. None: one that is made at the end."
        self.txg = resumed.txg if resumed else 0
        self._doc: Doc = dict(resumed.doc) if resumed else {}
        self._key = ""
        self._base = int(self._doc.get("base", 0))
        "Bytes that came before the records, and what goes with them."
        self._bytes = 0
        "Bytes of records, those that are kept already included."
        self._reservation = Reservation(pool, target.name.text, target.fields.get("local", {}), charges)
        self.is_registered = resumed is not None
        self._whole = True
        "Whether the records are exactly what a sender sent."
        self._inflow: SegmentWriter | None = None

    def _past(self) -> History:
        source = self._plan.source
        return history_of(self._pool, source.dataset).upto(source.txg) if source else History([])

    def start(self, replaced: Doc | None = None) -> None:
        """Register the receive; while it reads (and so until it ends), nobody takes its files for leftovers.

        `replaced`: the registration of the partial receive in whose place it comes.
        """
        self._stack.enter_context(reading(self._pool))
        register = self._register_again if self._resumed else partial(self._register, replaced)
        try:
            register()
        except QuotaExceeded:
            if not remove_leftovers(self._pool):
                raise
            register()
        self.is_registered = True
        self._history = self._past()  # from here on compaction leaves these runs alone
        if self._resumed:  # compaction may have renamed what it kills before the lock was ours
            self._doc = self._pool.catalog.get("receive", self._key) or self._doc
            self._resumed = replace(self._resumed, doc=self._doc)
        timeline = self._stack.enter_context(self._history.timeline(self._pool.store))
        self._inflow = self._stack.enter_context(self._open_inflow(timeline))

    def _register(self, replaced: Doc | None) -> None:
        """In one transaction: the txg, the dataset (-s), the room for the BEGIN and what comes with it, the document.

        The lock is ours before anybody can see the document and take its owner for dead.
        """
        with ExitStack() as locks, self._pool.transaction() as t:
            self.txg = t.next_txg()
            self._lock_txg(locks)
            dataset = self._dataset
            if self._target.resumable and dataset is None:
                dataset = self._make_dataset(t)
                self._charges.forget()
                locks.enter_context(self._pool.store.lock(lock_name(dataset)))
            self._key = dataset.key if self._target.resumable and dataset else f"txg/{self.txg:020d}"
            self._base = self._opening_bytes(made=dataset is not self._dataset)
            self._doc = self._registration()
            if replaced:
                self._doc["new"] = replaced["new"]
            level = dataset or nearest(self._pool, self._target.name)
            self._reservation.begin(t, self._key, level, self._base, own=dataset is not None)
            t.put("receive", self._key, self._doc)
            held = locks.pop_all()
        self._stack.push(held)
        self._dataset = dataset

    def _register_again(self) -> None:
        """What is kept is registered; it is ours from here on."""
        self._dataset = self._pool.dataset(self._target.name)
        self._key = self._dataset.key
        with ExitStack() as locks, self._pool.transaction() as t:
            self._lock_txg(locks)
            self._bytes = kept_bytes(self._doc) - self._base
            self._reservation.begin(t, self._key, self._dataset, self._base + self._bytes, own=True)
            held = locks.pop_all()
        self._stack.push(held)

    def _lock_txg(self, locks: ExitStack) -> None:
        busy = f"{self._target.name} is being received already"
        locks.enter_context(self._pool.store.lock(f"receive-{self.txg:x}", busy=busy, passing=True))

    def _opening_bytes(self, *, made: bool) -> int:
        """What quotas count of all that comes before the records; a dataset that is made has its properties itself."""
        received = {} if made else self._target.fields.get("received", {})
        fields = charge.of_snapshot(self._target.snapshot_fields) + charge.of_properties(received)
        return charge.of_begin(self._plan.opening) + fields

    def _open_inflow(self, timeline: Timeline) -> SegmentWriter:
        opening, begin = self._plan.opening, self._plan.begin
        source = Source(
            big_endian=opening.byteorder == "big",
            spill_flags=bool(begin.flags & BeginFlag.SPILL_BLOCK),
            kind=Kind(begin.raw, self._grows_blocks()),
        )
        state = fletcher4(opening.header + opening.payload, swap=opening.byteorder != NATIVE)
        note = self._note_segment if self._target.resumable else None
        writer = RecordCounter if self._target.dry_run else SegmentWriter
        return writer(self._pool.store, self.txg, source, timeline, self._history.runs, state, note, self._resumed)

    def _grows_blocks(self) -> bool:
        source, large = self._plan.source, Feature.LARGE_BLOCKS
        return bool(source and self._plan.begin.features & large and not Feature(source.doc["features"]) & large)

    def _registration(self) -> Doc:
        plan, begin = self._plan, self._plan.begin
        doc = {
            "txg": self.txg,
            "snapshot": self._target.snapshot,
            "resumable": self._target.resumable,
            "toguid": begin.toguid,
            "fromguid": begin.fromguid,
            "features": int(begin.features),
            "toname": begin.name.decode("utf-8", "surrogateescape"),
            "begin": plan.opening.doc(),
            "source": [plan.source.dataset.id, plan.source.txg] if plan.source else None,
            "clone": plan.clone,
            "new": plan.dataset is None,
            "fields": self._target.fields,
            "snapshot_fields": self._target.snapshot_fields,
            "base": self._base,
            "tally": Tally().doc(),
            "state": None,
            "last": None,
            "object": 1,
            "offset": 0,
        }
        return doc | {"token": token_of(doc).encode()} if self._target.resumable else doc

    def _make_dataset(self, t: Transaction) -> Dataset:
        plan = self._plan
        if self._target.parents:
            make_parents(self._pool, t, self._target.name)
        kind = "volume" if plan.begin.type == ZVOL else "filesystem"
        source = plan.source if plan.clone else None
        origin = {"dataset": source.dataset.id, "txg": source.txg} if source else None
        return self._pool.create_dataset(t, self._target.name, kind, origin=origin, **self._target.fields)

    def add(self, batch: Batch) -> None:
        """Take in one batch. Raises Refused when a quota is exceeded."""
        assert self._inflow is not None
        batch = self._inflow.new_part(batch)
        self._bytes += len(batch.buffer)
        self._reservation.grow(self._base + self._bytes)
        self._refuse_to_refer(self._inflow.tally.bytes)
        self._inflow.add(batch)

    def _refuse_to_refer(self, size: int) -> None:
        """Hold what the snapshot refers to against refquota, if that is set."""
        limit = int(self._refquota() or 0)
        if limit and size > limit:
            raise QuotaExceeded(f"cannot receive {self._target.name}: the quota is used up (refquota)")

    def _refquota(self) -> str | None:
        settings: dict[str, str | None] = self._target.fields.get("local", {})
        if "refquota" in settings or self._dataset is None:
            return settings.get("refquota")
        now = self._pool.tree().get(self._dataset.id)
        return View(self._pool).policy(now, "refquota") if now else None

    def _referred(self, tally: Tally) -> int:
        """Bytes that the snapshot refers to: what its source does, less what died, and what came."""
        source = self._plan.source
        before = View(self._pool).space.histories[source.dataset.id].referenced(source.txg).stored if source else 0
        return before + tally.bytes - sum(stored for stored, _ in tally.dead.values())

    def _note_segment(self, mark: Mark) -> None:
        """A finished segment of a resumable receive: from here on it survives this process."""
        doc = {**self._doc, "tally": mark.tally.doc(), "state": list(mark.state), "last": list(mark.last)}
        if mark.write:
            doc["object"], doc["offset"] = mark.write
        doc["token"] = token_of(doc).encode()
        with self._pool.transaction() as t:
            t.put("receive", self._key, doc)
        self._doc = doc

    def complete(self, opening: Opening) -> None:
        """Replace the BEGIN: what makes a snapshot here knows its portable MAC when all records are written.

        Such a run is not what a kernel would send: it lacks the FREE records of holes, which a send adds.
        """
        self._plan = replace(self._plan, opening=opening, begin=opening.begin)
        self._whole = False

    def commit(self, end: SubEnd) -> Snapshot:
        """Everything came and agrees: one transaction makes the snapshot.

        Raises:
            Refused: what was there at the BEGIN is not there any more, or something is in the way.
        """
        assert self._inflow is not None
        tally = self._inflow.finish()
        with self._pool.transaction() as t:
            self._reservation.check(self._base + self._bytes)
            if int(self._refquota() or 0):
                self._refuse_to_refer(self._referred(tally))
            dataset = self._landed(t)
            dataset = self._update_dataset(t, dataset)
            dropped = self._roll_back(t, dataset)
            snapshot = self._put_snapshot(t, dataset, tally)
            self._unregister(t)
        self._charges.add(snapshot.dataset, self._base + self._bytes)
        with self._pool.afterwards(f"{snapshot.name} is received"):
            self.close()
            discard(self._pool, dropped)
            if not self._target.dry_run:
                sum_up(self._pool, snapshot.dataset)
        return snapshot

    def _unregister(self, t: Transaction) -> None:
        """The receive is over; a source whose destruction waited for it goes now."""
        t.delete("receive", self._key)
        self._reservation.end(t)
        source = self._plan.source
        now = self._pool.snapshot_at(source.dataset.id, source.txg) if source else None
        if now is not None:
            remove_if_deferred(self._pool, t, now)

    def _landed(self, t: Transaction) -> Dataset:
        """The dataset as it is now, when what was judged at the BEGIN still holds."""
        where = f"cannot receive {self._target.name}"
        source = self._plan.source
        if source is not None and self._pool.snapshot_at(source.dataset.id, source.txg) is None:
            raise Refused(f"{where}: {source.name}, its source, is not there any more")
        if self._dataset is None:
            refuse_open_streams(self._pool, self._plan.begin, nearest(self._pool, self._target.name), self._target)
            return self._make_dataset(t)
        now = self._pool.tree().get(self._dataset.id)
        if now is None:
            raise Refused(f"{where}: the dataset was destroyed meanwhile")
        refuse_open_streams(self._pool, self._plan.begin, now, self._target)
        if source is None and (self._pool.newest_snapshot(now) or has_runs(self._pool, now)):
            raise Refused(f"{where}: the dataset was received into meanwhile")
        refuse_needed(self._pool, where, self._plan.doomed)
        return now

    def _update_dataset(self, t: Transaction, dataset: Dataset) -> Dataset:
        plan, target = self._plan, self._target
        fields: Doc = {**target.fields, "raw": plan.begin.raw}
        crypt = plan.opening.crypt
        if crypt is not None:
            fields["crypt"] = {name: number(crypt, key) for name, key in DSL_CRYPTO.items()}
            fields.setdefault("encroot", dataset.doc.get("encroot", True))
        if plan.dataset is not None and (plan.source is None or plan.clone):
            fields["type"] = "volume" if plan.begin.type == ZVOL else "filesystem"
        if plan.dataset is not None and plan.clone and plan.source:
            fields["origin"] = {"dataset": plan.source.dataset.id, "txg": plan.source.txg}
        if "local" in fields:
            fields["local"] = {**dataset.doc["local"], **fields["local"]}
        return self._pool.update_dataset(t, dataset, **fields)

    def _roll_back(self, t: Transaction, dataset: Dataset) -> list[str]:
        """Give up what is newer than the source; returns the segments that nothing names any more."""
        source = self._plan.source
        if self._plan.clone or source is None:
            return []
        for snapshot in self._plan.doomed:
            self._pool.remove_snapshot(t, snapshot)
        return drop_after(self._pool, t, dataset, source.txg)

    def _put_snapshot(self, t: Transaction, dataset: Dataset, tally: Tally) -> Snapshot:
        plan, begin = self._plan, self._plan.begin
        key = txg_key(dataset.id, self.txg)
        run = {
            "txg": self.txg,
            "whole": self._whole,
            "from_txg": plan.source.txg if plan.source else 0,
            "fromguid": begin.fromguid,
            "features": int(begin.features),
            "maxblkid": plan.opening.maxblkid,
            **tally.doc(),
        }
        t.put("run", key, run)
        t.put("begin", key, plan.opening.doc())
        return self._pool.add_snapshot(
            *(t, dataset, self._target.snapshot, self.txg, begin.toguid),
            begin_bytes=charge.of_begin(plan.opening),
            creation=begin.creation_time,
            ivset_guid=plan.opening.ivset_guid,
            features=int(begin.features),
            **self._target.snapshot_fields,
        )

    @property
    def kept(self) -> tuple[DatasetName, str] | None:
        """The dataset that keeps what arrived, and its resume token, if there is anything."""
        if not (self._target.resumable and self.is_registered and self._dataset):
            return None
        doc = self._pool.catalog.get("receive", self._key)
        now = self._pool.tree().by_id.get(self._dataset.id)
        return (now.name, str(doc["token"])) if doc and now else None

    def abandon(self) -> None:
        """The stream failed: keep what a resumable receive has, else leave nothing."""
        if not self.is_registered:
            return
        if self._target.resumable:
            self._rest()
            return
        segments = self._inflow.tally.segments if self._inflow else []
        self.close()
        with self._pool.transaction() as t:
            t.delete("receive", self._key)
            self._reservation.end(t)
        discard(self._pool, segments)

    def _rest(self) -> None:
        """Close the segment in the making; from here on just what is kept takes room."""
        if self._inflow is not None:
            self._inflow.rest()
        with self._pool.transaction() as t:
            if t.get("receive", self._key):
                self._reservation.settle(t, kept_bytes(self._doc))

    def close(self) -> None:
        self._stack.close()


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
    )


@contextmanager
def land(pool: Pool, event: SubBegin, target: Target, charges: Charges | None = None) -> Iterator[ReceiveSession]:
    """A landing that leaves nothing half done, whatever happens inside.

    `charges`: kept from one snapshot of a stream to the next.

    Raises:
        Refused: the stream cannot land here (see judge).
        TryAgain: somebody else is receiving into the dataset, or destroying it.
    """
    with ExitStack() as stack:
        for name in _lock_names(pool, target):
            busy = f"cannot receive into {target.name}: dataset is busy"
            stack.enter_context(pool.store.lock(name, busy=busy, passing=name.startswith("name-")))
        state = _interrupted(pool, target)
        begun = state if state and goes_on(state, event, target) else None
        if begun:
            target = begun_target(target, begun)
        elif state and state["new"]:  # the dataset that was made for the partial snapshot is received into once more
            target = replace(target, force=True)
        plan = judge(pool, event, target, begun)
        resumed = resume(begun, event) if begun else None
        landing = ReceiveSession(pool, plan, target, resumed, charges or Charges(pool))
        try:
            landing.start(state)
            yield landing
        except BaseException:
            with suppress(ZkeepError, OSError):
                landing.abandon()
            raise
        finally:
            landing.close()
            if state and not resumed and landing.is_registered:
                discard(pool, state["tally"]["segments"])


def _lock_names(pool: Pool, target: Target) -> list[str]:
    dataset = pool.find(target.name)
    if dataset:
        return [lock_name(dataset)]
    return [f"name-{sha256(target.name.text.encode()).hexdigest()[:32]}"]


def _interrupted(pool: Pool, target: Target) -> Doc | None:
    dataset = pool.find(target.name)
    return pool.catalog.get("receive", dataset.key) if dataset else None


def give_up(pool: Pool, dataset: Dataset) -> None:
    """Forget the state of an interrupted receive (zfs receive -A).

    Raises:
        Refused: there is none.
    """
    with pool.store.lock(lock_name(dataset), busy=f"{dataset.name} is being received into"):
        state = pool.catalog.get("receive", dataset.key)
        if state is None:
            raise Refused(f"{dataset.name} has no resumable receive state to abort")
        with pool.transaction() as t:
            t.delete("receive", dataset.key)
            t.delete(KIND, dataset.key)
            source = pool.snapshot_at(*state["source"]) if state["source"] else None
            if source is not None:
                remove_if_deferred(pool, t, source)
            if state["new"] and not pool.snapshots(dataset):
                pool.remove_dataset(t, dataset)
    discard(pool, state["tally"]["segments"])
