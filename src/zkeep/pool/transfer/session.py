"""One snapshot's stream on its way into a dataset: admitted at its BEGIN, written, and committed at its END.

All or nothing: what the batches bring lies in segments that no document names until the one transaction that makes the
snapshot. A resumable receive registers its finished segments as it goes; they are still invisible.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from hashlib import sha256
from types import TracebackType
from typing import Self

from zkeep.errors import Refused, TryAgain, ZkeepError
from zkeep.format.checksum import fletcher4
from zkeep.format.events import Batch, SubBegin, SubEnd
from zkeep.format.objtypes import ObjsetType
from zkeep.format.records import NATIVE, BeginFlag, Feature
from zkeep.names import DatasetName
from zkeep.pool.datasets import charge, head
from zkeep.pool.datasets.begin import Opening, number
from zkeep.pool.datasets.destroy import drop_after, lock_name
from zkeep.pool.datasets.history import History, history_of, past_of
from zkeep.pool.datasets.model import Dataset, Pool, Snapshot, txg_key
from zkeep.pool.datasets.namespace import remove_if_deferred
from zkeep.pool.datasets.no_room import QuotaExceeded, note_no_room, noting_no_room
from zkeep.pool.datasets.orphans import discard, reading
from zkeep.pool.datasets.partial import MALFORMED, is_malformed, state_of, state_or_malformed
from zkeep.pool.datasets.summaries import sum_up
from zkeep.pool.datasets.view import View
from zkeep.pool.store.catalog import Transaction
from zkeep.pool.timeline.ingest import BeginTraits, RecordCounter, SegmentWriter, Small, Tally
from zkeep.pool.timeline.resolve import Kind
from zkeep.pool.timeline.resume import Resumed
from zkeep.pool.transfer.admit import (
    ReceivePlan,
    ReceiveTarget,
    admit,
    nearest,
    refuse_needed,
    refuse_open_streams,
)
from zkeep.pool.transfer.continued import begun_target, goes_on, resume
from zkeep.pool.transfer.registration import (
    Registration,
    make_dataset,
    refuse_no_room,
    register,
    register_again,
)
from zkeep.pool.transfer.reserve import KIND, Charges, refuse_full_disk, with_room
from zkeep.pool.types import Doc

DSL_CRYPTO = {
    "suite": "DSL_CRYPTO_SUITE",
    "guid": "DSL_CRYPTO_GUID",
    "version": "DSL_CRYPTO_VERSION",
    "keyformat": "keyformat",
    "pbkdf2iters": "pbkdf2iters",
}


LOCKED_ANEW = 10
"How often a dataset is looked up again that others replace while it is locked."


class ReceiveSession:
    """The receive of one substream, from open_session(): add() its batches, then commit() it.

    Leaving the `with` block without a commit keeps what a resumable receive has, and removes everything else.
    """

    def __init__(
        self,
        pool: Pool,
        plan: ReceivePlan,
        target: ReceiveTarget,
        charges: Charges,
        registration: Registration,
        writer: SegmentWriter | None,
        work: ExitStack,
        locks: ExitStack,
    ) -> None:
        """`writer`: None for a snapshot without records."""
        self._pool = pool
        self._charges = charges
        self._plan = plan
        self._target = target
        self._registration = registration
        self._writer = writer
        self._work = work
        "What the receive has open; closed before its files are looked at again."
        self._locks = locks
        "The dataset's locks, and `work`; closed last."
        self._committed = False
        self._whole = not target.excerpt
        "Whether the records are exactly what a sender sent."

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._locks:
            if not self._committed:
                with suppress(ZkeepError, OSError):
                    self._abandon()
                note_no_room(self._pool, self._target.name, error, dry_run=self._target.dry_run)

    @property
    def txg(self) -> int:
        return self._registration.txg

    @property
    def kept(self) -> tuple[DatasetName, str] | None:
        """The dataset that keeps what arrived, and its resume token, if there is anything."""
        return self._registration.kept

    def add(self, batch: Batch) -> None:
        """Write the records of one batch. Raises QuotaExceeded."""
        # Room is reserved before the bytes are written: a quota cannot be passed by even one batch.
        assert self._writer is not None
        batch = self._writer.new_part(batch)
        self._registration.grow(len(batch.buffer))
        refuse_full_disk(self._pool, self._target.name)
        self._check_refquota(self._writer.tally.bytes)
        self._writer.add(batch)

    def _check_refquota(self, size: int) -> None:
        """Refuse a snapshot that refers to more bytes than refquota allows."""
        limit = int(self._refquota() or 0)
        if limit and size > limit:
            raise QuotaExceeded(f"cannot receive {self._target.name}: the quota is used up (refquota)")

    def _refquota(self) -> str | None:
        settings: dict[str, str | None] = self._target.fields.get("local", {})
        dataset = self._registration.dataset
        # -o of this receive has the last word; else the property as it is now, which may have been set meanwhile.
        if "refquota" in settings or dataset is None:
            return settings.get("refquota")
        now = self._pool.tree().get(dataset.id)
        return View(self._pool).policy(now, "refquota") if now else None

    @property
    def snapshot_name(self) -> str:
        return self._target.snapshot

    def rename(self, name: str, fields: Doc) -> None:
        """Let the snapshot have another name, and these fields, when it is committed."""
        self._target = replace(self._target, snapshot=name, snapshot_fields=fields)

    def complete(self, opening: Opening) -> None:
        """Replace the BEGIN: what makes a snapshot here knows its portable MAC when all records are written.

        Such a run is not what a kernel would send: it lacks the FREE records of holes, which a send adds.
        """
        self._plan = replace(self._plan, opening=opening, begin=opening.begin)
        self._whole = False

    def commit(self, end: SubEnd) -> Snapshot:
        """Make the snapshot, in one transaction, after all records have come.

        Raises:
            Refused: what was there at the BEGIN is not there any more, or something is in the way.
        """
        tally = self._writer.finish() if self._writer else Tally()
        with self._pool.transaction() as t:
            snapshot, dropped = self._make(t, tally)
        # From here on the snapshot names the segments: whatever fails or is interrupted must leave them.
        self._committed = True
        with self._pool.afterwards(f"{snapshot.name} is received"):
            self._registration.committed()
            self._charge(snapshot)
            self._work.close()
            discard(self._pool, dropped)
            if not self._target.dry_run:
                sum_up(self._pool, snapshot.dataset)
        return snapshot

    def _make(self, t: Transaction, tally: Tally) -> tuple[Snapshot, list[str]]:
        """Make the snapshot; also returns segments that nothing names once this is committed."""
        # Check again what may have changed since the BEGIN.
        self._registration.check(t)
        tally = self._write_now(tally)
        source = self._follow_source(t)
        if int(self._refquota() or 0):
            # What the source refers to, less what died, and what came.
            before = View(self._pool).history(source.dataset).referenced(source.txg).stored if source else 0
            self._check_refquota(before + tally.bytes - sum(stored for stored, _ in tally.dead.values()))
        dataset = self._current_dataset(t)
        # Then the dataset, its newer snapshots (-F), the run and the snapshot; the registration goes with them.
        dataset = self._update_dataset(t, dataset)
        for doomed in self._plan.doomed:
            self._pool.remove_snapshot(t, doomed)
        # One that begins again, as what was there was destroyed, may have runs that nothing needs.
        goes_back_to = source.txg if source is not None and not self._plan.clone else 0
        dropped = drop_after(self._pool, t, dataset, goes_back_to)
        snapshot = self._put_snapshot(t, dataset, tally)
        # End the receive; a source whose destruction waited for it is destroyed now.
        self._registration.remove(t)
        now = self._pool.snapshot_at(source.dataset.id, source.txg) if source else None
        if now is not None:
            remove_if_deferred(self._pool, t, now)
        return snapshot, dropped

    def _charge(self, snapshot: Snapshot) -> None:
        """Count what was made under the quotas above it."""
        self._charges.add(snapshot.dataset, self._registration.base + self._registration.size)

    def _write_now(self, tally: Tally) -> Tally:
        """Write, inside of the transaction, what add() did not; returns what the run holds."""
        return tally

    def _follow_source(self, t: Transaction) -> Snapshot | None:
        """What the stream follows, wherever it is now: a promotion may have moved it to another dataset."""
        at, known = self._registration.source(t), self._plan.source
        if known is not None and at is not None and at != (known.dataset.id, known.txg):
            moved = head.state_at(self._pool, *at)
            if moved is not None and moved.guid == known.guid:
                self._plan = replace(self._plan, source=moved)
        return self._plan.source

    def _current_dataset(self, t: Transaction) -> Dataset:
        """The dataset as it is now, if what was checked at the BEGIN still holds; it is made if need be."""
        where = f"cannot receive {self._target.name}"
        source, dataset = self._plan.source, self._registration.dataset
        # 1. The source is still there.
        if source is not None and head.state_at(self._pool, source.dataset.id, source.txg) is None:
            raise Refused(f"{where}: {source.name}, its source, is not there any more")
        # 2. A new dataset is made, if nothing above forbids it by now.
        if dataset is None:
            refuse_open_streams(self._pool, self._plan.begin, nearest(self._pool, self._target.name), self._target)
            return make_dataset(self._pool, t, self._plan, self._target)
        # 3. An old one is the same, and still has no past where the stream needs none.
        now = self._pool.tree().get(dataset.id)
        if now is None:
            raise Refused(f"{where}: the dataset was destroyed meanwhile")
        refuse_open_streams(self._pool, self._plan.begin, now, self._target)
        begins = source is None or self._plan.clone
        if (source is None and now.origin) or (begins and past_of(self._pool, now, self._plan.doomed)):
            raise Refused(f"{where}: the dataset was received into meanwhile")
        # 4. Nothing that goes became needed.
        refuse_needed(self._pool, where, self._plan.doomed)
        return now

    def _update_dataset(self, t: Transaction, dataset: Dataset) -> Dataset:
        """Put into the dataset's document what the stream brings: properties, keys, and for a new one its type."""
        plan, target = self._plan, self._target
        fields: Doc = {**target.fields, "raw": plan.begin.raw}
        # The BEGIN of a raw stream says which keys the blocks are encrypted with, and how those are wrapped.
        crypt = plan.opening.crypt
        if crypt is not None:
            fields["crypt"] = {name: number(crypt, key) for name, key in DSL_CRYPTO.items()}
            fields.setdefault("encroot", dataset.doc.get("encroot", True))
        # A stream onto an existing empty dataset makes it what the stream is of: a volume, or a clone.
        if plan.dataset is not None and (plan.source is None or plan.clone):
            fields["type"] = "volume" if plan.begin.type == ObjsetType.VOLUME else "filesystem"
        if plan.dataset is not None and plan.clone and plan.source:
            fields["origin"] = {"dataset": plan.source.dataset.id, "txg": plan.source.txg}
        if target.head and not target.snapshot_fields.get(head.UNCHANGED):
            fields["live"] = True
        if "local" in fields:
            fields["local"] = {**dataset.doc["local"], **fields["local"]}
        return self._pool.update_dataset(t, dataset, **fields)

    def _put_snapshot(self, t: Transaction, dataset: Dataset, tally: Tally) -> Snapshot:
        plan, begin = self._plan, self._plan.begin
        key = txg_key(dataset.id, self.txg)
        # Three documents: the run (which segments hold the records), its BEGIN (needed to send it again), the
        # snapshot.
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
        fields: Doc = {
            "begin_bytes": charge.of_begin(plan.opening),
            "creation": begin.creation_time,
            "ivset_guid": plan.opening.ivset_guid,
            "features": int(begin.features),
            **self._target.snapshot_fields,
        }
        if self._target.head:
            return head.put(self._pool, t, dataset, {"guid": begin.toguid, "txg": self.txg, **fields})
        return self._pool.add_snapshot(t, dataset, self._target.snapshot, self.txg, begin.toguid, **fields)

    def _abandon(self) -> None:
        """The stream failed: keep what a resumable receive has, else leave nothing."""
        if self._writer is None:
            return
        # A resumable receive closes its segment, so that what is durable can be gone on from.
        if self._target.resumable:
            try:
                self._writer.keep()
            finally:
                self._registration.settle()
            return
        self._work.close()
        with self._pool.transaction() as t:
            if not self._registration.is_there(t):
                return  # the snapshot is committed: it was interrupted before that was noted
            self._registration.remove(t)
        discard(self._pool, self._writer.tally.segments)


