"""Looking for little in much, with the key: a folder of many files, one file beside a million, one beside a huge one.

    python bench/opening.py --folder FOLDER [--rounds 3] [--scale 0.1] [NAME...]

Prints a row for each; the pool is in the page cache, as a first look that is not counted brings it there. Whole
processes, start included: medians of wall and CPU seconds, and the highest peak. Of `mounted` CPU is that of the
serving process and of `ls` together, and nothing of the mount is held by the system. Needs 10 GB for all; `mounted`
needs root, FUSE and `pip install '.[mount]'`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path

from mounted import cpu_of, wait_for
from run import ZKEEP, Bench, Cost, measured, sum_up

MAKE = [sys.executable, str(Path(__file__).parent / "sealing.py")]
Measure = Callable[[Bench], list[Cost]]


@contextmanager
def pool_of(bench: Bench, shape: str) -> Iterator[str]:
    """A pool with a filesystem of this shape; yields how to say its key."""
    stream, key = bench.folder / "stream", bench.folder / "key"
    with bench.pool():
        bench.run([*MAKE, str(stream), str(key), *shape.split()])
        bench.zkeep("receive b/x", stream)
        stream.unlink()
        os.sync()
        yield f"-L file://{key}"


def _repeated(bench: Bench, shape: str, line: str) -> list[Cost]:
    """`line`: with KEY for the key."""
    with pool_of(bench, shape) as key:
        bench.zkeep(line.replace("KEY", key))
        return [bench.zkeep(line.replace("KEY", key)) for _ in range(bench.rounds)]


def _many(bench: Bench) -> str:
    return f"--folders 1 --files {bench.sized(100_000)} --size 4096"


def listed(bench: Bench) -> list[Cost]:
    """`zkeep ls -l` of 100,000 files whose names are in the order in which they lie"""
    return _repeated(bench, _many(bench), "ls -l KEY b/x@s0 d0")


def shuffled(bench: Bench) -> list[Cost]:
    """The same, names in any order"""
    return _repeated(bench, _many(bench) + " --shuffle", "ls -l KEY b/x@s0 d0")


def mounted(bench: Bench) -> list[Cost]:
    """`ls -l` of that folder in a mount"""
    with pool_of(bench, _many(bench) + " --shuffle") as key:
        return [_mounted(bench, key) for _ in range(bench.rounds)]


def _mounted(bench: Bench, key: str) -> Cost:
    top = bench.folder / "mount"
    top.mkdir(exist_ok=True)
    with subprocess.Popen([*ZKEEP, "mount", "-f", *key.split(), "b/x@s0", str(top)]) as server:
        try:
            wait_for(top, server)
            before = cpu_of(server.pid)
            cost = bench.run(["ls", "-l", str(top / "d0")])
            peak = next(line for line in Path(f"/proc/{server.pid}/status").read_text().splitlines() if "VmHWM" in line)
            return Cost(cost.seconds, int(peak.split()[1]) / 1024, cost.cpu + cpu_of(server.pid) - before)
        finally:
            server.send_signal(signal.SIGTERM)


def million(bench: Bench) -> list[Cost]:
    """`zkeep cat` of 1 MiB out of a million files of 512 bytes"""
    shape = f"--folders {bench.sized(1000)} --files 1000 --size 512 --one 1048576"
    return _repeated(bench, shape, "cat KEY b/x@s0 one")


def sparse(bench: Bench) -> list[Cost]:
    """`zkeep cat` of 1 MiB beside a file of 100 GiB of which every eighth record is written"""
    return _repeated(bench, f"--one 1048576 --sparse {100 << 30} --every 8", "cat KEY b/x@s0 one")


def _row(measure: Measure, bench: Bench) -> Iterator[Sequence[str]]:
    cost = sum_up(measure(bench))
    yield [measure.__doc__ or "", f"{cost.seconds:.2f} s", f"{cost.cpu:.2f} s", f"{cost.megabytes:.0f}"]


def _rows(measure: Measure) -> Callable[[Bench], Iterator[Sequence[str]]]:
    return wraps(measure)(partial(_row, measure))


MEASURES = tuple(map(_rows, (listed, shuffled, mounted, million, sparse)))

if __name__ == "__main__":
    measured(__doc__, MEASURES, ("", "wall", "CPU", "peak MB"), "opening")
