"""P3 under power loss: every operation on the disk is recorded, and any prefix is replayed with what was not synced
lost, torn or reordered."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from crashkit import Acknowledged, Worker, leftovers, small_history

from recorder import Crash, Recorder
from zkeep.pool.datasets import model
from zkeep.pool.datasets.model import Pool
from zkeep.pool.maintenance.compact import compact
from zkeep.pool.store.files import LocalStore

MOMENTS = int(os.environ.get("ZKEEP_POWER_LOSSES", "40"))


def record(root: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> Recorder:
    """Thirty steps of a busy pool."""
    root.mkdir()
    disk = Recorder(root)
    with monkeypatch.context() as patch:
        patch.setattr(model, "LocalStore", lambda path, _=None: LocalStore(path, disk))
        pool = Pool.create(root, "v", {"blind": "off"})
    worker = Worker(pool, small_history(), random.Random(seed), lambda sign, name: disk.mark((sign, name)))
    for _ in range(30):
        worker.step()
    pool.close()
    return disk


@pytest.mark.parametrize("seed", [1, 2])
def test_p3_acknowledged_snapshots_survive_power_loss_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    disk, history = record(tmp_path / "pool", monkeypatch, seed), small_history()
    created = next(i for i, event in enumerate(disk.events) if event[0] == "mark")
    dice = random.Random(seed)
    for number in range(MOMENTS // 2):
        count = dice.randrange(created, len(disk.events) + 1)
        crash, root = Crash(disk.events, count, number), tmp_path / f"crash{number}"
        root.mkdir()
        crash.materialise(root)
        acknowledged = Acknowledged()
        for sign, name in crash.marks:
            acknowledged.take(sign, name)
        with Pool.open(root) as pool:
            acknowledged.check(pool, history)
            compact(pool)
            acknowledged.check(pool, history)
            assert leftovers(pool) == []
