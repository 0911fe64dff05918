"""Partial receives: what `receive -s` keeps of an interrupted stream, and the snapshots that it builds on.

A document of kind `receive` with the dataset's key represents one. In zfs it is a clone called `%recv`; as there, the
snapshot that its increment follows cannot be destroyed before the receive is finished or given up.
"""

from __future__ import annotations

from zkeep.pool.datasets.model import Dataset, Pool, Snapshot

Bases = dict[tuple[int, int], Dataset]


def bases(pool: Pool) -> Bases:
    """The dataset of a partial receive by the snapshot (dataset's id, txg) that it builds on."""
    found: Bases = {}
    for key, doc in pool.catalog.scan("receive"):
        dataset = pool.tree().get(int(key)) if key.isdecimal() else None
        if doc["resumable"] and doc["source"] and dataset:
            found[(int(doc["source"][0]), int(doc["source"][1]))] = dataset
    return found


def base_of(known: Bases, snapshot: Snapshot) -> Dataset | None:
    """The dataset whose partial receive builds on the snapshot."""
    return known.get((snapshot.dataset.id, snapshot.txg))


def needed_by(pool: Pool, dataset: Dataset) -> str:
    """Why a snapshot must stay, and the way out."""
    name = pool.called(dataset)
    return (
        f"snapshot has dependent clones: {name}/%recv, a partial receive: "
        f"go on with its receive_resume_token, or give it up with zkeep receive -A {name}"
    )
