"""Many clients of zkeep server at once: each receives a stream into its own root.

    python bench/server.py --folder FOLDER --clients 50 --size 20

Each client is a process, as sshd starts it. Printed are the throughput of all together, the slowest beside the fastest,
and the memory of the largest process; the same for one client alone is above it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from makestream import Shape, full

from zkeep.pool.datasets import namespace
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.registry import Registry


@dataclass(frozen=True)
class Outcome:
    """`seconds` of each client, `peaks` in bytes."""

    seconds: list[float]
    peaks: list[int]
    failed: int


def prepare(folder: Path, clients: int) -> None:
    """A pool with a root and a quota for each client."""
    with Pool.create(folder / "pool", "v") as pool:
        for number in range(clients):
            namespace.create(pool, pool.full(f"c{number}"), {"quota": "10G"})
    Registry(folder / "home").add("v", folder / "pool")


def start(folder: Path, number: int, stream: Path) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "ZKEEP_HOME": str(folder / "home"),
        "ZKEEP_WAIT": "60",
        "SSH_ORIGINAL_COMMAND": f"zfs receive -s v/c{number}/data{time.time_ns()}",
    }
    with stream.open("rb") as source:
        return subprocess.Popen(
            [sys.executable, "-m", "zkeep", "server", "--root", f"v/c{number}"], stdin=source, env=environment
        )


def together(folder: Path, clients: int, stream: Path) -> Outcome:
    """Start all, and wait for each: its time, and its peak of memory."""
    began = time.monotonic()
    running = {start(folder, number, stream).pid for number in range(clients)}
    seconds, peaks, failed = [], [], 0
    while running:
        pid, status, usage = os.wait4(-1, 0)
        running.discard(pid)
        seconds.append(time.monotonic() - began)
        peaks.append(usage.ru_maxrss * 1024)
        failed += bool(status)
    return Outcome(seconds, peaks, failed)


def line(outcome: Outcome, size: int) -> str:
    clients, total = len(outcome.seconds), max(outcome.seconds)
    rate = clients * size / total / 1e6
    return (
        f"| {clients} | {total:.1f} s | {rate:.0f} MB/s | {min(outcome.seconds):.1f} to {total:.1f} s "
        f"| {max(outcome.peaks) / 1e6:.0f} | {outcome.failed} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--size", type=int, default=20, help="MB of each stream")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        stream = folder / "stream"
        with stream.open("wb") as sink:
            full(Shape(options.size * 1_000_000 // 131072, 131072, 512), sink)
        prepare(folder, options.clients)
        print("| clients at once | all done in | together | each in | peak MB of one | failed |")
        print("| --- | --- | --- | --- | --- | --- |")
        for clients in (1, 10, options.clients):
            print(line(together(folder, clients, stream), stream.stat().st_size), flush=True)


if __name__ == "__main__":
    main()
