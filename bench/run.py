"""Measure zkeep beside the plain tools of the machine, and print tables.

    python bench/run.py --folder /srv/scratch                 everything; needs 20 GB there, takes half an hour
    python bench/run.py --folder /srv/scratch receive list    some of it
    python bench/run.py --folder /srv/scratch --scale 0.1     smaller streams, for a try

Each figure is the median of --rounds runs (3). Where two things are compared they run in turns, and the ratio is the
median of the rounds' ratios, so that a noisy disk hits both. "CPU a GB" and figures in parentheses are CPU seconds of
all threads, which a busy machine disturbs less. Memory is the peak of the process (getrusage). The load is that of the
machine, bench included: well below the number of cores, or wall times say little.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

ZKEEP = [sys.executable, "-m", "zkeep"]
MAKE = [sys.executable, str(Path(__file__).parent / "makestream.py")]
"""A process of its own: the peak memory of a child counts what its parent had when it began."""
KERNELS: dict[str, dict[str, str]] = {"compiled": {}, "numpy": {"ZKEEP_KERNEL": "numpy"}}


class Cost(NamedTuple):
    seconds: float
    megabytes: float
    """Peak memory."""
    cpu: float
    """Seconds of all threads."""


class Bench:
    """A scratch folder, and how often and how large to measure."""

    def __init__(self, folder: Path, rounds: int, scale: float) -> None:
        self.folder = folder
        self.rounds = rounds
        self.scale = scale
        os.environ["ZKEEP_HOME"] = str(folder / "home")
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every start compiles the package again

    def run(
        self,
        command: Sequence[str],
        source: Path | None = None,
        sink: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> Cost:
        """One process from start to end, with its streams from and to files."""
        with open(source or os.devnull, "rb") as stdin, open(sink or os.devnull, "wb") as stdout:
            began = time.perf_counter()
            child = subprocess.Popen(command, stdin=stdin, stdout=stdout, env={**os.environ, **(env or {})})
            _, status, usage = os.wait4(child.pid, 0)
            seconds = time.perf_counter() - began
            child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"{' '.join(command)}: exit status {child.returncode}")
        return Cost(seconds, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime)

    def zkeep(
        self,
        line: str,
        source: Path | None = None,
        sink: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> Cost:
        return self.run([*ZKEEP, *line.split()], source, sink, env)

    @contextmanager
    def pool(self) -> Iterator[None]:
        """A pool `b`, empty."""
        self.zkeep(f"pool create b {self.folder / 'pool'}")
        try:
            yield
        finally:
            self.zkeep("pool destroy b")

    @contextmanager
    def stream(self, size: int, record: int) -> Iterator[Path]:
        """A full stream of `size` MiB, in the page cache."""
        path = self.folder / "stream"
        self.run([*MAKE, str(path), "--size", str(size), "--record", str(record)])
        os.sync()
        try:
            yield path
        finally:
            path.unlink()

    @contextmanager
    def increment(self, size: int, record: int, number: int) -> Iterator[Path]:
        """1,000 changed records."""
        path = self.folder / "increment"
        shape = ["--size", str(size), "--record", str(record)]
        self.run([*MAKE, str(path), *shape, "--from", str(number)])
        try:
            yield path
        finally:
            path.unlink()

    def sized(self, megabytes: int) -> int:
        return max(int(megabytes * self.scale), 8)


@dataclass
class Table:
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        lines = [f"| {' | '.join(row)} |" for row in (self.head, ["---"] * len(self.head), *self.rows)]
        return "\n".join([f"\n## {self.title}\n", *lines] if self.title else lines)


def _settle() -> None:
    os.sync()
    time.sleep(1)


def _rate(size: int, seconds: float) -> str:
    return f"{size / seconds / 1e9:.2f} GB/s"


def _measure(bench: Bench, task: Callable[[], Cost]) -> Cost:
    return sum_up([task() for _ in range(bench.rounds)])


def sum_up(costs: Sequence[Cost]) -> Cost:
    """Medians, and the highest peak."""
    return Cost(median(c.seconds for c in costs), max(c.megabytes for c in costs), median(c.cpu for c in costs))


def _ends(size: int, cost: Cost) -> list[str]:
    """The last columns: CPU seconds a GB, peak MB."""
    return [f"{cost.cpu / size * 1e9:.2f} s", f"{cost.megabytes:.0f}"]


def receive(bench: Bench) -> Iterator[Table]:
    """Beside `dd` of the same bytes to the same disk, with fsync."""
    rows = []
    for megabytes, record in ((2048, 131072), (2048, 4096)):
        with bench.stream(bench.sized(megabytes), record) as path:
            rows += [_receive(bench, path, record, kernel) for kernel in KERNELS]
    head = ["records", "kernel", "zkeep receive", "records/s", "dd conv=fsync", "ratio", "CPU a GB", "peak MB"]
    yield Table("Receive", head, rows)


def _receive(bench: Bench, path: Path, record: int, kernel: str) -> Sequence[str]:
    size = path.stat().st_size
    costs, yards = [], []
    for _ in range(bench.rounds):
        with bench.pool():
            _settle()
            costs.append(bench.zkeep("receive b/data", path, env=KERNELS[kernel]))
        copy = bench.folder / "copy"
        _settle()
        yards.append(bench.run(["dd", f"if={path}", f"of={copy}", "bs=1M", "conv=fsync", "status=none"]))
        copy.unlink()
    mine, theirs = median(c.seconds for c in costs), median(c.seconds for c in yards)
    ratio = median(y.seconds / c.seconds for c, y in zip(costs, yards, strict=True))
    count = f"{size // (record + 312) / mine:,.0f}"
    row = [f"{record // 1024} KiB", kernel, _rate(size, mine), count, _rate(size, theirs), f"{ratio:.2f}"]
    return [*row, *_ends(size, sum_up(costs))]


def send(bench: Bench) -> Iterator[Table]:
    """Beside `cat` of the same stream, both from the page cache, into a file and into a pipe.

    As it came, and put together: the same stream with what an increment changed in it.
    """
    rows: list[Sequence[str]] = []
    for megabytes, record in ((2048, 131072), (2048, 4096)):
        size = bench.sized(megabytes)
        with bench.stream(size, record) as path, bench.pool():
            bench.zkeep("receive b/data", path)
            rows.extend(_send(bench, path, record, "b/data@s0", "as it came"))
            with bench.increment(size, record, 1) as change:
                bench.zkeep("receive b/data", change)
            rows.extend(_send(bench, path, record, "b/data@s1", "put together"))
    yield Table("Send", ["records", "stream", "into", "zkeep send", "cat", "ratio", "CPU a GB", "peak MB"], rows)


def _send(bench: Bench, path: Path, record: int, name: str, what: str) -> Iterator[Sequence[str]]:
    bench.zkeep("pool scrub b")  # brings it into the page cache
    for place, run in (("file", _into_file), ("pipe", _into_pipe)):
        costs: list[Cost] = []
        yards: list[Cost] = []
        for _ in range(bench.rounds):
            costs.append(run(bench, [*ZKEEP, "send", "-w", name]))
            yards.append(run(bench, ["cat", str(path)]))
        size = path.stat().st_size
        mine, theirs = median(c.seconds for c in costs), median(c.seconds for c in yards)
        ratio = median(y.seconds / c.seconds for c, y in zip(costs, yards, strict=True))
        row = [f"{record // 1024} KiB", what, place, _rate(size, mine), _rate(size, theirs), f"{ratio:.2f}"]
        yield [*row, *_ends(size, sum_up(costs))]


def _into_file(bench: Bench, command: Sequence[str]) -> Cost:
    out = bench.folder / "out"
    _settle()
    cost = bench.run(command, sink=out)
    out.unlink()
    return cost


def _into_pipe(bench: Bench, command: Sequence[str]) -> Cost:
    """With a reader that throws it away."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as reader:
        if reader.stdin is None:
            raise SystemExit("no pipe")
        cost = bench.run(command, sink=Path(f"/dev/fd/{reader.stdin.fileno()}"))
        reader.stdin.close()
    return cost