def open_session(pool: Pool, event: SubBegin, target: ReceiveTarget, charges: Charges | None = None) -> ReceiveSession:
    """Begin to receive one snapshot; use the session as a context manager.

    `charges`: kept from one snapshot of a stream to the next.

    Raises:
        Refused: the stream cannot be received here (see admit).
        TryAgain: another process is receiving into the dataset, or destroying it.
    """
    charges = charges or Charges(pool)
    with noting_no_room(pool, target.name, dry_run=target.dry_run), ExitStack() as locks:
        # 1. No other process may receive into the dataset, or destroy it.
        dataset = locked(pool, target, locks)
        # 2. May it be received at all? Nothing was changed so far.
        with pool.catalog.reading():
            target, state, begun, plan = admitted(pool, event, target, dataset)
        refuse_full_disk(pool, target.name)
        if dataset is not None and state is MALFORMED:
            _forget_malformed(pool, dataset)
            state = None
        resumed = resume(begun, event) if begun else None
        # 3. Register it. As long as `readers` is held, and so until the end, its files are not taken for orphans.
        replaced: list[str] = []
        locks.callback(discard, pool, replaced)
        work = locks.enter_context(ExitStack())
        work.enter_context(reading(pool))
        make = partial(register_again, pool, target, charges, resumed) if resumed else partial(
            register, pool, plan, target, charges, state
        )
        registration = with_room(pool, make)
        work.callback(registration.close)
        if state and not resumed:
            replaced += state["tally"]["segments"]
        # 4. Open the past that it follows, and the writer. From here on compaction leaves the runs of the past alone.
        try:
            writer = open_writer(pool, plan, target, registration, resumed, work)
        except BaseException:
            with suppress(ZkeepError, OSError):
                if target.resumable:
                    registration.settle()
                else:
                    with pool.transaction() as t:
                        registration.remove(t)
            raise
        return ReceiveSession(pool, plan, target, charges, registration, writer, work, locks.pop_all())


