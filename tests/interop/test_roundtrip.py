"""What the kernel sent goes through zkeep in every way, and the kernel takes it, mounts it and finds no fault."""

from __future__ import annotations

import random
from itertools import combinations, product

import pytest
from lab import HEX, LONG, PASSPHRASE, RAW, Key, Lab

SHORT_ROWS = 5
FACTORS = {
    "suite": [f"aes-{bits}-{mode}" for mode in ("gcm", "ccm") for bits in (256, 128, 192)],
    "keyformat": [RAW, PASSPHRASE, HEX],
    "compression": ["lz4", "zstd", "gzip", "off", "lzjb", "zle"],
    "recordsize": ["128K", "16K", "4K", "1M", "512"],
    "kind": ["filesystem", "volume"],
    "way": ["full", "i", "I", "R", "bookmark", "resumed", "elsewhere"],
    "prune": ["no", "middle"],
}
Row = dict[str, str]


def pairwise_rows() -> list[Row]:
    """Rows in which every two values of two factors meet; the first ones cover most."""
    names = list(FACTORS)
    chance = random.Random(2)
    left = {
        ((a, x), (b, y)) for a, b in combinations(names, 2) for x, y in product(FACTORS[a], FACTORS[b])
    }  # fmt: skip
    rows = []
    while left:
        tries = [_grown(chance.choice(sorted(left)), chance, names) for _ in range(60)]
        best = max(tries, key=lambda row: len(_pairs(row) & left))
        left -= _pairs(best)
        rows.append(best)
    return rows


def _grown(seed: tuple[tuple[str, str], tuple[str, str]], chance: random.Random, names: list[str]) -> Row:
    return {name: dict(seed).get(name) or chance.choice(FACTORS[name]) for name in names}


def _pairs(row: Row) -> set[tuple[tuple[str, str], tuple[str, str]]]:
    return set(combinations(row.items(), 2))


ROWS = pairwise_rows()[: None if LONG else SHORT_ROWS]


class Trip:
    """One row: a dataset with snapshots s0 to s3, sent to zkeep as it grows, and back."""

    def __init__(self, lab: Lab, row: Row, seed: int) -> None:
        self.lab, self.row, self.seed = lab, row, seed
        self.chance = random.Random(seed)
        self.resumed = 0
        self.key: Key = lab.key(row["keyformat"])
        self.source, self.kept, self.back = "tank/d", "v/d", "back/d"

    def make(self) -> None:
        options = f"-o encryption={self.row['suite']} {self.key.creating} -o compression={self.row['compression']}"
        size = self.row["recordsize"]
        if self.row["kind"] == "volume":
            size = "128K" if size == "1M" else size
            self.lab.guest.run(f"zfs create -V 8M -o volblocksize={size} {options} {self.source}")
            self.place = self.lab.guest.device(self.source)
        else:
            self.lab.guest.run(f"zfs create -o recordsize={size} -o dnodesize=auto {options} {self.source}")
            self.place = f"/{self.source}"
        for number in range(4):
            self.lab.guest.work(self.seed * 10 + number, 24 if number == 0 else 8, self.place)
            self.lab.guest.run(f"zfs snapshot {self.source}@s{number}")

    def bring(self) -> None:
        """From the kernel into zkeep."""
        lab, source = self.lab, self.source
        steps = {"R": [f"-Rw {source}@s3"], "I": [f"-w {source}@s0", f"-w -I @s0 {source}@s3"]}
        single = [f"-w {source}@s0", *(f"-w -i @s{n} {source}@s{n + 1}" for n in range(3))]
        for words in steps.get(self.row["way"], single):
            lab.kernel_sends("in.zfs", words)
            self._into_zkeep("in.zfs")
        if self.row["way"] == "bookmark":
            lab.zkeep("bookmark", f"{self.kept}@s1", f"{self.kept}#b1")

    def _into_zkeep(self, stream: str) -> None:
        """A way that is resumed: the stream is cut, and the kernel goes on from our token."""
        if self.row["way"] == "resumed":
            self.resumed += self.lab.receive_cut(stream, self._somewhere(stream), self.kept)
        else:
            self.lab.receive(stream, self.kept)

    def _somewhere(self, stream: str) -> int:
        """A byte after the first records, before the end."""
        size = (self.lab.share / stream).stat().st_size
        return self.chance.randrange(size // 3, size - 312)

    def prune(self) -> None:
        if self.row["prune"] == "middle":
            last = "s2" if self.row["way"] != "i" else "s1"
            self.lab.zkeep("destroy", f"{self.kept}@s1%{last}")
            self.lab.zkeep("pool", "compact", "v")

    def give(self) -> None:
        """From zkeep into the kernel's other pool. What the increments stand on is sent before anything is pruned."""
        way, kept = self.row["way"], self.kept
        first = {"bookmark": "@s1", "i": "@s0", "I": "@s0"}.get(way)
        if first:
            self._across(f"{kept}{first}")
        if way == "elsewhere":
            self.lab.guest.run(f"zfs send -w {self.source}@s0 | zfs receive -u {self.back}")
        self.prune()
        last = f"{kept}@s3"
        rest = {
            "full": [[last]],
            "resumed": [[f"{kept}@s0"], ["-i", "@s0", last]],
            "R": [["-R", last]],
            "bookmark": [["-i", "#b1", last]],
            "elsewhere": [["-i", "@s0", last]],
            "I": [["-I", "@s0", last]],
            "i": [["-i", "@s0", f"{kept}@s2"], ["-i", "@s2", last]],
        }
        for words in rest[way]:
            self._across(*words)

    def _across(self, *words: str) -> None:
        lab = self.lab
        lab.send("out.zfs", "-w", *words)
        if self.row["way"] == "resumed":
            part = lab.cut("out.zfs", self._somewhere("out.zfs"))
            assert lab.kernel_receives(part, f"-s -u {self.back}").status != 0
            token = lab.guest.run(f"zfs get -H -o value receive_resume_token {self.back}")
            lab.send("out.zfs", "-t", token)
        lab.kernel_takes("out.zfs", f"-s -u {self.back}")

    def compare(self) -> None:
        lab = self.lab
        assert bool(self.resumed) == (self.row["way"] == "resumed")
        lab.kernel_opens(self.back, self.key)
        names = self.snapshots()
        lab.same([f"{self.back}@{name}" for name in names], [f"{self.source}@{name}" for name in names])
        lab.kernel_finds_no_fault()
        lab.opens([f"{self.kept}@s3"], [f"{self.source}@s3"], self.key)

    def snapshots(self) -> list[str]:
        names = self.lab.guest.run(f"zfs list -H -o name -t snapshot -s createtxg {self.back}").splitlines()
        return [name.split("@")[1] for name in names]


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_there_and_back(lab: Lab, report: object, number: int) -> None:
    row = ROWS[number]
    trip = Trip(lab, row, number)
    trip.make()
    trip.bring()
    trip.give()
    trip.compare()
    report.add("  ".join(f"{row[name]:<11}" for name in FACTORS) + f"{len(trip.snapshots())} snapshots equal")  # type: ignore[attr-defined]
