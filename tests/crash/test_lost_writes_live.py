"""P3 under power loss, for a dataset that is mounted read-write: what was synced is there, whatever else is lost."""

from __future__ import annotations

import os
import random
import stat
import sys
from pathlib import Path

import pytest

from recorder import Crash, Recorder
from zkeep.cli.main import run
from zkeep.pool.datasets import model
from zkeep.pool.maintenance.scrub import scrub
from zkeep.pool.store.files import LocalStore

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "live"))

from livekit import OWNER, ByPath, listing, live

MOMENTS = int(os.environ.get("ZKEEP_POWER_LOSSES", "6"))
Listing = dict[bytes, tuple[object, ...]]


def change(files: ByPath, chance: random.Random, number: int) -> None:
    """A new file, and perhaps changes to older ones."""
    name = b"%d" % number
    files.write(files.make(name, stat.S_IFREG | 0o644, OWNER), chance.randbytes(chance.choice([10, 5000, 40_000])), 0)
    older = [each for each in files.dataset.folders.entries(files.dataset.root) if each != name]
    for each in chance.sample(older, min(2, len(older))):
        inode = files.lookup(each)
        action = chance.choice([0, 1, 2, 3])
        if action == 0:
            files.unlink(each)
        elif action == 1:
            files.truncate(inode, chance.randrange(30_000))
        elif action == 2:
            files.write(inode, chance.randbytes(3000), chance.randrange(50_000))
        else:
            files.rename(each, name)


def record(folder: Path, monkeypatch: pytest.MonkeyPatch, chance: random.Random) -> tuple[Recorder, list[Listing]]:
    """Write, and commit now and then; all that was asked of the disk, and what each commit made durable."""
    monkeypatch.setenv("ZKEEP_HOME", str(folder / "state"))
    (folder / "pool").mkdir()
    (folder / "key").write_bytes(bytes(range(32)))
    (folder / "key").chmod(0o600)
    disk = Recorder(folder / "pool")
    states: list[Listing] = []
    options = ("encryption=on", "keyformat=raw", f"keylocation=file://{folder / 'key'}", "recordsize=16k")
    with monkeypatch.context() as patch:
        patch.setattr(model, "LocalStore", lambda path, _=None: LocalStore(path, disk))
        assert run(["pool", "create", "v", str(folder / "pool")]) == 0
        assert run(["create", *(word for option in options for word in ("-o", option)), "v/home"]) == 0
        with live(folder) as files:
            states.append(listing(files))  # without files
            disk.mark(("done", 0))
            for number in range(12):
                change(files, chance, number)
                if number % 2:
                    states.append(listing(files))
                    disk.mark(("begins", len(states) - 1))  # from here on, it may be the one that is there
                    files.dataset.commit()
                    disk.mark(("done", len(states) - 1))
    run(["unload-key", "-a"])
    return disk, states


@pytest.mark.parametrize("seed", [1])
def test_p3_what_was_synced_survives_power_loss_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    disk, states = record(tmp_path, monkeypatch, chance)
    begun = next(i for i, event in enumerate(disk.events) if event[0] == "mark")
    for number in range(MOMENTS):
        count = chance.randrange(begun + 1, len(disk.events) + 1)
        crash, folder = Crash(disk.events, count, number), tmp_path / f"crash{number}"
        (folder / "pool").mkdir(parents=True)
        (folder / "key").write_bytes((tmp_path / "key").read_bytes())
        crash.materialise(folder / "pool")
        durable = max(at for what, at in crash.marks if what == "done")
        newest = max(at for _, at in crash.marks)
        with live(folder) as files:
            assert listing(files) in states[durable : newest + 1]
            change(files, chance, 99)
            files.dataset.commit()
            assert not scrub(files.dataset.pool).errors

