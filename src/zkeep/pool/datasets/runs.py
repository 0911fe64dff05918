"""A cache of the runs of datasets: a receive of 10,000 snapshots adds one run at a time.

Changes by this process are applied run by run; after a change by another process everything is read again.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from zkeep.cache import Cache
from zkeep.pool.store.catalog import Catalog, ChangeMark
from zkeep.pool.timeline.living import Living
from zkeep.pool.timeline.segment import RecentContents
from zkeep.pool.timeline.timeline import Run
from zkeep.pool.types import Doc

DATASETS = 8
"How many datasets' runs are cached: one that is received into or sent, and its origins."


def run_of(doc: Doc) -> Run:
    return Run(doc["txg"], tuple(doc["segments"]), doc)


@dataclass
class DatasetRuns:
    """A dataset's own runs, oldest first; `checked`: by a summary's name, whether it sums up these runs."""

    runs: list[Run]
    checked: dict[str, bool] = field(default_factory=dict)


class Runs:
    """Reads the runs of datasets, by the datasets' keys."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._mark: ChangeMark | None = None
        self._kept: Cache[str, DatasetRuns] = Cache(DATASETS)
        self.recent = RecentContents()
        "What the segments say that receives of this process read and wrote last."
        self.living = Living()
        "What lives of the objects that small snapshots of a package changed last."

    def of(self, key: str) -> DatasetRuns:
        """The runs are the caller's own; what it adds to `checked` is of use as long as these runs are as they are."""
        kept = self._get(key)
        return DatasetRuns(list(kept.runs), kept.checked)

    def count(self, key: str) -> int:
        return len(self._get(key).runs)

    def _get(self, key: str) -> DatasetRuns:
        self._follow()
        kept = self._kept.get(key)
        if kept is None:
            docs = self._catalog.scan("run", key + "/")
            kept = self._kept.put(key, DatasetRuns([run_of(doc) for _, doc in docs]))
        return kept

    def _follow(self) -> None:
        mark, changed = self._catalog.changes("run", self._mark)
        if changed is None:
            self._kept.clear()
        for key in changed or ():
            dataset, _, txg = key.partition("/")
            if (kept := self._kept.get(dataset)) is not None:
                # A run came, went or changed. One more at the end leaves summaries of those before it as they are.
                number = int(txg)
                at = bisect_left(kept.runs, number, key=lambda run: run.txg)
                there = at < len(kept.runs) and kept.runs[at].txg == number
                if at < len(kept.runs):
                    kept.checked = {}
                doc = self._catalog.get("run", key)
                kept.runs[at : at + there] = [run_of(doc)] if doc else []
        # Only now: where a document could not be read for a moment, the same changes are applied once more.
        self._mark = mark