def scrub(bench: Bench) -> Iterator[Table]:
    """From the page cache."""
    rows = []
    for record in (131072, 16384, 4096):
        with bench.stream(bench.sized(1024), record) as path, bench.pool():
            bench.zkeep("receive b/data", path)
            bench.zkeep("pool scrub b")
            for kernel, env in KERNELS.items():
                size = path.stat().st_size
                cost = _measure(bench, partial(bench.zkeep, "pool scrub b", env=env))
                rows.append([f"{record // 1024} KiB", kernel, _rate(size, cost.seconds), *_ends(size, cost)])
    yield Table("Scrub", ["records", "kernel", "zkeep pool scrub", "CPU a GB", "peak MB"], rows)


def increments(bench: Bench) -> Iterator[Table]:
    """The same 1,000 changed records of 512 bytes into a small and into a large dataset."""
    rows, first = [], 0.0
    for size in (25, max(int(2500 * bench.scale), 25)):
        with bench.pool():
            with bench.stream(size, 512) as path:
                base = bench.zkeep("receive b/data", path)
            costs = [_receive_increment(bench, size, n + 1) for n in range(bench.rounds)]
        seconds = median(c.seconds for c in costs)
        first = first or seconds
        memory = f"{max(base.megabytes, *(c.megabytes for c in costs)):.0f}"
        ratio = f"{seconds / first:.2f}"
        cpu = f"{median(c.cpu for c in costs):.2f} s"
        rows.append([f"{size * 2048:,}", f"{base.seconds:.1f} s", f"{seconds:.2f} s", ratio, cpu, memory])
    yield Table("Increments", ["records there", "first receive", "1,000 changed", "ratio", "CPU", "peak MB"], rows)


