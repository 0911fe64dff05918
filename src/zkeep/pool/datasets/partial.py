"""Partial receives: what `receive -s` keeps of an interrupted stream, and the snapshots that it builds on.

A document of kind `receive` with the dataset's key represents one. In zfs it is a clone called `%recv`; as there, the
snapshot that its increment follows cannot be destroyed before the receive is finished or given up.

One that is malformed costs that partial receive, and nothing else: everybody asks receives() and state_of(), which pass
over it. The next receive replaces it, and `zkeep receive -A` removes it.
"""

from __future__ import annotations

from typing import Protocol

from zkeep.pool.datasets.model import Dataset, Pool, Snapshot
from zkeep.pool.store.catalog import Malformed
from zkeep.pool.types import Doc

Bases = dict[tuple[int, int], Dataset]
RECEIVE = "receive"


class Reader(Protocol):
    """A catalog or a transaction."""

    def get(self, kind: str, key: str) -> Doc | None: ...

    def sound(self, kind: str, prefix: str = "") -> list[tuple[str, Doc]]: ...


def receives(reader: Reader) -> list[tuple[str, Doc]]:
    """The documents of all receives, partial ones and those under way, by key."""
    return reader.sound(RECEIVE)


MALFORMED: Doc = {}
"Stands for a document of a partial receive with which nothing can be done."


def state_or_malformed(reader: Reader, dataset: Dataset) -> Doc | None:
    """The document of a dataset's partial receive; MALFORMED if nothing can be done with it, None if there is none."""
    try:
        return reader.get(RECEIVE, dataset.key)
    except Malformed:
        return MALFORMED


def state_of(reader: Reader, dataset: Dataset) -> Doc | None:
    """The document of a dataset's partial receive; None if it has none, or one that nothing can be done with."""
    return state_or_malformed(reader, dataset) or None


def is_malformed(reader: Reader, dataset: Dataset) -> bool:
    """Whether the dataset has a partial receive with which nothing can be done."""
    return state_or_malformed(reader, dataset) is MALFORMED


def bases(pool: Pool) -> Bases:
    """The dataset of a partial receive by the snapshot (dataset's id, txg) that it builds on."""
    found: Bases = {}
    for key, doc in receives(pool.catalog):
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
