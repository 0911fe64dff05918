"""The runs of a dataset according to the catalog, its origin's included."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection
from dataclasses import dataclass, field

from zkeep.pool.datasets import head
from zkeep.pool.datasets.model import Dataset, Pool, Snapshot
from zkeep.pool.store.port import Store
from zkeep.pool.timeline.segment import RecentContents
from zkeep.pool.timeline.summary import FOLDER
from zkeep.pool.timeline.timeline import Run, Timeline


@dataclass(frozen=True)
class History:
    """Runs of a dataset, oldest first."""

    runs: list[Run]
    datasets: tuple[str, ...] = ()
    "The keys of the datasets that the runs belong to: the dataset and its origins."
    checked: dict[str, dict[str, bool]] = field(default_factory=dict)
    "Whether a summary, by its name, sums up these runs; for each of the same keys."

    def upto(self, txg: int) -> History:
        return History(self.runs[: self._place(txg)], self.datasets, self.checked)

    def after(self, txg: int) -> History:
        return History(self.runs[self._place(txg) :], self.datasets, self.checked)

    def _place(self, txg: int) -> int:
        """How many runs are not younger than `txg`."""
        return bisect_right(self.runs, txg, key=lambda run: run.txg)

    def timeline(self, store: Store, recent: RecentContents | None = None) -> Timeline:
        # The names of the summaries are asked for only if a table is looked for.
        return Timeline(
            store,
            self.runs,
            lambda: [name for key in self.datasets for name in store.names(f"{FOLDER}/{key}")],
            self.checked,
            recent,
            self.datasets,
        )


def history_of(pool: Pool, dataset: Dataset) -> History:
    """All runs that lead to the dataset's newest state, as they are at one moment.

    That may be later than the one at which the dataset was looked up: runs may have been merged, and a promotion may
    have moved them to another dataset. What a snapshot was is told by its BEGIN: where that is still there afterwards,
    these are the runs that lead to it.
    """
    # Read at two moments, runs that a promotion moved in between would be in neither dataset.
    with pool.catalog.reading():
        own = pool.runs.of(dataset.key)
        runs, checked = own.runs, {dataset.key: own.checked}
        # clone:   origin's runs up to the origin's txg | own runs       and so on, for a clone of a clone
        seen = {dataset.id: dataset.key}
        for origin, txg in pool.origins(dataset):
            seen[origin.id] = origin.key
            own = pool.runs.of(origin.key)
            runs, checked[origin.key] = [run for run in own.runs if run.txg <= txg] + runs, own.checked
    return History(runs, tuple(seen.values()), checked)


def own_runs(pool: Pool, dataset: Dataset) -> list[Run]:
    return pool.runs.of(dataset.key).runs


def past_of(pool: Pool, dataset: Dataset, apart_from: Collection[Snapshot] = ()) -> str | None:
    """What a dataset has that a full stream would overwrite, and the way out; None: its runs, if any, are garbage."""
    newest = pool.newest_snapshot(dataset)
    if newest and apart_from:
        keys = {snapshot.key for snapshot in apart_from}
        newest = next((snapshot for snapshot in reversed(pool.snapshots(dataset)) if snapshot.key not in keys), None)
    if newest:
        return f"has snapshots (eg. {newest.name}); must destroy them"
    if head.unnamed(pool, dataset) is not None:
        return "was written to where it was mounted; take a snapshot of that"
    if bookmarks := pool.bookmarks(dataset):
        return f"has bookmarks (eg. {bookmarks[-1].name}); must destroy them"
    return None
