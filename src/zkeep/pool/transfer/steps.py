"""Steps: a package of `zkeep encrypt` may bring a snapshot in several increments, whose snapshots nobody asked for.

Such a step is named after its guid, `@step-GUID`. It goes when the next snapshot of the package is there, so that in
the end only the sender's own are left. Where the package broke off, the last step stays until the next stream that does
not go on from it.
"""

from __future__ import annotations

from contextlib import suppress

from zkeep.errors import Refused
from zkeep.format.records import Begin, Feature
from zkeep.names import DatasetName
from zkeep.pool.datasets import destroy
from zkeep.pool.datasets.contents import STEP
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.datasets.view import View
from zkeep.pool.types import Doc

RECEIVED_STEP = "received_step"
"Field of a snapshot's document: it is a step that was received. True if its dataset was made for it, else False."


def is_step(begin: Begin, snapshot: str) -> bool:
    """Whether a snapshot in a package is a step."""
    return snapshot == f"step-{begin.toguid:016x}"


def fields(pool: Pool, name: DatasetName) -> Doc:
    """Fields of a step's document."""
    dataset = pool.find(name)
    made_for = dataset is None or all(_was_made_for(snapshot) for snapshot in pool.snapshots(dataset))
    return {STEP: True, RECEIVED_STEP: made_for}


def _was_made_for(snapshot: Snapshot) -> bool:
    return snapshot.doc.get(RECEIVED_STEP) is True


def make_way(pool: Pool, begin: Begin, name: DatasetName) -> None:
    """Remove the steps of a package that broke off, unless a stream goes on from them."""
    dataset = pool.find(name)
    newest = pool.newest_snapshot(dataset) if dataset is not None else None
    if dataset is None or newest is None or RECEIVED_STEP not in newest.doc or begin.features & Feature.RESUMING:
        return
    snapshots = pool.snapshots(dataset)
    steps = [snapshot for snapshot in snapshots if RECEIVED_STEP in snapshot.doc]
    # The stream goes on from a step, or brings it again: then the steps are needed.
    if {begin.fromguid, begin.toguid} & {step.guid for step in steps}:
        return
    with suppress(Refused):  # something holds one: the stream is refused for what is there
        if len(steps) == len(snapshots) and _was_made_for(steps[0]):
            destroy.execute(pool, destroy.plan_dataset(View(pool), name, destroy.DestroyOptions(recursive=True)))
        else:
            destroy.execute(pool, destroy.plan_steps(View(pool), dataset, steps))


def remove_older(pool: Pool, name: DatasetName) -> None:
    """Remove the steps that are older than the newest snapshot, which has what they have."""
    dataset = pool.find(name)
    steps = [s for s in pool.snapshots(dataset)[:-1] if RECEIVED_STEP in s.doc] if dataset is not None else []
    if dataset is not None and steps:
        done = f"the newest snapshot of {name} is received"
        with pool.afterwards(done, "the next stream"), suppress(Refused):
            names = ",".join(str(step.doc["name"]) for step in steps)
            destroy.execute(pool, destroy.plan_snapshots(View(pool), dataset.name, names, destroy.DestroyOptions()))
