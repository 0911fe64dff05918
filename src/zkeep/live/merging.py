"""Merging what the commits of a mounted dataset made, so that many small ones do not become a million runs."""

from __future__ import annotations

from collections.abc import Callable

from zkeep.pool.datasets.model import Dataset, Pool
from zkeep.pool.maintenance.compact import compact

MERGE_AFTER = 32
"Commits after which the runs that no snapshot keeps apart are merged."
MERGE_BYTES = 64 << 20
"Bytes that may be copied then; the rest waits for the next time."


class Merging:
    """`dataset`: as it is now."""

    def __init__(self, pool: Pool, dataset: Callable[[], Dataset]) -> None:
        self._pool = pool
        self._dataset = dataset
        self._runs = 0
        "How many runs the dataset had when they were merged last."

    def begin(self) -> None:
        """Count from here on."""
        self._runs = self._pool.runs.count(self._dataset().key)

    def after_commit(self) -> None:
        """Merge runs now and then. Call it while nothing is open, so that old files can go."""
        dataset = self._dataset()
        count = self._pool.runs.count(dataset.key)
        if count < self._runs + MERGE_AFTER:
            self._runs = min(self._runs, count)
            return
        with self._pool.afterwards(f"{dataset.name} is committed"):
            compact(self._pool, dataset, budget=MERGE_BYTES)
        self.begin()
