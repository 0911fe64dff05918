"""Random histories of a tree of datasets, replicated step by step: at every snapshot, what zkeep has is the source's.

Work on files, snapshots renamed and destroyed, rollbacks, clones, promotions, keys changed, datasets made, renamed and
destroyed. Events are dealt like cards: each one that can happen does, before any happens twice as often.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
from lab import LONG, PASSPHRASE, RAW, Key, Lab

SEEDS = range(4) if LONG else range(1)
STEPS = 10 if LONG else 6
TOP, KEPT = "tank/h", "v/h"


class History:
    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab, self.run = lab, lab.guest.run
        self.chance = random.Random(seed)
        self.seed = seed
        self.keys: list[Key] = [lab.key(PASSPHRASE if seed % 2 else RAW)]
        self.made = 0
        self.done: Counter[str] = Counter()
        self.files: Counter[str] = Counter()
        self.deck: list[str] = []
        size = self.chance.choice(["4K", "16K", "128K"])
        options = f"-o recordsize={size} -o dnodesize=auto -o compression=zstd"
        self.run(f"zfs create -o encryption=on {self.keys[0].creating} {options} {TOP}")
        self.run(f"zfs create {TOP}/child")
        self.work()

    # What happens at the source; an event says if it could not happen now

    def datasets(self) -> list[str]:
        return self.run(f"zfs list -H -o name -r {TOP}").splitlines()

    def snapshots(self, dataset: str) -> list[str]:
        return self.run(f"zfs list -H -o name -t snapshot -s createtxg -d 1 {dataset}").splitlines()

    def told(self, prop: str, kind: str) -> dict[str, str]:
        """A property of all datasets or snapshots, by name; what is `-` or empty is left out."""
        lines = self.run(f"zfs get -H -o name,value -t {kind} -r {prop} {TOP}").splitlines()
        pairs = (line.split("\t") for line in lines)
        return {name: value for name, value in pairs if value not in ("", "-")}

    def cloned(self) -> set[str]:
        """Snapshots that something is a clone of."""
        return set(self.told("clones", "snapshot"))

    def work(self) -> None:
        for dataset in self.datasets():
            if self.chance.random() < 0.8:
                self.change(dataset, self.chance.choice([3, 8, 20]))

    def change(self, dataset: str, count: int) -> None:
        self.files += self.lab.guest.work(self.chance.randrange(1 << 30), count, f"/{dataset}")

    def new_name(self, kind: str) -> str:
        self.made += 1
        return f"{kind}{self.made}"

    def create(self) -> None:
        self.run(f"zfs create {self.chance.choice(self.datasets())}/{self.new_name('new')}")

    def rename(self) -> None:
        old = self.chance.choice([name for name in self.datasets() if name != TOP])
        self.run(f"zfs rename {old} {old.rsplit('/', 1)[0]}/{self.new_name('renamed')}")

    def destroy(self) -> bool:
        """A dataset with nothing below it and no clone of it, but never the last one."""
        names = self.datasets()
        leaves = [name for name in names if not any(other.startswith(f"{name}/") for other in names)]
        origins = {snapshot.split("@")[0] for snapshot in self.cloned()}
        free = [name for name in leaves if name not in origins]
        if len(free) < 2:
            return False
        self.run(f"zfs destroy -r {self.chance.choice(free)}")
        return True

    def extra_snapshot(self) -> None:
        self.run(f"zfs snapshot {self.chance.choice(self.datasets())}@{self.new_name('extra')}")

    def _old(self, *prefixes: str) -> list[str]:
        every = self.run(f"zfs list -H -o name -t snapshot -s name -r {TOP}").splitlines()
        return [name for name in every if name.split("@")[1].startswith(prefixes)]

    def destroy_snapshot(self) -> bool:
        cloned = self.cloned()
        free = [name for name in self._old("extra") if name not in cloned]
        if free:
            self.run(f"zfs destroy {self.chance.choice(free)}")
        return bool(free)

    def rename_snapshot(self) -> bool:
        old = self._old("extra")
        if old:
            name = self.chance.choice(old)
            self.run(f"zfs rename {name} {name.split('@')[0]}@{self.new_name('extra')}")
        return bool(old)

    def clone(self) -> bool:
        """A clone of a snapshot that was replicated, or of one that was not yet; not of the root of encryption."""
        old = [name for name in self._old("extra", "r") if not name.startswith(f"{TOP}@")]
        if old:
            self.run(f"zfs clone {self.chance.choice(old)} {TOP}/{self.new_name('clone')}")
        return bool(old)

    def promote(self) -> bool:
        """A clone, perhaps replicated as one."""
        clones = sorted(self.told("origin", "filesystem"))
        if clones:
            self.run(f"zfs promote {self.chance.choice(clones)}")
        return bool(clones)

    def change_key(self) -> None:
        self.keys.append(self.lab.key(self.chance.choice([RAW, PASSPHRASE])))
        self.run(f"zfs change-key {self.keys[-1].creating} {TOP}")

    def rollback(self) -> bool:
        """To a snapshot not older than what was replicated; what came after it is undone."""
        datasets = sorted({name.split("@")[0] for name in self._old("r")})
        if not datasets:
            return False
        dataset = self.chance.choice(datasets)
        snapshots = self.snapshots(dataset)
        sent = max(at for at, name in enumerate(snapshots) if "@r" in name)
        later = snapshots[sent + 1 :]
        self.change(dataset, 10)
        self.run(f"zfs snapshot {dataset}@{self.new_name('undone')}")
        self.change(dataset, 10)
        free = not self.cloned() & set(later)
        self.run(f"zfs rollback -r {snapshots[sent if free else -1]}")
        self.mount()
        return True

    def mount(self) -> None:
        """A folder that a rollback took away had a dataset mounted on it."""
        test = '[ "$(zfs get -H -o value mounted $d)" = yes ]'
        self.run(f"for d in $(zfs list -H -o name -r {TOP}); do {test} || zfs mount $d || exit 1; done")

    EVENTS = (
        *("create", "rename", "destroy", "extra_snapshot", "destroy_snapshot", "rename_snapshot", "clone", "promote"),
        *("change_key", "rollback", "work"),
    )

    def event(self) -> None:
        """The next card that can be played. Who snapshots and clones finds something to destroy, rename, promote."""
        if len(self.deck) < len(self.EVENTS):
            self.deck += self.chance.sample(self.EVENTS, len(self.EVENTS))
        for name in list(self.deck):
            if getattr(self, name)() is not False:
                self.deck.remove(name)
                self.done[name] += 1
                return

    def missed(self) -> None:
        """At the end, what did not happen yet: there are snapshots and a clone for it now."""
        left = [name for name in self.EVENTS if not self.done[name]]
        for name in ("extra_snapshot", "extra_snapshot", "clone", *left) if left else ():
            self.done[name] += getattr(self, name)() is not False

    # Replication and its judgement

    def step(self, number: int) -> None:
        for _ in range(3 if number else 1):
            self.event()
        if number == STEPS - 1:
            self.missed()
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
        self.lab.kernel_opens("back/h", *self.keys)
        names = sorted(self.there())
        self.lab.same([f"back/h{name}" for name in names], [TOP + name for name in names])
        self.lab.kernel_finds_no_fault()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_history_is_followed(lab: Lab, report: object, seed: int) -> None:
    history = History(lab, seed)
    for number in range(STEPS):
        history.step(number)
    history.back(STEPS - 1)
    text = f"history {seed}: {STEPS} steps, {len(history.there())} snapshots equal; {counted(history.done)}"
    report.add(f"{text}; in files: {counted(history.files)}")  # type: ignore[attr-defined]
    assert set(history.done) == set(History.EVENTS)


def counted(events: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(events.items()))
