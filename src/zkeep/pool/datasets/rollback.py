"""Roll a dataset back to one of its snapshots: newer ones are destroyed. Nothing is written between two receives, so
that is all that a rollback does; the next increment may then start from that snapshot.

Source: OpenZFS cmd/zfs/zfs_main.c zfs_do_rollback(), rollback_check(); module/zfs/dsl_dataset.c
dsl_dataset_rollback_check().
"""

from __future__ import annotations

from collections.abc import Iterable

from zkeep.errors import Refused
from zkeep.names import SnapshotName
from zkeep.pool.datasets import partial
from zkeep.pool.datasets.destroy import DestroyOptions, DestroyPlan, add_clones, check
from zkeep.pool.datasets.model import Bookmark, Pool, Snapshot
from zkeep.pool.datasets.view import View


def plan_rollback(view: View, name: SnapshotName, options: DestroyOptions) -> DestroyPlan:
    """What has to go: newer snapshots and bookmarks (`recursive`), and clones of them (`clones`).

    Raises:
        Refused: more would go than the options allow, one is held, or an interrupted receive needs one.
    """
    snapshot = view.pool.snapshot(name)
    # Everything newer goes: snapshots, bookmarks, and with -R clones of them with all that is below.
    newer = [s for s in view.snapshots[snapshot.dataset.id] if s.txg > snapshot.txg]
    plan = DestroyPlan(snapshots=list(newer), back_to=(snapshot.dataset, snapshot.txg))
    bookmarks = [b for b in view.pool.bookmarks(snapshot.dataset) if b.txg > snapshot.txg]
    things: list[Snapshot | Bookmark] = [*newer, *bookmarks]
    if things and not (options.recursive or options.clones):
        reason = "more recent snapshots or bookmarks exist"
        what = "snapshots and bookmarks"
        raise _refused(name, reason, "-r", what, [str(thing.name) for thing in things])
    clones = [view.pool.called(c) for s in newer for c in view.tree.clones(s.dataset, s.txg)]
    if clones and not options.clones:
        raise _refused(name, "clones of previous snapshots exist", "-R", "clones and dependents", clones)
    if options.clones:
        add_clones(view, plan)
    if snapshot.dataset.id in {d.id for d in plan.datasets}:
        raise Refused(f"cannot rollback to '{name}': the dataset lies below a clone of its own newer snapshots")
    _check_receives(view.pool, plan, snapshot)
    try:
        check(view, plan, options)
    except Refused as error:
        raise Refused(f"cannot rollback to '{name}': {error}") from None
    return plan


def _refused(name: SnapshotName, reason: str, letter: str, what: str, names: Iterable[str]) -> Refused:
    listed = list(names)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    hint = f"use '{letter}' to force deletion of the following {what}: {', '.join(listed[:5])}{more}"
    return Refused(f"cannot rollback to '{name}': {reason}; {hint}")


def _check_receives(pool: Pool, plan: DestroyPlan, snapshot: Snapshot) -> None:
    """An interrupted receive goes on from its source, which must stay."""
    for _, state in partial.receives(pool.catalog):
        dataset_id, txg = state["source"] or (0, 0)
        if dataset_id == snapshot.dataset.id and txg > snapshot.txg:
            source = pool.snapshot_at(dataset_id, txg)
            raise Refused(
                f"cannot rollback to '{snapshot.name}': an interrupted receive needs "
                f"{source.name if source else 'a newer snapshot'}; end it, or give it up with 'zkeep receive -A'"
            )
    for dataset in plan.datasets:
        if partial.state_of(pool.catalog, dataset):
            raise Refused(f"cannot rollback to '{snapshot.name}': {dataset.name} has the state of a receive")
