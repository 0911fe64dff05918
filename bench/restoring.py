"""Authenticating and extracting, with the key, beside the plain tools of the machine.

    python bench/restoring.py --folder FOLDER [--rounds 3] [--scale 0.1] [NAME...]

The pool is in the page cache; files go to the same disk. Whole processes, start included, in turns with what they are
compared to; the ratio is the median of the rounds' ratios, above 1 where zkeep is the faster. What was extracted stays
until the end: a disk that deletes is slow. `openssl speed` reads no disk and starts no interpreter: `without start`
takes off what zkeep needs for a dataset of two small files. Needs 15 GB for all; `zstd` and `openssl` must be there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

from opening import pool_of
from run import Bench, Cost, measured

LARGE = 16 << 20


def _large(bench: Bench, compression: str, files: int = 128) -> str:
    """Files of 16 MiB in records of 128 KiB."""
    return f"--folders 1 --files {bench.sized(files)} --size {LARGE} --compress {compression}"


def _row(what: str, beside: str, mine: list[float], theirs: list[float]) -> Sequence[str]:
    ratio = median(b / a for a, b in zip(mine, theirs, strict=True))
    return [what, f"{median(mine):.2f} s", beside, f"{median(theirs):.2f} s", f"{ratio:.2f}"]


def _peak(costs: Sequence[Cost]) -> str:
    return f"{max(cost.megabytes for cost in costs):.0f}"


def verify(bench: Bench) -> Iterator[Sequence[str]]:
    """2 GiB as they are stored, beside as many bytes of `openssl speed`; beside it, too, the least that Python needs"""
    with pool_of(bench, "--folders 1 --files 2 --size 131072") as key:
        start = median(bench.zkeep(f"verify {key} b/x@s0").seconds for _ in range(bench.rounds))
    with pool_of(bench, _large(bench, "lz4", 240)) as key:
        stored = _stored(bench)
        bench.zkeep(f"verify {key} b/x@s0")
        costs, yards, least = [], [], []
        for _ in range(bench.rounds):
            costs.append(bench.zkeep(f"verify {key} b/x@s0"))
            yards.append(stored / _openssl())
            least.append(bench.run([sys.executable, "-c", LEAST, *_segments(bench)]).seconds)
        times = [cost.seconds for cost in costs]
        yield [*_row("verify, lz4", "openssl speed", times, yards), _peak(costs)]
        yield [*_row("the same without start", "", [t - start for t in times], yards), ""]
        yield [*_row("no more than reading and deciphering", "openssl speed", least, yards), ""]


LEAST = """
import os, sys, click, numpy, sqlite3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

size, aead, crew = 71_000, AESGCM(bytes(32)), os.cpu_count()
files = [os.open(path, os.O_RDONLY) for path in sys.argv[1:]]
blocks = [(file, at) for file in files for at in range(0, os.fstat(file).st_size - size, size)]
for turn in range(crew):
    if not os.fork():
        sealed, plain = memoryview(bytearray(size)), memoryview(bytearray(size - 16))
        for file, at in blocks[turn::crew]:
            os.preadv(file, [sealed], at)
            try:
                aead.decrypt_into(bytes(12), sealed, None, plain)
            except InvalidTag:
                pass
        os._exit(0)
for turn in range(crew):
    os.wait()
"""
"What a program in Python that verifies cannot do without: its imports, a read of each block, its decryption."


def _segments(bench: Bench) -> list[str]:
    return [str(path) for path in (bench.folder / "pool" / "segments").rglob("*.seg")]


def _stored(bench: Bench) -> int:
    told = subprocess.run(
        [sys.executable, "-m", "zkeep", "list", "-Hpo", "used", "b/x"], capture_output=True, text=True, check=True
    )
    return int(told.stdout)


def _openssl() -> float:
    """Bytes a second of all processors together, in pieces of 128 KiB."""
    command = ["openssl", "speed", "-seconds", "2", "-bytes", "131072", "-multi", str(os.cpu_count() or 1)]
    told = subprocess.run([*command, "-evp", "aes-256-gcm"], capture_output=True, text=True, check=True)
    found = re.search(r"AES-256-GCM\s+([\d.]+)k", told.stdout)
    if found is None:
        raise SystemExit("openssl speed: no figure")
    return float(found[1]) * 1000


def zstd(bench: Bench) -> Iterator[Sequence[str]]:
    """zstd beside `zstd -d` of the same bytes in one frame"""
    with pool_of(bench, _large(bench, "zstd")) as key:
        line = f"verify {key} b/x@s0"
        packed = bench.folder / "packed.zst"
        bench.run(["zstd", "-q", "-3", "-f", "-", "-o", str(packed)], source=_content(bench, key))
        costs, yards = [], []
        bench.zkeep(line)
        for _ in range(bench.rounds):
            costs.append(bench.zkeep(line))
            yards.append(bench.run(["zstd", "-qdc", str(packed)]).seconds)
        yield [*_row("verify, zstd", "zstd -d", [cost.seconds for cost in costs], yards), _peak(costs)]
        packed.unlink()


def _content(bench: Bench, key: str) -> Path:
    """All files' bytes."""
    plain = bench.folder / "plain"
    bench.zkeep(f"cat {key} b/x@s0 d0/*", sink=plain)
    return plain


def large(bench: Bench) -> Iterator[Sequence[str]]:
    """128 files of 16 MiB beside `cp -r`"""
    for compression in ("off", "lz4"):
        with pool_of(bench, _large(bench, compression)) as key:
            yield _extract(bench, key, f"extract, 16 MiB, {compression}", "cp -r", _copied)


def small(bench: Bench) -> Iterator[Sequence[str]]:
    """100,000 files of 4 KiB beside `tar -x`"""
    with pool_of(bench, f"--folders 1 --files {bench.sized(100_000)} --size 4096 --shuffle") as key:
        yield _extract(bench, key, "extract, 4 KiB", "tar -x", _unpacked)


def _extract(
    bench: Bench, key: str, what: str, beside: str, other: Callable[[Bench, Path, Path], list[str]]
) -> Sequence[str]:
    first = bench.folder / "first"
    bench.zkeep(f"extract {key} -C {first} b/x@s0")
    command = other(bench, first, bench.folder)
    costs, yards = [], []
    for number in range(bench.rounds):
        os.sync()
        costs.append(bench.zkeep(f"extract {key} -C {bench.folder / f'mine{number}'} b/x@s0"))
        theirs = bench.folder / f"theirs{number}"
        theirs.mkdir()
        os.sync()
        yards.append(bench.run([part.replace("TARGET", str(theirs)) for part in command]).seconds)
    row = [*_row(what, beside, [cost.seconds for cost in costs], yards), _peak(costs)]
    for path in bench.folder.glob("*[0-9]"):
        shutil.rmtree(path)
    shutil.rmtree(first)
    return row


def _copied(bench: Bench, first: Path, folder: Path) -> list[str]:
    return ["cp", "-r", str(first), "TARGET"]


def _unpacked(bench: Bench, first: Path, folder: Path) -> list[str]:
    archive = folder / "archive.tar"
    bench.run(["tar", "-C", str(first), "-cf", str(archive), "."])
    return ["tar", "-C", "TARGET", "-xf", str(archive)]


MEASURES = (verify, zstd, large, small)


HEAD = ("zkeep", "", "beside", "", "ratio", "peak MB")

if __name__ == "__main__":
    measured(__doc__, MEASURES, HEAD, "restoring")
