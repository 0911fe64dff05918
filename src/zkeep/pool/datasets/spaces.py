"""The space figures of a pool's datasets in one state of its catalog: of those that are asked for, not of all.

Few datasets are read one by one, so that one among thousands costs what it costs alone; many are read at once.
"""

from __future__ import annotations

from typing import Any

from zkeep.pool.datasets.model import Dataset, Pool, dataset_key
from zkeep.pool.datasets.space import DatasetSpace, SpaceHistory, compute
from zkeep.pool.store.catalog import Catalog

FEW = 500
"Datasets that are read one by one; beyond, reading all at once is faster."


class RunDocs(dict[int, list[dict[str, Any]]]):
    """The documents of the runs of each dataset, by its id, oldest first; read when they are first asked for."""

    def __init__(self, catalog: Catalog) -> None:
        super().__init__()
        self._catalog = catalog
        self._all = False

    def __missing__(self, dataset_id: int) -> list[dict[str, Any]]:
        prefix = dataset_key(dataset_id) + "/"
        self[dataset_id] = [] if self._all else [doc for _, doc in self._catalog.scan("run", prefix)]
        return self[dataset_id]

    def read_all(self) -> None:
        self.clear()
        for key, doc in self._catalog.scan("run"):
            self.setdefault(int(key.partition("/")[0]), []).append(doc)
        self._all = True


class Spaces:
    """Figures and histories, kept once they are computed."""

    def __init__(self, pool: Pool) -> None:
        self.runs = RunDocs(pool.catalog)
        self._pool = pool
        self._figures: dict[int, DatasetSpace] = {}
        self._histories: dict[int, SpaceHistory] = {}
        self._read = 0

    def figures(self, dataset: Dataset) -> DatasetSpace:
        if dataset.id not in self._figures:
            self._measure(self._pool.tree().within(dataset))
        return self._figures[dataset.id]

    def history(self, dataset: Dataset) -> SpaceHistory:
        if dataset.id not in self._histories:
            self._measure([dataset], only_histories=True)
        return self._histories[dataset.id]

    def _measure(self, wanted: list[Dataset], *, only_histories: bool = False) -> None:
        """Compute the figures of datasets; with each, all that lie below it are wanted."""
        self._read += len(wanted)
        if self._read > FEW:
            pins = {i: [s.txg for s in found] for i, found in self._pool.all_snapshots().items()}
            wanted, only_histories = list(self._pool.tree().by_id.values()), False
            self.runs.read_all()
        else:
            pins = {d.id: [s.txg for s in self._pool.snapshots(d)] for d in wanted}
        # Origins are needed for their histories; what lies below them was not read, so they get no figures.
        every = {d.id: d for d in wanted}
        every.update((origin.id, origin) for d in wanted for origin, _ in self._pool.origins(d))
        found = compute({i: d.doc for i, d in every.items()}, {i: self.runs[i] for i in every}, pins)
        self._histories.update(found.histories)
        if not only_histories:
            self._figures.update((d.id, found.datasets[d.id]) for d in wanted)