def judge(pool: Pool, event: SubBegin, target: ReceiveTarget, charges: Charges) -> None:
    """Refuse what open_session() would refuse, but for what is busy now. It changes nothing, so it may be called
    inside a transaction.

    Raises:
        Refused: the stream cannot be received here.
    """
    target, _, begun, plan = admitted(pool, event, target, pool.find(target.name))
    refuse_full_disk(pool, target.name)
    if begun:
        resume(begun, event)
    refuse_no_room(pool, plan, target, charges)


def admitted(
    pool: Pool, event: SubBegin, target: ReceiveTarget, dataset: Dataset | None
) -> tuple[ReceiveTarget, Doc | None, Doc | None, ReceivePlan]:
    """The decision at a BEGIN; also returns the partial receive that the dataset keeps (or MALFORMED), and the same if
    the stream goes on with it; else it replaces it.

    Raises:
        Refused: see admit.
    """
    state = state_or_malformed(pool.catalog, dataset) if dataset else None
    if state is MALFORMED and dataset is not None and not past_of(pool, dataset):
        target = replace(target, force=True)  # it may have been made for that partial receive
    begun = state if state and goes_on(state, event, target) else None
    if begun:
        target = begun_target(target, begun, pool.dataset(target.name))
    elif state and state["new"]:  # the dataset was made for the partial snapshot, so it may be overwritten
        target = replace(target, force=True)
    return target, state, begun, admit(pool, event, target, begun)


