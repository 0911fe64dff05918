"""Whatever happens to a tree of datasets, its replication follows, and gives all of it back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from treekit import Source, sent, take

from badinput.badkit import renamed
from zkeep.pool.datasets.model import Pool
from zkeep.pool.maintenance.scrub import scrub

SEEDS = range(int(os.environ.get("ZKEEP_SEEDS", "10")))
STEPS = 6
Shape = dict[str, tuple[str | None, list[tuple[str, int]]]]


def shape(pool: Pool) -> Shape:
    """Each dataset's origin, and its snapshots' names and guids; below the pool's name."""
    found: Shape = {}
    for dataset in pool.tree().by_id.values():
        origin = pool.snapshot_at(*dataset.origin) if dataset.origin else None
        snapshots = [(s.doc["name"], s.guid) for s in pool.snapshots(dataset)]
        found[dataset.name.text[1:]] = (str(origin.name)[1:] if origin else None, snapshots)
    return found


def newest(of: Shape) -> dict[str, tuple[str, int]]:
    """What is the same, too, where a clone had to come in full, without the past that it shares."""
    return {name: snapshots[-1] for name, (_, snapshots) in of.items() if snapshots}


def contents(pool: Pool) -> dict[int, bytes]:
    """Each snapshot in full, by guid, all under one name."""
    every = [s for some in pool.all_snapshots().values() for s in some]
    return {s.guid: renamed(sent(pool, str(s.name)), b"x@x") for s in every}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_tree_is_followed(seed: int, tmp_path: Path) -> None:
    with Pool.create(tmp_path / "v", "v") as pool, Pool.create(tmp_path / "w", "w") as backup:
        source = Source(pool, seed)
        take(backup, sent(pool, "v/t@r0", replicate=True), "w/t")
        knots = False
        for number in range(1, STEPS):
            source.step(number)
            take(backup, sent(pool, f"v/t@r{number}", replicate=True, from_all=f"@r{number - 1}"), "w/t", force=True)
            knots = knots or source.has_knots()
            assert knots or shape(backup) == shape(pool), source.told
            assert newest(shape(backup)) == newest(shape(pool)), source.told
        there = contents(pool)
        assert all(there.get(guid, data) == data for guid, data in contents(backup).items())
        assert scrub(backup).clean
        with Pool.create(tmp_path / "x", "x") as fresh:
            take(fresh, sent(backup, f"w/t@r{STEPS - 1}", replicate=True), "x/t")
            assert newest(shape(fresh)) == newest(shape(backup)), source.told
