"""The runs of a dataset as the catalog tells them, its origin's included."""

from __future__ import annotations

from dataclasses import dataclass

from zkeep.errors import Damaged
from zkeep.pool.datasets.model import Dataset, Pool
from zkeep.pool.store.port import Store
from zkeep.pool.timeline.timeline import Run, Timeline


@dataclass(frozen=True)
class History:
    """Oldest first."""

    runs: list[Run]

    def upto(self, txg: int) -> History:
        return History([run for run in self.runs if run.txg <= txg])

    def after(self, txg: int) -> History:
        return History([run for run in self.runs if run.txg > txg])

    def timeline(self, store: Store) -> Timeline:
        return Timeline(store, self.runs)


def history_of(pool: Pool, dataset: Dataset) -> History:
    """All runs that lead to the dataset's newest state."""
    runs = own_runs(pool, dataset)
    seen = {dataset.id}
    while dataset.origin is not None:
        dataset_id, txg = dataset.origin
        found = pool.tree().by_id.get(dataset_id)
        if found is None or dataset_id in seen:
            raise Damaged(f"{dataset.name}: its origin is not in the catalog")
        seen.add(dataset_id)
        runs = [run for run in own_runs(pool, found) if run.txg <= txg] + runs
        dataset = found
    return History(runs)


def own_runs(pool: Pool, dataset: Dataset) -> list[Run]:
    docs = pool.catalog.scan("run", dataset.key + "/")
    return [Run(doc["txg"], tuple(doc["segments"]), doc) for _, doc in docs]
