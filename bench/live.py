"""A dataset that is mounted read-write, beside gocryptfs and a plain folder, in one run.

    python bench/live.py --folder FOLDER [--size MEGABYTES] [--files NUMBER] [--tree FOLDER] [--turns 3]

In each turn, each task runs on all three. What earlier tasks left to be written is written before, and caches are
dropped; what creating files leaves is a task of its own ("sync them"). From the second turn on, the large file is
emptied and written again. Prints medians: seconds by the clock, and seconds of CPU, of the task and of the process that
serves the folder; then zkeep's speed as a share of gocryptfs's. Single runs scatter by half; CPU is what to compare
where a machine has other work. Needs root, FUSE, and gocryptfs (Debian: apt install gocryptfs; without it, it is left
out).
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from mounted import ZKEEP, cpu_of, wait_for

PIECE = os.urandom(1 << 20)
SYNC = "sync them"
Task = Callable[[Path], object]


class Place(NamedTuple):
    """A folder to measure in, and the process that serves it (None: the kernel)."""

    name: str
    folder: Path
    server: int | None


@contextmanager
def zkeep_folder(folder: Path) -> Iterator[Place]:
    environment = {**os.environ, "ZKEEP_HOME": str(folder / "home"), "XDG_RUNTIME_DIR": str(folder)}
    key, mount = folder / "key", folder / "live"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    mount.mkdir()
    options = ["encryption=on", "keyformat=raw", f"keylocation=file://{key}"]
    subprocess.run([*ZKEEP, "pool", "create", "b", str(folder / "pool")], check=True, env=environment)
    subprocess.run([*ZKEEP, "create", *[w for o in options for w in ("-o", o)], "b/x"], check=True, env=environment)
    server = subprocess.Popen([*ZKEEP, "mount", "-f", "-L", f"file://{key}", "b/x", str(mount)], env=environment)
    try:
        wait_for(mount, server)
        yield Place("zkeep", mount, server.pid)
        subprocess.run([*ZKEEP, "unmount", str(mount)], check=True, env=environment)
    finally:
        server.terminate()
        server.wait()
        subprocess.run([*ZKEEP, "unload-key", "-a"], check=False, env=environment, stdout=subprocess.DEVNULL)


@contextmanager
def gocryptfs_folder(folder: Path) -> Iterator[Place]:
    cipher, mount, password = folder / "cipher", folder / "gocryptfs", folder / "password"
    for each in (cipher, mount):
        each.mkdir()
    password.write_text("password")
    subprocess.run(["gocryptfs", "-q", "-init", "-passfile", password, "-scryptn", "10", cipher], check=True)
    server = subprocess.Popen(["gocryptfs", "-q", "-fg", "-passfile", password, cipher, mount])
    try:
        wait_for(mount, server)
        yield Place("gocryptfs", mount, server.pid)
        subprocess.run(["fusermount3", "-u", mount], check=True)
    finally:
        server.terminate()
        server.wait()


class Tasks:
    """What is measured, each in a folder."""

    def __init__(self, size: int, files: int, archive: Path | None) -> None:
        self._size = size
        self._files = files
        self._archive = archive

    def all(self) -> dict[str, Task]:
        found: dict[str, Task] = {
            f"write {self._size} MiB, fsync": self.write,
            "read it": self.read,
            f"create {self._files} files": self.create,
            SYNC: _sync,
            "read them": self.read_all,
            "stat them": self.stat_all,
            "remove them": lambda folder: shutil.rmtree(folder / "many"),
        }
        return found | ({"tar -x": self.unpack, "remove it": self.remove} if self._archive is not None else {})

    def write(self, folder: Path) -> None:
        with (folder / "large").open("wb", buffering=0) as file:
            for _ in range(self._size):
                file.write(PIECE)
            os.fsync(file.fileno())

    def read(self, folder: Path) -> None:
        with (folder / "large").open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass

    def create(self, folder: Path) -> None:
        for number in range(self._files):
            path = folder / "many" / str(number // 500)
            path.mkdir(parents=True, exist_ok=True)
            (path / str(number)).write_bytes(PIECE[: 100 + number % 4000])

    def read_all(self, folder: Path) -> None:
        for path in _files_in(folder / "many"):
            with open(path, "rb") as file:
                file.read()

    def stat_all(self, folder: Path) -> None:
        for path in _files_in(folder / "many"):
            os.lstat(path)

    def unpack(self, folder: Path) -> None:
        (folder / "tree").mkdir()
        subprocess.run(["tar", "-xf", str(self._archive), "-C", folder / "tree"], check=True)

    def remove(self, folder: Path) -> None:
        shutil.rmtree(folder / "tree")


def _sync(folder: Path) -> None:
    """Let all be written that waits. The kernel passes on fsync(2) to a FUSE file system, and sync(2) to none."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    os.sync()