def _receive_increment(bench: Bench, size: int, number: int) -> Cost:
    with bench.increment(size, 512, number) as change:
        _settle()
        return bench.zkeep("receive b/data", change)


def snapshots(bench: Bench) -> Iterator[Table]:
    """A dataset with 1,000 snapshots of 20 changed records each, beside one with 10."""
    rows = []
    for count in (10, 1000):
        with bench.pool():
            _fill(bench, count)
            listed = _measure(bench, lambda: bench.zkeep("list -t all"))
            short = _measure(bench, lambda: bench.zkeep("list"))
            names = iter(range(3, count))
            gone = _measure(bench, partial(_destroy_next, bench, names))
            rows.append([f"{count:,}", *(f"{c.seconds:.2f} s ({c.cpu:.2f})" for c in (short, listed, gone))])
    yield Table("Snapshots", ["snapshots", "zkeep list", "zkeep list -t all", "zkeep destroy of one"], rows)


def _destroy_next(bench: Bench, names: Iterator[int]) -> Cost:
    return bench.zkeep(f"destroy b/data@s{next(names)}")


def _fill(bench: Bench, count: int) -> None:
    """By one process: starting one for each increment would take most of the time."""
    bench.run([*MAKE, str(bench.folder / "home"), "--snapshots", str(count)])


def measured(
    document: str | None, measures: Sequence[Callable[[Bench], Iterator[Sequence[str]]]], head: Sequence[str], name: str
) -> None:
    """The command line of a file of benchmarks that each give rows of one table; prints the rows as they come."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of files")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(each.__name__ for each in measures))
    given = parser.parse_args()
    folder = given.folder / f"zkeep-bench-{name}"
    folder.mkdir(parents=True)
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    print(Table("", [*head, "load"], []), flush=True)
    try:
        for each in measures:
            if not given.names or each.__name__ in given.names:
                for row in each(Bench(folder, given.rounds, given.scale)):
                    print(f"| {' | '.join(row)} | {os.getloadavg()[0]:.1f} |", flush=True)
    finally:
        shutil.rmtree(folder)


BENCHES = {"receive": receive, "send": send, "scrub": scrub, "increments": increments, "snapshots": snapshots}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="a folder on the disk to measure")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("which", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}; default: all")
    given = parser.parse_args()
    for name in given.which or BENCHES:
        if name not in BENCHES:
            parser.error(f"there is no {name}")
    folder = given.folder / "zkeep-bench"
    folder.mkdir(parents=True)
    try:
        for name in given.which or BENCHES:
            before = os.getloadavg()[0]
            for table in BENCHES[name](Bench(folder, given.rounds, given.scale)):
                print(table, f"\nLoad: {before:.1f} before, {os.getloadavg()[0]:.1f} after.", sep="\n", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
