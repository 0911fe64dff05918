"""Random histories of a tree of datasets, replicated step by step: at every snapshot, what zkeep has is the source's.

Work on files, snapshots renamed and destroyed, rollbacks, clones, promotions, keys changed, datasets made and renamed.
"""

from __future__ import annotations

import os
import random

import pytest
from lab import PASSPHRASE, RAW, Key, Lab

LONG = os.environ.get("ZKEEP_INTEROP") == "long"
SEEDS = range(6) if LONG else range(2)
STEPS = 12 if LONG else 6
TOP, KEPT = "tank/h", "v/h"


class History:
    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab, self.run = lab, lab.guest.run
        self.chance = random.Random(seed)
        self.seed = seed
        self.keys: list[Key] = [lab.key(PASSPHRASE if seed % 2 else RAW)]
        self.made = 0
        self.told: list[str] = []
        size = self.chance.choice(["4K", "16K", "128K"])
        options = f"-o recordsize={size} -o dnodesize=auto -o compression=zstd"
        self.run(f"zfs create -o encryption=on {self.keys[0].creating} {options} {TOP}")
        self.run(f"zfs create {TOP}/child")
        self.work()

    # What happens at the source

    def datasets(self) -> list[str]:
        return self.run(f"zfs list -H -o name -r {TOP}").splitlines()

    def snapshots(self, dataset: str) -> list[str]:
        return self.run(f"zfs list -H -o name -t snapshot -s createtxg -d 1 {dataset}").splitlines()

    def work(self) -> None:
        for dataset in self.datasets():
            if self.chance.random() < 0.8:
                self.lab.guest.work(self.chance.randrange(1 << 30), self.chance.choice([3, 15, 40]), f"/{dataset}")

    def new_name(self, kind: str) -> str:
        self.made += 1
        return f"{kind}{self.made}"

    def create(self) -> None:
        self.run(f"zfs create {self.chance.choice(self.datasets())}/{self.new_name('new')}")

    def rename(self) -> None:
        below = [name for name in self.datasets() if name != TOP]
        if below:
            old = self.chance.choice(below)
            self.run(f"zfs rename {old} {old.rsplit('/', 1)[0]}/{self.new_name('renamed')}")

    def extra_snapshot(self) -> None:
        self.run(f"zfs snapshot {self.chance.choice(self.datasets())}@{self.new_name('extra')}")

    def _old(self, prefixes: tuple[str, ...]) -> list[str]:
        every = [name for dataset in self.datasets() for name in self.snapshots(dataset)]
        return [name for name in every if name.split("@")[1].startswith(prefixes)]

    def destroy_snapshot(self) -> None:
        for name in self.chance.sample(self._old(("extra",)), min(1, len(self._old(("extra",))))):
            self.lab.guest.call(f"zfs destroy {name}")

    def rename_snapshot(self) -> None:
        for name in self._old(("extra",))[:1]:
            self.run(f"zfs rename {name} {name.split('@')[0]}@{self.new_name('extra')}")

    def clone(self) -> None:
        old = self._old(("extra", "r"))
        if old:
            self.run(f"zfs clone {self.chance.choice(old)} {TOP}/{self.new_name('clone')}")

    def promote(self) -> None:
        clones = [name for name in self.datasets() if self.run(f"zfs get -H -o value origin {name}") != "-"]
        if clones:
            self.run(f"zfs promote {self.chance.choice(clones)}")

    def change_key(self) -> None:
        self.keys.append(self.lab.key(self.chance.choice([RAW, PASSPHRASE])))
        self.run(f"zfs change-key {self.keys[-1].creating} {TOP}")

    def rollback(self) -> None:
        """Work that no snapshot holds is undone."""
        dataset = self.chance.choice(self.datasets())
        snapshots = self.snapshots(dataset)
        if snapshots:
            self.lab.guest.work(self.chance.randrange(1 << 30), 10, f"/{dataset}")
            self.run(f"zfs rollback {snapshots[-1]}")

    EVENTS = ("create", "rename", "extra_snapshot", "extra_snapshot", "destroy_snapshot", "rename_snapshot", "clone")
    EVENTS += ("promote", "change_key", "rollback", "work", "work", "work")

    # Replication and its judgement

    def step(self, number: int) -> None:
        for _ in range(3 if number else 1):
            event = self.chance.choice(self.EVENTS)
            getattr(self, event)()
            self.told.append(event)
        self.work()
        self.run(f"zfs snapshot -r {TOP}@r{number}")
        since = f"-I @r{number - 1} " if number else ""
        self.lab.kernel_sends("in.zfs", f"-Rw {since}{TOP}@r{number}")
        self.lab.receive("in.zfs", KEPT, *(["-F"] if number else []))
        assert self.kept() == self.there()
        names = [f"{dataset}@r{number}" for dataset in self.datasets()]
        kept = [KEPT + name.removeprefix(TOP) for name in names]
        self.lab.opens(kept, names, *self.keys)

    def there(self) -> dict[str, str]:
        """guid by name."""
        lines = self.run(f"zfs list -H -o name,guid -t snapshot -r {TOP}").splitlines()
        return {name.removeprefix(TOP): guid for name, guid in (line.split("\t") for line in lines)}

    def kept(self) -> dict[str, str]:
        lines = self.lab.zkeep("list", "-H", "-o", "name,guid", "-t", "snapshot", "-r", KEPT).splitlines()
        return {name.removeprefix(KEPT): guid for name, guid in (line.split("\t") for line in lines)}

    def back(self, last: int) -> None:
        """All of it into the kernel's other pool."""
        self.lab.send("out.zfs", "-R", "-w", f"{KEPT}@r{last}")
        self.lab.kernel_takes("out.zfs", "-u back/h")
        self.lab.kernel_opens("back/h", self.keys[-1])
        names = sorted(self.there())
        self.lab.same([f"back/h{name}" for name in names], [TOP + name for name in names])
        self.lab.kernel_finds_no_fault()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_history_is_followed(lab: Lab, report: object, seed: int) -> None:
    history = History(lab, seed)
    for number in range(STEPS):
        history.step(number)
    history.back(STEPS - 1)
    text = f"history {seed}: {STEPS} steps, {len(history.there())} snapshots equal; {' '.join(history.told)}"
    report.add(text)  # type: ignore[attr-defined]
