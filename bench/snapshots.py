"""Snapshots of a mounted dataset with many files, while a program writes to it: how long they take, and hold it up.

    python bench/snapshots.py --folder FOLDER [--files 1000000] [--rounds 5]

The files come from a folder by `zkeep snapshot --from`, then the dataset is mounted. A thread writes small files into
it. Prints seconds of each `zkeep snapshot`, its start included, and the longest time that one file took meanwhile, and
while there was none. Needs FUSE; the folder of files is made in /dev/shm.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from mounted import ZKEEP, cpu_of, wait_for

PAUSE = 0.002
"Seconds between two files."


class Writer(threading.Thread):
    """Writes files until it is told to end. `took`: when each was begun, and seconds."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._ended = threading.Event()
        self.took: list[tuple[float, float]] = []

    def run(self) -> None:
        number = 0
        while not self._ended.wait(PAUSE):
            started = time.monotonic()
            (self._folder / f"new {number}").write_bytes(b"%d" % number * 20)
            self.took.append((started, time.monotonic() - started))
            number += 1

    def end(self) -> None:
        self._ended.set()
        self.join()

    def longest(self, start: float, end: float) -> float:
        """The longest time that a file took that was being written between two moments."""
        return max((took for at, took in self.took if at < end and at + took > start), default=0.0)


def make_files(folder: Path, number: int) -> None:
    for at in range(number):
        if at % 1000 == 0:
            below = folder / str(at // 1000)
            below.mkdir(parents=True)
        (below / str(at)).write_bytes(b"%d" % at * 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=given.folder) as text,
        tempfile.TemporaryDirectory(dir="/dev/shm") as files,
    ):
        folder = Path(text)
        environment = {**os.environ, "ZKEEP_HOME": str(folder / "home"), "XDG_RUNTIME_DIR": str(folder)}

        def do(*words: str) -> float:
            started = time.monotonic()
            subprocess.run([*ZKEEP, *words], check=True, env=environment)
            return time.monotonic() - started

        key, mount = folder / "key", folder / "live"
        key.write_bytes(os.urandom(32))
        key.chmod(0o600)
        mount.mkdir()
        options = ["encryption=on", "keyformat=raw", f"keylocation=file://{key}"]
        do("pool", "create", "b", str(folder / "pool"))
        do("create", *[word for option in options for word in ("-o", option)], "b/x")
        make_files(Path(files), given.files)
        print(f"{given.files} files stored in {do('snapshot', '--from', files, 'b/x@first'):.0f} s", flush=True)
        server = subprocess.Popen([*ZKEEP, "mount", "-f", "-L", f"file://{key}", "b/x", str(mount)], env=environment)
        try:
            measure(mount, server, do, given.rounds)
            do("unmount", str(mount))
        finally:
            server.terminate()
            server.wait()
            do("unload-key", "-a")


def measure(mount: Path, server: subprocess.Popen[bytes], do: Callable[..., float], rounds: int) -> None:
    """Print what snapshots take and how long the writer is held up. `do` runs a verb, and says how long it took."""
    started = time.monotonic()
    wait_for(mount, server)
    print(f"mounted in {time.monotonic() - started:.1f} s; load {os.getloadavg()[0]:.1f}", flush=True)
    writer = Writer(mount)
    writer.start()
    try:
        time.sleep(12)
        last = time.monotonic()
        print(f"the longest time of a file without a snapshot: {writer.longest(last - 11, last):.2f} s", flush=True)
        for number in range(rounds):
            start, cpu = time.monotonic(), cpu_of(server.pid)
            took = do("snapshot", f"b/x@{number}")
            end = time.monotonic()
            used, held = cpu_of(server.pid) - cpu, writer.longest(start, end)
            print(f"snapshot: {took:.2f} s, {used:.2f} of CPU of the mount, a file at most {held:.2f} s", flush=True)
            time.sleep(2)
    finally:
        writer.end()


if __name__ == "__main__":
    main()
