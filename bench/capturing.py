"""Making snapshots of folders, beside restic and borg.

    python bench/capturing.py --folder FOLDER --tree /usr [--restic PROGRAM] [--borg PROGRAM] [NAME...]

`tree`: the same copy of a tree for all, in turns: a first snapshot, one of an unchanged tree, one after a small change
(of 1 file in 1,000: 10 changed, 10 new, 10 gone, at least). zkeep stores it with zstd and records of 1 MiB, restic as
it is, borg with zstd. `append`: 4 KiB appended to a file of 10 GiB, beside reading it. `many`: small files, --scale of
a million. Whole processes, start included. Needs the tree six times, and 30 GB for `append`.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from run import ZKEEP, Bench, Cost, Table

PROPERTIES = ("encryption=on", "keyformat=raw", "compression=zstd", "recordsize=1M")
Costs = dict[tuple[str, str], list[Cost]]
"By program and what it did."


@dataclass
class Program:
    """One that stores folders: how its store is made, where it lies, and how a folder is stored once more."""

    name: str
    store: Path
    make: Callable[[], object]
    take: Callable[[int], Sequence[str]]

    def size(self) -> int:
        return sum(p.stat().st_blocks * 512 for p in self.store.rglob("*") if p.is_file())


def zkeep(bench: Bench, tree: Path) -> Program:
    store, key = bench.folder / "pool", bench.folder / "key"

    def make() -> None:
        if store.exists():
            bench.zkeep("pool destroy -f b")
            bench.zkeep("pool compact b")
        key.write_bytes(bytes(range(32)))
        bench.zkeep(f"pool create b {store}")
        options = " ".join(f"-o {word}" for word in (*PROPERTIES, f"keylocation=file://{key}"))
        bench.zkeep(f"create {options} b/home")

    return Program("zkeep", store, make, lambda turn: [*ZKEEP, "snapshot", "--from", str(tree), f"b/home@{turn}"])


def restic(bench: Bench, tree: Path, program: str) -> Program:
    store = bench.folder / "restic"
    os.environ["RESTIC_PASSWORD"] = "x"
    os.environ["RESTIC_CACHE_DIR"] = str(bench.folder / "restic-cache")

    def make() -> None:
        shutil.rmtree(store, ignore_errors=True)
        bench.run([program, "-q", "init", "-r", str(store)])

    return Program("restic", store, make, lambda turn: [program, "-q", "backup", "-r", str(store), str(tree)])


def borg(bench: Bench, tree: Path, program: str) -> Program:
    store = bench.folder / "borg"
    os.environ |= {"BORG_PASSPHRASE": "x", "BORG_BASE_DIR": str(bench.folder / "borg-base")}
    os.environ["BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK"] = "yes"

    def make() -> None:
        shutil.rmtree(store, ignore_errors=True)
        bench.run([program, "init", "-e", "repokey", str(store)])

    return Program("borg", store, make, lambda turn: [program, "create", "-C", "zstd", f"{store}::{turn}", str(tree)])


def tree_beside(bench: Bench, source: Path, programs: Sequence[Callable[[Path], Program]]) -> Iterator[Table]:
    """The same folder stored by each program, in turns."""
    tree = bench.folder / "tree"
    subprocess.run(["cp", "-a", "--one-file-system", source, tree], check=True)
    ready = [make(tree) for make in programs]
    costs: Costs = {}
    stored: dict[str, int] = {}
    for turn in range(bench.rounds):
        for program in ready:
            program.make()
        for at, step in enumerate(("first", "unchanged", "small change")):
            if step == "small change":
                change(tree, turn)
            for program in ready:
                subprocess.run(["sh", "-c", f"find {tree} -type f -exec cat {{}} + > /dev/null"], check=False)
                costs.setdefault((program.name, step), []).append(bench.run(program.take(at)))
                if step == "first":
                    stored[program.name] = program.size()
    head = ["", *(f"{p.name}: seconds (CPU), peak MB" for p in ready), *(f"{p.name} / zkeep" for p in ready[1:])]
    rows = [list(_beside(costs, ready, step)) for step in ("first", "unchanged", "small change")]
    ratios = [f"{stored[p.name] / stored['zkeep']:.2f}" for p in ready[1:]]
    rows.append(["stored", *(f"{stored[p.name] / 1e6:.0f} MB" for p in ready), *ratios])
    yield Table(f"The tree {source}, {_count(tree):,} files", head, rows)


def _count(tree: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(tree))


def _beside(costs: Costs, programs: Sequence[Program], step: str) -> Iterator[str]:
    yield step
    for program in programs:
        every = costs[program.name, step]
        seconds, cpu = median(c.seconds for c in every), median(c.cpu for c in every)
        yield f"{seconds:.2f} ({cpu:.1f}), {max(c.megabytes for c in every):.0f}"
    mine = costs["zkeep", step]
    for program in programs[1:]:
        pairs = list(zip(costs[program.name, step], mine, strict=True))
        wall, cpu = median(b.seconds / a.seconds for b, a in pairs), median(b.cpu / a.cpu for b, a in pairs)
        yield f"{wall:.2f} (CPU {cpu:.2f})"


def change(tree: Path, seed: int) -> None:
    """One file in 1,000 changed, as many new and gone."""
    chance = random.Random(seed)
    files = sorted(p for p in tree.rglob("*") if p.is_file() and not p.is_symlink())
    chosen = chance.sample(files, 3 * max(len(files) // 1000, min(10, len(files) // 3)))
    for at, path in enumerate(chosen):
        if at % 3 == 0:
            with path.open("ab") as sink:
                sink.write(chance.randbytes(100))
        elif at % 3 == 1:
            (path.parent / f"new-{seed}-{at}").write_bytes(chance.randbytes(20_000))
        else:
            path.unlink()


def append(bench: Bench) -> Iterator[Table]:
    """4 KiB appended to a large file; what is sent of it."""
    folder = bench.folder / "large"
    folder.mkdir()
    size = bench.sized(10 << 10) << 20
    with (folder / "file").open("wb") as sink:
        block = os.urandom(1 << 20)
        for at in range(size >> 20):
            sink.write(at.to_bytes(8, "little") + block[8:])
    program = zkeep(bench, folder)
    program.make()
    bench.zkeep("set recordsize=128K b/home")
    bench.run(program.take(0))
    costs, yards, sent = [], [], 0
    for turn in range(1, bench.rounds + 1):
        with (folder / "file").open("ab") as sink:
            sink.write(os.urandom(4096))
        yards.append(bench.run(["cat", str(folder / "file")]))
        costs.append(bench.run(program.take(turn)))
        stream = bench.folder / "stream"
        bench.zkeep(f"send -w -i @{turn - 1} b/home@{turn}", sink=stream)
        sent = max(sent, stream.stat().st_size)
    ratio = median(y.seconds / c.seconds for y, c in zip(yards, costs, strict=True))
    mine, theirs = (median(c.seconds for c in every) for every in (costs, yards))
    cpu, peak = median(c.cpu for c in costs), max(c.megabytes for c in costs)
    row = [f"{size / (1 << 30):.1f} GiB", f"{mine:.1f} ({cpu:.1f})", f"{theirs:.1f}", f"{ratio:.2f}"]
    head = ["file", "zkeep snapshot: seconds (CPU)", "cat", "ratio", "bytes sent", "peak MB"]
    yield Table("4 KiB appended", head, [[*row, f"{sent:,}", f"{peak:.0f}"]])
    shutil.rmtree(folder)


def many(bench: Bench) -> Iterator[Table]:
    """Small files, 100 in a folder."""
    folder = bench.folder / "many"
    count = bench.sized(1_000_000)
    for at in range(count // 100):
        place = folder / f"{at // 100:03}" / f"{at:05}"
        place.mkdir(parents=True)
        for number in range(100):
            (place / f"{number}").write_bytes(b"%d\n" % (at * 100 + number))
    program = zkeep(bench, folder)
    program.make()
    first = bench.run(program.take(0))
    bench.run(program.take(1))
    costs = [bench.run(program.take(2 + turn)) for turn in range(bench.rounds)]
    seconds, cpu = median(c.seconds for c in costs), median(c.cpu for c in costs)
    row = [f"{count:,}", f"{first.seconds:.0f} ({first.cpu:.0f}), {first.megabytes:.0f}"]
    row.append(f"{seconds:.1f} ({cpu:.1f}), {max(c.megabytes for c in costs):.0f}")
    yield Table("Many files", ["files", "first: seconds (CPU), peak MB", "unchanged"], [row])
    shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tree", type=Path, default=Path("/usr"))
    parser.add_argument("--restic", default=shutil.which("restic"))
    parser.add_argument("--borg", default=shutil.which("borg"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the file of 10 GiB and of the million files")
    parser.add_argument("which", nargs="*", metavar="NAME", help="tree, append, many; default: all")
    given = parser.parse_args()
    folder = given.folder / "zkeep-bench-capturing"
    folder.mkdir(parents=True)
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    bench = Bench(folder, given.rounds, given.scale)
    programs: list[Callable[[Path], Program]] = [lambda tree: zkeep(bench, tree)]
    programs += [lambda tree: restic(bench, tree, given.restic)] if given.restic else []
    programs += [lambda tree: borg(bench, tree, given.borg)] if given.borg else []
    measures = {"tree": lambda: tree_beside(bench, given.tree, programs), "append": lambda: append(bench)}
    measures["many"] = lambda: many(bench)
    try:
        for name in given.which or measures:
            before = os.getloadavg()[0]
            for table in measures[name]():
                print(table, f"\nLoad: {before:.1f} before, {os.getloadavg()[0]:.1f} after.", sep="\n", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
