"""Promote a clone: the past that it shares with its origin becomes its own, and its origin becomes a clone of it.

Only documents move, under keys of the other dataset: runs, BEGINs and snapshots up to the origin's txg, and bookmarks
of that time. Segments stay where they are.

Source: OpenZFS module/zfs/dsl_dataset.c dsl_dataset_promote_check(), dsl_dataset_promote_sync();
module/zfs/dsl_crypt.c dsl_dataset_promote_crypt_sync().
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack

from zkeep.errors import Refused
from zkeep.names import DatasetName
from zkeep.pool.datasets import head, keyrecords, partial
from zkeep.pool.datasets.destroy import lock_name
from zkeep.pool.datasets.model import Dataset, Pool, txg_key
from zkeep.pool.store.catalog import Transaction
from zkeep.pool.types import Doc


def promote(pool: Pool, name: DatasetName, mounts: head.HeldMounts | None = None) -> None:
    """Promote a clone in a transaction of its own. Raises Refused, TryAgain: nothing was changed.

    `mounts`: those of both datasets that are mounted may stay so.
    """
    mounts = mounts or head.HeldMounts()
    with ExitStack() as stack, pool.transaction() as t:
        clone = pool.dataset(name)
        lock_both(pool, clone, stack, set(), mounts.ids)
        mounts.check()
        promote_in(pool, t, clone)


def lock_both(
    pool: Pool, clone: Dataset, stack: ExitStack, held: set[int], held_still: Collection[int] = ()
) -> None:
    """Lock both datasets against receives, destroys and mounts. `held`: ids of datasets that are locked already.

    Raises:
        TryAgain: one is running, or mounted read-write.
    """
    for dataset_id in {clone.id, *(clone.origin[:1] if clone.origin else ())} - held:
        dataset = pool.by_id(dataset_id)
        busy = f"cannot promote {clone.name}: {dataset.name} is busy"
        stack.enter_context(pool.store.lock(lock_name(dataset), busy=busy))
        # A mount commits on top of the newest state of its dataset, which may move to the other one. If it holds still,
        # it finds it there: it knows it by its guid.
        if dataset_id not in held_still:
            stack.enter_context(head.not_mounted(pool, dataset, f"cannot promote {clone.name}: {dataset.name}"))
        held.add(dataset_id)


def promote_in(pool: Pool, t: Transaction, clone: Dataset) -> None:
    """Promote a clone inside a transaction, under the locks.

    Raises:
        Refused: it is no clone, or a snapshot or bookmark of its origin has a name that it has given itself.
    """
    # before    fs@a --- fs@b --- fs@c         after    clone@a --- clone@b --- clone
    #                   \                                                 \
    #                    clone                                            fs@c   (fs is a clone of clone@b)
    if clone.origin is None:
        raise Refused(f"cannot promote {clone.name}: not a cloned filesystem")
    origin_id, txg = clone.origin
    origin = pool.by_id(origin_id)
    if not pool.sees(origin.name):
        raise Refused(f"cannot promote {clone.name}: permission denied: its origin is {pool.called(origin)}")
    # 1. What the clone shares with its origin moves to the clone; names in it must be free there.
    _check_names(pool, clone, origin, txg)
    _move(t, origin, clone, txg)
    _redirect(pool, t, origin, clone, txg)
    # 2. The clone takes the origin's place in the chain of clones, and in the tree of keys.
    grandparent = {"dataset": origin.origin[0], "txg": origin.origin[1]} if origin.origin else None
    # Copy the wraps that were made here: they open what moves, because a clone has its origin's keys.
    if not any(keyrecords.local(pool, clone)):
        for record in reversed(list(keyrecords.local(pool, origin))):
            keyrecords.add(pool, t, clone, record.fields)
    # The origin's key, if it was a root, is the clone's from now on, and the origin inherits it.
    fields = [name for name in ("encroot", "own_key") if origin.doc.get(name) and not clone.doc.get(name)]
    fields = fields if clone.doc.get("crypt") else []
    mine: Doc = dict.fromkeys(fields, True)
    theirs: Doc = dict.fromkeys(fields, False)
    location = origin.doc["local"].get("keylocation")
    if fields and location is not None:
        mine["local"] = {"keylocation": location, **clone.doc["local"]}
        theirs["local"] = {name: text for name, text in origin.doc["local"].items() if name != "keylocation"}
    # When the clone was promoted; and up to when a receiver's older state needs two promotions in one chain of clones
    # to follow, because the origin was a clone or was promoted itself.
    now = t.next_txg()
    chained = now if origin.origin else origin.doc.get("promoted", 0)
    chained = max(chained, clone.doc.get("chain_promoted", 0))
    pool.update_dataset(t, clone, origin=grandparent, promoted=now, chain_promoted=chained, **mine)
    pool.update_dataset(t, origin, origin={"dataset": clone.id, "txg": txg}, **theirs)


def _check_names(pool: Pool, clone: Dataset, origin: Dataset, txg: int) -> None:
    moved = [s.doc["name"] for s in pool.snapshots(origin) if s.txg <= txg]
    if clash := {s.doc["name"] for s in pool.snapshots(clone)} & set(moved):
        raise Refused(
            f"cannot promote {clone.name}: conflicting snapshot '{min(clash)}' from parent '{origin.name}'; rename one"
        )
    moved = [b.doc["name"] for b in pool.bookmarks(origin) if b.txg <= txg]
    if clash := {b.doc["name"] for b in pool.bookmarks(clone)} & set(moved):
        raise Refused(f"cannot promote {clone.name}: conflicting bookmark '{min(clash)}' from parent '{origin.name}'")


def _move(t: Transaction, origin: Dataset, clone: Dataset, txg: int) -> None:
    """Move the documents of txgs up to `txg` under keys of the clone."""
    for kind in ("run", "begin", "snapshot"):
        for key, doc in t.scan(kind, origin.key + "/"):
            at = int(key.rpartition("/")[2])
            if at <= txg:
                t.delete(kind, key)
                t.put(kind, txg_key(clone.id, at), doc)
    for key, doc in t.scan("bookmark", origin.key + "/"):
        if doc["txg"] <= txg:
            t.delete("bookmark", key)
            t.put("bookmark", f"{clone.key}/{doc['name']}", doc)


def _redirect(pool: Pool, t: Transaction, origin: Dataset, clone: Dataset, txg: int) -> None:
    """Point clones of, and receives onto, a txg that moved to the promoted clone."""
    for other in pool.tree().clones(origin):
        if other.id != clone.id and other.origin and other.origin[1] <= txg:
            pool.update_dataset(t, other, origin={"dataset": clone.id, "txg": other.origin[1]})
    for key, doc in partial.receives(t):
        source = doc.get("source")
        if source and source[0] == origin.id and source[1] <= txg:
            # One under way has read what it needs, and its files stay. A partial one must find its source again.
            t.put("receive", key, {**doc, "source": [clone.id, source[1]]})
