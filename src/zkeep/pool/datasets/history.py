"""The runs of a dataset as the catalog tells them, its origin's included."""

from __future__ import annotations

from dataclasses import dataclass

from zkeep.errors import Damaged
from zkeep.pool.datasets.model import Dataset, Pool
from zkeep.pool.store.port import Store
from zkeep.pool.timeline.summary import FOLDER
from zkeep.pool.timeline.timeline import Run, Timeline


@dataclass(frozen=True)
class History:
    """Oldest first."""

    runs: list[Run]
    datasets: tuple[str, ...] = ()
    """The keys of those whose runs they are: the dataset and its origins."""

    def upto(self, txg: int) -> History:
        return History([run for run in self.runs if run.txg <= txg], self.datasets)

    def after(self, txg: int) -> History:
        return History([run for run in self.runs if run.txg > txg], self.datasets)

    def timeline(self, store: Store) -> Timeline:
        summaries = [name for key in self.datasets for name in store.names(f"{FOLDER}/{key}")]
        return Timeline(store, self.runs, summaries)


def history_of(pool: Pool, dataset: Dataset) -> History:
    """All runs that lead to the dataset's newest state."""
    runs = own_runs(pool, dataset)
    seen = {dataset.id: dataset.key}
    while dataset.origin is not None:
        dataset_id, txg = dataset.origin
        found = pool.tree().by_id.get(dataset_id)
        if found is None or dataset_id in seen:
            raise Damaged(f"{dataset.name}: its origin is not in the catalog")
        seen[dataset_id] = found.key
        runs = [run for run in own_runs(pool, found) if run.txg <= txg] + runs
        dataset = found
    return History(runs, tuple(seen.values()))


def own_runs(pool: Pool, dataset: Dataset) -> list[Run]:
    docs = pool.catalog.scan("run", dataset.key + "/")
    return [Run(doc["txg"], tuple(doc["segments"]), doc) for _, doc in docs]
