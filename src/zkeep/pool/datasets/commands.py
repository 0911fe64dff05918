"""The history of a pool: what clients of a server did, when, and how it ended.

A document of kind `history` an entry, in the catalog and so in its journal; by root dataset, as many as MOST says for
what was done, and for what was refused: so no client pushes out entries of another, nor a flood of refused calls what
was done.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool

KIND = "history"
MOST = {"done": 2000, "refused": 200}
LONGEST = 500
"Characters that are kept of a command, and of who gave it."


@dataclass(frozen=True)
class HistoryEntry:
    """`at`: seconds since 1970; `client`: whose key; `peer`: from where; `root`: relative to the pool."""

    at: int
    client: str
    peer: str
    root: str
    command: str
    received: int
    sent: int
    milliseconds: int
    status: int


def record(pool: Pool, root: DatasetName, entry: HistoryEntry, *, refused: bool) -> None:
    """Add an entry; the oldest ones of this root make room."""
    dataset = pool.dataset(root)
    ring = "refused" if refused else "done"
    prefix = f"{dataset.key}/{ring}/"
    with pool.transaction() as t:
        keys = pool.catalog.keys(KIND, prefix)
        number = int(keys[-1].rpartition("/")[2]) + 1 if keys else 1
        for key in keys[: max(0, len(keys) + 1 - MOST[ring])]:
            t.delete(KIND, key)
        fields = asdict(entry) | {name: getattr(entry, name)[:LONGEST] for name in ("client", "peer", "command")}
        t.put(KIND, f"{prefix}{number:020d}", fields)


def entries(pool: Pool) -> list[tuple[DatasetName, HistoryEntry]]:
    """All entries in the pool's scope, with the root dataset of each; oldest first."""
    return sorted(_in_scope(pool), key=lambda pair: pair[1].at)


def _in_scope(pool: Pool) -> Iterator[tuple[DatasetName, HistoryEntry]]:
    for key, doc in pool.catalog.scan(KIND):
        number = key.partition("/")[0]
        dataset = pool.tree().get(int(number)) if number.isdecimal() else None
        if dataset is None and pool.scope is not None:
            continue  # of one that was destroyed: another may have its name now
        root = dataset.name if dataset else pool.full(doc["root"])
        if pool.sees(root):
            yield root, HistoryEntry(**{name: doc[name] for name in HistoryEntry.__dataclass_fields__})