def locked(pool: Pool, target: ReceiveTarget, locks: ExitStack) -> Dataset | None:
    """Lock the dataset, or where there is none yet, its name; returns the dataset as it is under the lock.

    Raises:
        TryAgain: another process has the lock.
    """
    busy = f"cannot receive into {target.name}: dataset is busy"
    for _ in range(LOCKED_ANEW):
        with ExitStack() as stack:
            found = pool.find(target.name)
            name = lock_name(found) if found else f"name-{sha256(target.name.text.encode()).hexdigest()[:32]}"
            stack.enter_context(pool.store.lock(name, busy=busy, passing=found is None))
            # It may have been made, renamed or destroyed before the lock was ours: then that was another's lock.
            there = pool.find(target.name)
            if (there and there.id) != (found and found.id):
                continue
            if there is not None and not target.head:
                stack.enter_context(head.not_mounted(pool, there, f"cannot receive into {target.name}"))
            locks.push(stack.pop_all())
            return there
    raise TryAgain(busy)


def _forget_malformed(pool: Pool, dataset: Dataset) -> None:
    """Give up a partial receive whose document nothing can be done with; the caller has the dataset's lock."""
    pool.warn(f"{dataset.name}: its partial receive is not what was stored, and is given up")
    with pool.transaction() as t:
        t.delete("receive", dataset.key)
        t.delete(KIND, dataset.key)


