"""The catalog and the store after a power loss at any moment, with every unsynced write lost or kept at random."""

from __future__ import annotations

import random
from pathlib import Path

from recorder import Crash, Recorder
from zkeep.pool.store.catalog import Catalog
from zkeep.pool.store.files import LocalStore


def test_acknowledged_transactions_survive_and_others_are_whole_or_absent(tmp_path: Path) -> None:
    root = tmp_path / "pool"
    root.mkdir()
    disk = Recorder(root)
    catalog = Catalog(LocalStore(root, disk))
    for n in range(1, 90):
        with catalog.transaction() as t:
            t.put("thing", "left", {"n": n, "filling": "x" * 9000})
            t.put("thing", "right", {"n": n})
        disk.mark(n)
    assert list((root / "journal").glob("*.ckpt.gz"))
    chance = random.Random(1)
    for seed in range(150):
        crash = Crash(disk.events, chance.randrange(len(disk.events) + 1), seed)
        survivor = tmp_path / str(seed)
        survivor.mkdir()
        crash.materialise(survivor)
        found = Catalog(LocalStore(survivor))
        left, right = found.get("thing", "left"), found.get("thing", "right")
        assert (left or {}).get("n") == (right or {}).get("n")
        told = max([0, *crash.marks])  # type: ignore[type-var]
        assert told <= (left or {"n": 0})["n"] <= told + 1
        assert found.verify() == []
        found.close()


def test_what_was_put_or_published_is_whole_or_absent(tmp_path: Path) -> None:
    root = tmp_path / "pool"
    root.mkdir()
    disk = Recorder(root)
    store = LocalStore(root, disk)
    for n in range(12):
        content = bytes([n + 1]) * 1000
        store.put(f"a/{n % 3}/{n}", content)
        disk.mark(f"a/{n % 3}/{n}")
        with store.draft(f"d{n}") as draft:
            draft.write(content[:400], content[400:])
            draft.publish(f"segments/{n}")
        disk.mark(f"segments/{n}")
    for seed in range(150):
        crash = Crash(disk.events, random.Random(seed).randrange(len(disk.events) + 1), seed)
        survivor = tmp_path / str(seed)
        survivor.mkdir()
        crash.materialise(survivor)
        found = LocalStore(survivor)
        for name in found.names("a") + found.names("segments"):
            number = int(name.rpartition("/")[2])
            assert found.get(name) == bytes([number + 1]) * 1000
        assert set(crash.marks) <= set(found.names("a") + found.names("segments"))
