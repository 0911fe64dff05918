"""The space figures of a pool's datasets in one state of its catalog: of those that are asked for, not of all.

Few datasets are read one by one, so that one among thousands costs what it costs alone; many are read at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from zkeep.errors import Damaged
from zkeep.names import shown
from zkeep.pool.datasets.model import Dataset, Pool, dataset_key
from zkeep.pool.datasets.space import DatasetSpace, SpaceHistory, compute
from zkeep.pool.store.catalog import Catalog
from zkeep.pool.store.terms import MALFORMED, kind_of

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
        self[dataset_id] = [] if self._all else [doc for _, doc in self._read(prefix)]
        return self[dataset_id]

    def _read(self, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        yield from self._catalog.scan("run", prefix)

    def read_all(self) -> None:
        self.clear()
        for key, doc in self._read(""):
            self.setdefault(int(key.partition("/")[0]), []).append(doc)
        self._all = True


class RunSums(RunDocs):
    """The same, and of each document no more than what figures are computed of."""

    def _read(self, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        yield from self._catalog.sums(prefix)


def _refuse_malformed(pool: Pool, prefix: str = "") -> None:
    """Refuse to go on with the keys of snapshots where a document is not what one of a snapshot is. Raises Damaged."""
    for key in pool.catalog.keys(kind_of("snapshot", MALFORMED), prefix):
        pool.catalog.get("snapshot", key)


def all_pins(pool: Pool) -> dict[int, list[int]]:
    """The txgs of the snapshots of every dataset, by its id; ascending. Their documents are not read."""
    found: dict[int, list[int]] = {dataset_id: [] for dataset_id in pool.tree().by_id}
    _refuse_malformed(pool)
    for key in pool.catalog.keys("snapshot"):
        dataset_id, _, txg = key.partition("/")
        try:
            found[int(dataset_id)].append(int(txg))
        except (KeyError, ValueError):
            raise Damaged(f"catalog: snapshot {shown(key)} is of a dataset that is not there") from None
    return found


class Spaces:
    """Figures and histories, kept once they are computed."""

    def __init__(self, pool: Pool) -> None:
        self.runs = RunDocs(pool.catalog)
        self._sums = RunSums(pool.catalog)
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
            pins = all_pins(self._pool)
            wanted, only_histories = list(self._pool.tree().by_id.values()), False
            self._sums.read_all()
        else:
            for dataset in wanted:
                _refuse_malformed(self._pool, f"{dataset.key}/")
            pins = {d.id: self._pool.snapshot_txgs(d) for d in wanted}
        # Origins are needed for their histories; what lies below them was not read, so they get no figures.
        every = {d.id: d for d in wanted}
        every.update((origin.id, origin) for d in wanted for origin, _ in self._pool.origins(d))
        found = compute({i: d.doc for i, d in every.items()}, {i: self._sums[i] for i in every}, pins)
        self._histories.update(found.histories)
        if not only_histories:
            self._figures.update((d.id, found.datasets[d.id]) for d in wanted)
