"""The head of a dataset: its newest state, which may be newer than its newest snapshot.

A dataset that is written to where it is mounted is committed every few seconds. Each commit is a txg like that of any
receive, with a run and a BEGIN; but instead of a snapshot it makes a document `head`, one a dataset, which the next
commit replaces. So the runs between two snapshots have no pins, and compaction merges them as they age. To take a
snapshot is to give the head a name: nothing is written but a few documents.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from zkeep.clock import seconds_now
from zkeep.errors import Damaged, TryAgain
from zkeep.names import SnapshotName
from zkeep.pool.datasets import charge
from zkeep.pool.datasets.begin import Opening
from zkeep.pool.datasets.model import HEAD, Dataset, Pool, Snapshot
from zkeep.pool.store.catalog import Transaction
from zkeep.pool.types import Doc

NAME = "head"
"What it is called in messages, and in its BEGIN, until a snapshot gives it a name."
UNCHANGED = "unchanged"
"Field of a head: it holds what the newest snapshot holds, and was made so that another snapshot can name it."


@dataclass(frozen=True, slots=True)
class HeldMounts:
    """Datasets that are mounted, and whose mounts have promised to change nothing."""

    ids: Collection[int] = ()
    check: Callable[[], None] = lambda: None
    """Raises TryAgain if a mount has gone on: none waits for ever. To be asked under the locks of the datasets, which
    a commit needs."""


def mount_lock(dataset: Dataset) -> str:
    """The name of the lock that is held while a dataset is mounted read-write."""
    return f"live-{dataset.key}"


def is_mounted(pool: Pool, dataset: Dataset) -> bool:
    """Whether a process has a dataset mounted read-write."""
    try:
        with pool.store.lock(mount_lock(dataset), shared=True):
            return False
    except TryAgain:
        return True


def not_mounted(pool: Pool, dataset: Dataset, cannot: str) -> AbstractContextManager[None]:
    """While this is held, nobody mounts a dataset read-write.

    Raises:
        TryAgain: it is mounted so.
    """
    # A first mount has committed nothing yet, so only the lock tells. It is shared, as many may hold mounts off.
    return pool.store.lock(mount_lock(dataset), shared=True, busy=f"{cannot}: it is mounted: unmount it first")


def unnamed(pool: Pool, dataset: Dataset) -> Snapshot | None:
    """The newest state, if no snapshot names it."""
    doc = pool.catalog.get(HEAD, dataset.key)
    return Snapshot(dataset, doc) if doc else None


def newest_state(pool: Pool, dataset: Dataset) -> Snapshot | None:
    """The head, or the newest snapshot; None: nothing was ever written to it."""
    return unnamed(pool, dataset) or pool.newest_snapshot(dataset)


def last_snapshot(pool: Pool, dataset: Dataset) -> Snapshot | None:
    """The newest snapshot; of a clone that has none, the one that it began with."""
    newest = pool.newest_snapshot(dataset)
    return pool.snapshot_at(*dataset.origin) if newest is None and dataset.origin is not None else newest


def current_state(pool: Pool, dataset: Dataset) -> Snapshot | None:
    """What a dataset holds now: its newest state, or what a clone to which nothing was written began with."""
    return unnamed(pool, dataset) or last_snapshot(pool, dataset)


def as_it_is_now(pool: Pool, dataset: Dataset, state: Snapshot) -> Snapshot:
    """The state of a dataset, as documents say it now: it may have a name, or lie in the clone that was promoted."""
    now = current_state(pool, dataset)
    return now if now is not None and now.guid == state.guid else state


def state_at(pool: Pool, dataset_id: int, txg: int) -> Snapshot | None:
    """The snapshot or the head of this txg."""
    found = pool.snapshot_at(dataset_id, txg)
    if found is None and (dataset := pool.tree().get(dataset_id)) is not None:
        head = unnamed(pool, dataset)
        found = head if head is not None and head.txg == txg else None
    return found


def put(pool: Pool, t: Transaction, dataset: Dataset, doc: Doc) -> Snapshot:
    """Replace the head by a newer one, whose run and BEGIN are there."""
    # The older head's run stays: its records are still the newest state's. Only its BEGIN is of no use any more.
    before = unnamed(pool, dataset)
    if before is not None:
        t.delete("begin", before.key)
    now = seconds_now()
    fields: Doc = {"creation": now, "holds": {}, "local": {}, "received": {}}
    head = Snapshot(dataset, {**fields, **doc, "name": NAME, "createtxg": doc["txg"]})
    t.put(HEAD, dataset.key, head.doc)
    return head


def drop(t: Transaction, dataset: Dataset) -> None:
    """Forget the head: the dataset goes back to a snapshot."""
    head = t.get(HEAD, dataset.key)
    if head is not None:
        t.delete("begin", Snapshot(dataset, head).key)
        t.delete(HEAD, dataset.key)


def give_name(pool: Pool, t: Transaction, name: SnapshotName) -> Snapshot | None:
    """Make a snapshot of the head; None if a snapshot names the newest state already.

    Raises:
        Exists: the name is taken.
    """
    head = unnamed(pool, pool.dataset(name.dataset))
    if head is None:
        return None
    begin = pool.catalog.get("begin", head.key)
    if begin is None:
        raise Damaged(f"the catalog has lost the BEGIN of {head.dataset.name}")
    t.delete(HEAD, head.dataset.key)
    # The BEGIN under the snapshot's name and with its time; no MAC covers these.
    came = Opening.from_doc(begin)
    changed = replace(came.begin, toname=str(name).encode(), creation_time=seconds_now())
    opening = replace(came, header=changed.pack(came.byteorder))
    t.put("begin", head.key, opening.doc())
    # The head's document becomes the snapshot's, but for what a snapshot gets when it is made.
    new = "name", "txg", "guid", "createtxg", "creation", UNCHANGED
    own = {key: value for key, value in head.doc.items() if key not in new}
    own["begin_bytes"] = charge.of_begin(opening)
    return pool.add_snapshot(t, head.dataset, name.name, head.txg, head.guid, **own)