def open_writer(
    pool: Pool,
    plan: ReceivePlan,
    target: ReceiveTarget,
    registration: Registration,
    resumed: Resumed | None,
    work: ExitStack,
    *,
    small: Small | None = None,
) -> SegmentWriter:
    """The writer of the records; `work` closes it, and what it has open of the past."""
    opening, begin, past = plan.opening, plan.begin, plan.source
    # The first stream with large blocks onto a dataset without: files keep their old blocks.
    large = Feature.LARGE_BLOCKS
    grows_blocks = bool(past and begin.features & large and not Feature(past.doc["features"]) & large)
    history = history_of(pool, past.dataset).upto(past.txg) if past else History([])
    timeline = work.enter_context(history.timeline(pool.store, pool.runs.recent))
    source = BeginTraits(
        big_endian=opening.byteorder == "big",
        spill_flags=bool(begin.flags & BeginFlag.SPILL_BLOCK),
        kind=Kind(begin.raw, grows_blocks),
        bare=target.excerpt,
    )
    # Records carry the running checksum of the stream, which begins with BEGIN.
    state = fletcher4(opening.header + opening.payload, swap=opening.byteorder != NATIVE)
    note = registration.note if target.resumable and not small else None
    writer = RecordCounter if target.dry_run else SegmentWriter
    if resumed:
        resumed = replace(resumed, doc=registration.doc)
    return work.enter_context(
        writer(
            *(pool.store, registration.txg, source, timeline, history.runs, state, note, resumed),
            recent=pool.runs.recent,
            small=small,
        )
    )


def give_up(pool: Pool, dataset: Dataset) -> None:
    """Forget the state of an interrupted receive (zfs receive -A).

    Raises:
        Refused: there is none.
    """
    busy = f"{dataset.name} is being received into"
    with pool.store.lock(lock_name(dataset), busy=busy), pool.transaction() as t:
        state = state_of(t, dataset)
        if state is None and not is_malformed(t, dataset):
            raise Refused(f"{dataset.name} has no resumable receive state to abort")
        t.delete("receive", dataset.key)
        t.delete(KIND, dataset.key)
        if state is not None:
            _remove_made_for(pool, t, dataset, state)
    # Of a malformed one nobody knows the segments; what no document names is removed by compact.sweep().
    discard(pool, state["tally"]["segments"] if state is not None else [])


def _remove_made_for(pool: Pool, t: Transaction, dataset: Dataset, state: Doc) -> None:
    """Remove what stayed for a partial receive: a source that is to be destroyed, a dataset that was made for it."""
    source = pool.snapshot_at(*state["source"]) if state["source"] else None
    if source is not None:
        remove_if_deferred(pool, t, source)
    # Not if something else is in the dataset by now.
    empty = head.newest_state(pool, dataset) is None and pool.tree().within(dataset) == [dataset]
    if state["new"] and empty:
        pool.remove_dataset(t, dataset)
