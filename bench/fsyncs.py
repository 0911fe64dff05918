"""Many small fsyncs in one mount: what each of them costs as they go on, and what they leave in the pool.

    python bench/fsyncs.py --folder FOLDER [--number 10000] [--files 1000]

100 bytes are appended to a file and synced, again and again, beside other files. Prints a row for each tenth: CPU of
the process that serves the folder and time by the clock for one fsync, that process's memory, and the runs, files and
bytes of the pool. In the end it unmounts, scrubs the pool, mounts again and compares the file. Needs FUSE.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from live import Place, zkeep_folder
from mounted import ZKEEP, cpu_of

from zkeep.pool.datasets.model import Pool

SIZE = 100


def resident(process: int) -> int:
    """Megabytes of memory that a process has now."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


def runs_of(path: Path) -> int:
    """Runs of all datasets of a pool."""
    with Pool.open(path) as pool:
        return len(pool.catalog.keys("run"))


@contextmanager
def again(folder: Path) -> Iterator[Path]:
    """The same dataset, mounted once more."""
    environment = {**os.environ, "ZKEEP_HOME": str(folder / "home"), "XDG_RUNTIME_DIR": str(folder)}
    mount = folder / "again"
    mount.mkdir()
    subprocess.run([*ZKEEP, "pool", "scrub", "b"], check=True, env=environment)
    subprocess.run([*ZKEEP, "mount", "-L", f"file://{folder / 'key'}", "b/x", str(mount)], check=True, env=environment)
    try:
        yield mount
    finally:
        subprocess.run([*ZKEEP, "unmount", str(mount)], check=True, env=environment)


def sync_many(place: Place, pool: Path, number: int) -> bytes:
    """Append and sync; print a row for each tenth. Returns what the file must hold."""
    assert place.server is not None
    written = bytearray()
    print("| fsyncs | CPU of each | by the clock | memory | runs | files | pool |\n" + "| --- " * 7 + "|", flush=True)
    with (place.folder / "log").open("wb", buffering=0) as file:
        for tenth in range(10):
            cpu, started = cpu_of(place.server), time.monotonic()
            for _ in range(number // 10):
                piece = os.urandom(SIZE)
                file.write(piece)
                os.fsync(file.fileno())
                written += piece
            cpu, wall = cpu_of(place.server) - cpu, time.monotonic() - started
            files = [path.stat().st_size for path in pool.rglob("*") if path.is_file()]
            each = " | ".join(f"{1000 * took / (number // 10):.1f} ms" for took in (cpu, wall))
            now = f"{resident(place.server)} MiB | {runs_of(pool)} | {len(files)} | {sum(files) / (1 << 20):.1f} MiB"
            print(f"| {(tenth + 1) * (number // 10)} | {each} | {now} |", flush=True)
    return bytes(written)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=1_000, help="other files, of 500 bytes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as text:
        folder = Path(text)
        with zkeep_folder(folder) as place:
            for number in range(given.files):
                (place.folder / str(number)).write_bytes(os.urandom(500))
            written = sync_many(place, folder / "pool", given.number)
        with again(folder) as mount:
            assert (mount / "log").read_bytes() == written, "the file is not what was written"
        print("scrubbed, and the file is what was written")


if __name__ == "__main__":
    main()
