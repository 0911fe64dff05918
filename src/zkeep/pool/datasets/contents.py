"""Metadata-only datasets: which contents of files may be dropped because they are stored elsewhere, and which are gone.

A machine that makes snapshots and sends them away needs no second copy of its data. Where `contents=metadata`,
compaction drops the payloads of the WRITE records of files and disks. Their headers stay, with IV, salt, MAC and
lengths; so do directories, dnodes, spill blocks and all else. That is enough for the next increment, for ls, diff and
scrub, and to compare with what the other side has.

The property is set on a snapshot: this one and all before it are stored elsewhere. It is the only word that lets a
payload go. A stream that was written proves nothing, and what came later than that snapshot stays until it is
confirmed, too; so a snapshot that was never sent is never lost to a command that meant another. Set on a dataset, it
confirms the snapshots that are there at that moment.

    confirm()    what `zkeep set contents=metadata` does, and what a program calls when a receiver has a snapshot
    droppable()  the runs whose payloads compaction takes
    lacking()    whether runs lack payloads, so that a send or a reader has to look closer
"""

from __future__ import annotations

from collections.abc import Iterable

from zkeep.errors import Refused
from zkeep.pool.datasets.model import Dataset, Pool, Snapshot
from zkeep.pool.store.catalog import Transaction
from zkeep.pool.timeline.timeline import Run
from zkeep.pool.types import Doc

CONTENTS, ALL, METADATA = "contents", "all", "metadata"
STEP = "step"
"Field of a snapshot's document: it holds a part of one that is being made (snapshot/commit.py); nothing was sent."
FIELDS = ("bare", "contents")
"Fields of a run's document: how many of its records have no payload, and `metadata` if no file content has one."


class NotHere(Refused):
    """Contents were dropped, because they are stored elsewhere."""

    def __init__(self, name: str) -> None:
        self.name = name
        where = "get them from where its snapshots were sent to"
        super().__init__(f"{name}: its contents are not here (contents=metadata): {where}")

    def __reduce__(self) -> tuple[type[NotHere], tuple[str]]:
        return type(self), (self.name,)


def fields(bare: int, *, complete: bool) -> Doc:
    """The fields of a run `bare` of whose records have no payload. `complete`: none of its file contents has one."""
    return {**({"bare": bare} if bare else {}), **({"contents": METADATA} if complete else {})}


def are_dropped(run: Doc) -> bool:
    return run.get("contents") == METADATA


def lacking(runs: Iterable[Run]) -> bool:
    return any(run.doc.get("bare", 0) for run in runs)


def confirm(pool: Pool, t: Transaction, snapshot: Snapshot) -> None:
    """Note that a snapshot and all before it in its dataset are stored elsewhere; their contents may go from here.

    Compaction drops them (maintenance/compact.py: drop_contents() does both). What it dropped does not come back if the
    property is set to `all` again.

    Raises:
        Refused: the snapshot is a part of one that is being made; its dataset is not encrypted.
    """
    dataset = snapshot.dataset
    if snapshot.doc.get(STEP):
        raise Refused(f"cannot set contents of {snapshot.name}: it is a part of a snapshot that is not complete")
    check_dataset(dataset)
    _set(pool, t, dataset)
    for each in pool.snapshots(dataset):
        if each.txg <= snapshot.txg and not each.doc.get(STEP):
            _set(pool, t, each)


def mark(pool: Pool, t: Transaction, snapshot: Snapshot) -> None:
    """Note that one snapshot, which may be a step, was sent elsewhere, and nothing of those before it.

    For a program that sent this one alone: zkeep.reencrypt.outgoing, zkeep.backup.local.
    """
    check_dataset(snapshot.dataset)
    _set(pool, t, pool.by_id(snapshot.dataset.id))
    _set(pool, t, snapshot)


def confirm_all(pool: Pool, t: Transaction, dataset: Dataset) -> None:
    """Note that all snapshots that a dataset has now are stored elsewhere."""
    check_dataset(dataset)
    _set(pool, t, dataset)
    whole = [snapshot for snapshot in pool.snapshots(dataset) if not snapshot.doc.get(STEP)]
    if whole:
        confirm(pool, t, whole[-1])


def check_dataset(dataset: Dataset) -> None:
    """Refused: without encryption there are no MACs, by which what is elsewhere could be recognized."""
    if dataset.doc["raw"] is False:
        raise Refused(f"cannot set contents of {dataset.name}: only encrypted datasets can do without")


def _set(pool: Pool, t: Transaction, thing: Dataset | Snapshot) -> None:
    # As it is now: what was set on it since it was looked up stays.
    now = t.get("dataset" if isinstance(thing, Dataset) else "snapshot", thing.key) or thing.doc
    if now["local"].get(CONTENTS) == METADATA:
        return
    local = {**now["local"], CONTENTS: METADATA}
    if isinstance(thing, Dataset):
        pool.update_dataset(t, thing, local=local)
    else:
        pool.update_snapshot(t, thing, local=local)


def droppable(pool: Pool, dataset: Dataset) -> set[int]:
    """The txgs of a dataset's own runs whose payloads may go, and that still have some.

    A run's blocks may be needed by each snapshot from there on. So all of these must be confirmed, up to the newest
    that is: a promotion may have brought others. Those behind it are sent as increments from it, which need nothing of
    these runs. What a clone began with stays: that the clone is stored elsewhere was not said.
    """
    dataset = pool.by_id(dataset.id)  # as it is now: the word may have been taken back
    if dataset.doc["local"].get(CONTENTS) != METADATA or not dataset.doc["raw"]:
        return set()
    # runs       1    2    3    4    5    6     snapshots at 2, 4, 6: those at 2 and 4 are confirmed; a clone began at 1
    # droppable       ^    ^    ^               after what an origin or an unconfirmed snapshot needs, up to 4
    snapshots = pool.snapshots(dataset)
    marks = [(s.txg, s.doc["local"].get(CONTENTS) == METADATA) for s in snapshots]
    newest = max((txg for txg, confirmed in marks if confirmed), default=0)
    origins = [clone.origin[1] for clone in pool.tree().clones(dataset) if clone.origin]
    unconfirmed = [txg for txg, confirmed in marks if not confirmed and txg <= newest]
    needed = max([0, *origins, *unconfirmed])
    runs = pool.runs.of(dataset.key).runs
    return {run.txg for run in runs if needed < run.txg <= newest and run.segments and not are_dropped(run.doc)}
