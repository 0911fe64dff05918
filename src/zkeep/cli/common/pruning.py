"""Pruning behind what brings a new snapshot: a receive, a snapshot, a backup."""

from __future__ import annotations

from collections.abc import Iterable

from zkeep.cli.common.give_back import give_back
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Dataset, Pool
from zkeep.pool.datasets.retention import NONE
from zkeep.pool.datasets.view import View


def prune_received(pool: Pool, names: Iterable[str]) -> None:
    """Prune the datasets of snapshots that were just received; what fails is a warning, and a timer tries again."""
    _prune_after(pool, names, "is received")


def prune_taken(pool: Pool, names: Iterable[str]) -> None:
    """The same for snapshots that were just taken here; their space is given back, as no timer may run here."""
    give_back(pool, _prune_after(pool, names, "has its snapshot"), "pruned")


def _prune_after(pool: Pool, names: Iterable[str], done: str) -> set[int]:
    """The datasets of which something was destroyed."""
    changed = set()
    for name in sorted({name.partition("@")[0] for name in names}):
        with pool.afterwards(f"{name} {done}", "zkeep prune"):  # looking it up may fail, too
            dataset = pool.find(DatasetName.parse(name))
            if dataset is not None and _prune_quietly(pool, dataset):
                changed.add(dataset.id)
    return changed


def _prune_quietly(pool: Pool, dataset: Dataset) -> bool:
    """Whether something was destroyed."""
    # Most datasets keep all; what prunes is loaded for the others only.
    if View(pool).policy(dataset, "retention") == NONE:
        return False
    from zkeep.cli.common.clock import clock
    from zkeep.pool.maintenance import prune

    policy = prune.policy_of(View(pool), dataset)
    if policy is None:
        return False
    now = clock()
    prune.check_clock(pool, now)
    prune.note_time(pool, now)
    return bool(list(prune.execute(pool, prune.consider(View(pool), dataset, policy, now))))
