"""Steps: a package of `zkeep encrypt` may bring a snapshot in several increments, whose snapshots nobody asked for.

Such a step is named after its guid, `@step-GUID`. It goes when the next snapshot of the package is there, so that in
the end only the sender's own are left. Where the package broke off, the last step stays until a stream that does not go
on from it is there.

Who may add snapshots and destroy none may send a package, and call in it a step what he likes. So nothing goes for a
stream that is only announced: steps are removed in the transaction that makes the snapshot in their place, and nothing
else with them, least of all datasets.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import takewhile

from zkeep.errors import Refused
from zkeep.format.records import Begin
from zkeep.names import DatasetName
from zkeep.pool.datasets import destroy
from zkeep.pool.datasets.contents import STEP
from zkeep.pool.datasets.model import Dataset, Pool, Snapshot
from zkeep.pool.datasets.partial import state_of
from zkeep.pool.datasets.view import View
from zkeep.pool.types import Doc

RECEIVED_STEP = "received_step"
"""Field of a snapshot's document: it is a step that was received. True if its dataset was made for it, and so may be
overwritten without -F; else False."""


def is_step(begin: Begin, snapshot: str) -> bool:
    """Whether a snapshot in a package is a step."""
    return snapshot == f"step-{begin.toguid:016x}"


def fields(pool: Pool, name: DatasetName) -> Doc:
    """Fields of a step's document."""
    dataset = pool.find(name)
    return {STEP: True, RECEIVED_STEP: dataset is None or is_made_for(pool, dataset)}


def is_made_for(pool: Pool, dataset: Dataset) -> bool:
    """Whether a dataset was made for the steps that are all it has, or for the partial receive of the first one."""
    snapshots = pool.snapshots(dataset) if _has_steps(pool, dataset) else []
    if pool.newest_snapshot(dataset) is None:
        partial = state_of(pool.catalog, dataset)
        return partial is not None and bool(partial["new"])
    return bool(snapshots) and all(snapshot.doc.get(RECEIVED_STEP) is True for snapshot in snapshots)


def _has_steps(pool: Pool, dataset: Dataset) -> bool:
    newest = pool.newest_snapshot(dataset)
    return newest is not None and RECEIVED_STEP in newest.doc


def in_the_way(pool: Pool, dataset: Dataset, begin: Begin) -> list[Snapshot]:
    """The steps of a package that broke off, if they are the newest snapshots and a stream does not go on from them.

    They go when its snapshot is there.
    """
    if not _has_steps(pool, dataset):
        return []
    newest_first = reversed(pool.snapshots(dataset))
    steps = list(takewhile(lambda snapshot: RECEIVED_STEP in snapshot.doc, newest_first))[::-1]
    # The stream goes on from a step, or brings it again: then the steps are needed.
    return [] if {begin.fromguid, begin.toguid} & {step.guid for step in steps} else steps


def remove_older(pool: Pool, name: DatasetName) -> None:
    """Remove the steps that are older than the newest snapshot, which has what they have."""
    dataset = pool.find(name)
    steps = [s for s in pool.snapshots(dataset)[:-1] if RECEIVED_STEP in s.doc] if dataset is not None else []
    if dataset is not None and steps:
        done = f"the newest snapshot of {name} is received"
        with pool.afterwards(done, "the next stream"), suppress(Refused):
            plan, newest = destroy.DestroyPlan(snapshots=steps), max(s.txg for s in pool.snapshots(dataset))
            destroy.check(View(pool), plan, destroy.DestroyOptions())

            def decide_again() -> None:
                if pool.snapshot_at(dataset.id, newest) is None:
                    raise Refused(f"cannot destroy steps of {name}: its newest snapshot was destroyed meanwhile")

            destroy.execute(pool, plan, decide_again=decide_again)
