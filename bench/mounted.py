"""Reading a mounted snapshot: one file from its beginning to its end, through FUSE.

    python bench/mounted.py --folder FOLDER [--size MEGABYTES] [--rounds 3]

Prints a row for each compression. CPU is that of the serving process and of the reader; the page cache holds the pool
and, as it is dropped between rounds, nothing of the mount. Needs root, FUSE and `pip install '.[mount]'`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

TICKS = os.sysconf("SC_CLK_TCK")
ZKEEP = [sys.executable, "-c", "from zkeep.cli.main import main; main()"]
PIECE = 1 << 20


@dataclass(frozen=True)
class Reading:
    """One pass over a file; seconds."""

    size: int
    wall: float
    cpu: float


def cpu_of(process: int) -> float:
    """Seconds of user and system time."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def read_through(path: Path, server: int) -> Reading:
    Path("/proc/sys/vm/drop_caches").write_text("2")
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        size, started, cpu = 0, time.monotonic(), cpu_of(server) + time.process_time()
        while piece := file.read(PIECE):
            size += len(piece)
        return Reading(size, time.monotonic() - started, cpu_of(server) + time.process_time() - cpu)


def wait_for(mount: Path, server: subprocess.Popen[bytes]) -> None:
    """Until it is mounted; SystemExit if the server has ended before, which has said why."""
    while not os.path.ismount(mount):
        if server.poll() is not None:
            raise SystemExit(f"zkeep mount: exit status {server.returncode}")
        time.sleep(0.05)


@contextmanager
def mounted(folder: Path, megabytes: int, compression: str) -> Iterator[tuple[Path, int]]:
    """A new file of a new pool, and the process that serves it."""
    environment = {**os.environ, "ZKEEP_HOME": str(folder / "home"), "XDG_RUNTIME_DIR": str(folder)}
    stream, key, mount = folder / "stream", folder / "key", folder / "mount"
    maker = [sys.executable, str(Path(__file__).with_name("sealing.py")), str(stream), str(key)]
    subprocess.run([*maker, "--one", str(megabytes << 20), "--compress", compression], check=True)
    subprocess.run([*ZKEEP, "pool", "create", "b", str(folder / "pool")], check=True, env=environment)
    with stream.open("rb") as source:
        subprocess.run([*ZKEEP, "receive", "b/x"], check=True, stdin=source, env=environment)
    stream.unlink()
    mount.mkdir()
    server = subprocess.Popen([*ZKEEP, "mount", "-f", "-L", f"file://{key}", "b/x", str(mount)], env=environment)
    try:
        wait_for(mount, server)
        yield mount / "one", server.pid
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--size", type=int, default=512, help="MiB")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print("| compression | wall | a second of CPU |\n| --- | --- | --- |")
    for compression in ("off", "lz4", "zstd"):
        with (
            tempfile.TemporaryDirectory(dir=given.folder) as folder,
            mounted(Path(folder), given.size, compression) as (path, server),
        ):
            readings = [read_through(path, server) for _ in range(given.rounds)]
        wall, cpu = (median(r.size / 1e6 / each for r, each in pairs) for pairs in _sides(readings))
        print(f"| {compression} | {wall:.0f} MB/s | {cpu:.0f} MB |", flush=True)


def _sides(readings: list[Reading]) -> list[list[tuple[Reading, float]]]:
    return [[(r, r.wall) for r in readings], [(r, r.cpu) for r in readings]]


if __name__ == "__main__":
    main()
