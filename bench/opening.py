"""Looking for little in much, with the key: a folder of many files, one file beside a million, one beside a huge one.

    python bench/opening.py --folder FOLDER [--rounds 3] [--scale 0.1] [NAME...]

Prints a row for each; the pool is in the page cache, as a first look that is not counted brings it there. Whole
processes, start included: medians of wall and CPU seconds, and the highest peak. Of `mounted` CPU is that of the
serving process and of `ls` together, and nothing of the mount is held by the system. Needs 10 GB for all; `mounted`
needs root, FUSE and `pip install '.[mount]'`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mounted import cpu_of
from run import ZKEEP, Bench, Cost, sum_up

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
            while not os.path.ismount(top):
                time.sleep(0.05)
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


MEASURES: tuple[Measure, ...] = (listed, shuffled, mounted, million, sparse)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of files")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(each.__name__ for each in MEASURES))
    given = parser.parse_args()
    folder = given.folder / "zkeep-bench-opening"
    folder.mkdir(parents=True)
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    print("| | wall | CPU | peak MB | load |\n| --- | --- | --- | --- | --- |")
    try:
        for each in MEASURES:
            if not given.names or each.__name__ in given.names:
                cost = sum_up(each(Bench(folder, given.rounds, given.scale)))
                row = f"{each.__doc__} | {cost.seconds:.2f} s | {cost.cpu:.2f} s | {cost.megabytes:.0f}"
                print(f"| {row} | {os.getloadavg()[0]:.1f} |", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
