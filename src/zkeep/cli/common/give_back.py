"""Gives the disk space of what was destroyed back, a bounded step at a time."""

from __future__ import annotations

from zkeep.cli.common.terminal import say
from zkeep.cli.common.text import nice_bytes
from zkeep.errors import Damaged, ZkeepError
from zkeep.pool.datasets.model import Pool


def give_back(pool: Pool, dataset_ids: set[int], done: str = "destroyed") -> None:
    """Compact datasets, up to one STEP in all; the rest waits for the next call, or 'zkeep pool compact'."""
    from zkeep.pool.maintenance.compact import STEP, compact

    left = STEP
    for dataset_id in sorted(dataset_ids):
        try:
            report = compact(pool, pool.by_id(dataset_id), budget=left)
            left -= report.written + report.dropped
            if report.lacking:
                need = nice_bytes(report.lacking)
                say(f"{done}, but some of its space stays: to rewrite what is left needs {need} of room on the disk")
        except (ZkeepError, OSError) as error:  # what was asked for is done
            if isinstance(error, Damaged):
                say(f"{done}, but its space stays: {error}")
        if left <= 0:
            return