def _files_in(folder: Path) -> Iterator[str]:
    for path, _, names in os.walk(folder):
        yield from (f"{path}/{name}" for name in names)


def measure(place: Place, task: Task) -> tuple[float, float]:
    """Seconds by the clock and of CPU."""
    if task is not _sync:
        _sync(place.folder)
        Path("/proc/sys/vm/drop_caches").write_text("3")
    own = sum(resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime for who in _WHO)
    served = cpu_of(place.server) if place.server else 0.0
    started = time.monotonic()
    task(place.folder)
    wall = time.monotonic() - started
    used = sum(resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime for who in _WHO) - own
    return wall, used + (cpu_of(place.server) - served if place.server else 0.0)


_WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def memory_of(process: int) -> int:
    """The most megabytes that a process ever had."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))


Found = dict[str, dict[str, list[tuple[float, float]]]]
"Of each task and place, seconds by the clock and of CPU in each turn."


def _turns(places: list[Place], tasks: dict[str, Task], turns: int) -> Found:
    found: Found = {name: {place.name: [] for place in places} for name in tasks}
    for turn in range(turns):
        for name, task in tasks.items():
            for place in places:
                found[name][place.name].append(measure(place, task))
        print(f"turn {turn + 1}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    return found


def _print_table(places: list[Place], found: Found) -> None:
    columns = [place.name for place in places]
    print("| task | " + " | ".join([*columns, "zkeep / gocryptfs"]) + " |\n| --- |" + " --- |" * (len(columns) + 1))
    for name, by_place in found.items():
        medians = {each: [median(side) for side in zip(*pairs, strict=True)] for each, pairs in by_place.items()}
        row = [f"{wall:.2f} / {cpu:.2f}" for wall, cpu in medians.values()]
        ours, theirs = medians["zkeep"], medians.get("gocryptfs")
        row.append(" / ".join(f"{t / o:.2f}" if o else "" for o, t in zip(ours, theirs, strict=True)) if theirs else "")
        print(f"| {name} | " + " | ".join(row) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--size", type=int, default=512, help="MiB")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tree", type=Path, help="a folder for tar -x")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as text, ExitStack() as stack:
        folder = Path(text)
        archive = folder / "tree.tar" if given.tree else None
        if archive is not None:
            subprocess.run(["tar", "-cf", archive, "-C", given.tree, "."], check=True)
        (folder / "plain").mkdir()
        places = [Place("plain", folder / "plain", None), stack.enter_context(zkeep_folder(folder))]
        if shutil.which("gocryptfs"):
            places.append(stack.enter_context(gocryptfs_folder(folder)))
        print(f"load {os.getloadavg()[0]:.1f}; medians of {given.turns} turns: seconds by the clock / of CPU")
        _print_table(places, _turns(places, Tasks(given.size, given.files, archive).all(), given.turns))
        for place in places:
            if place.server:
                print(f"{place.name}: at most {memory_of(place.server)} MiB of memory")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
