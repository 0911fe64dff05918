"""Measure plain streams that become encrypted on arrival, beside plain tools that do less.

    python bench/reencrypting.py --folder FOLDER                2 GiB in records of 128 KiB, 5 million records of 512 B
    python bench/reencrypting.py --folder FOLDER --scale 0.1    for a try

Three things, in turns, the best of `--turns`: `zkeep receive` of a plain full stream below an encrypted dataset,
`zstd -3 | age` (or `openssl enc -aes-256-ctr`, where there is no age), and `dd` with fsync. Then an increment of
1,000 records into a file of 5 million. Then the way back, `zkeep send` without -w, beside `cat`; and `zkeep encrypt`
with contents=metadata, in steps of an eighth of the stream. Half of each record compresses. Peak memory is that of
the zkeep process.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from zkeep.format import kernel
from zkeep.format.records import Begin, BeginFlag, End, Feature, Free, Layout, Object, Write

FEATURES = Feature.COMPRESSED | Feature.LZ4 | Feature.SA_SPILL | Feature.EMBED_DATA
BONUS = (b"\x5a\x50\x2f\x00\x02\x04\x00\x00" + bytes(16) + b"\x07").ljust(168, b"\0")
PIECE = 4 << 20


class PlainStream:
    """Writes a stream without raw records: files of equal records, half noise, half words."""

    def __init__(self, sink: BinaryIO, number: int, seed: int) -> None:
        self._sink, self._number = sink, number
        self._state = kernel.zero_state()
        self._parts: list[bytes] = []
        self._size = 0
        self._dice = np.random.default_rng(seed)
        flags = BeginFlag.FREERECORDS | BeginFlag.SPILL_BLOCK
        begin = Begin(
            versioninfo=1 | int(FEATURES) << 2,
            type=2,
            flags=flags,
            toguid=number,
            fromguid=number - 1,
            toname=b"t/a@s%d" % number,
            creation_time=1_700_000_000,
        )
        self._add(begin.pack("little"))

    def file(self, number: int, blksz: int, blocks: int, written: Iterator[int]) -> None:
        guid = self._number
        head = Object(object=number, type=19, bonustype=44, blksz=blksz, bonuslen=168, dn_slots=1, toguid=guid)
        self._record(head, BONUS)
        self._record(Free(object=number, offset=blocks * blksz, length=(1 << 64) - 1, toguid=guid))
        words = b"these words compress " * (blksz // 42 + 1)
        for block in written:
            content = self._dice.bytes(blksz // 2) + words[: blksz - blksz // 2]
            self._record(
                Write(object=number, type=19, offset=block * blksz, logical_size=blksz, toguid=guid), content
            )

    def end(self) -> None:
        self._flush()
        words = tuple(int(word) for word in self._state)
        a, b, c, d = words
        self._add(End(body_checksum=(a, b, c, d), toguid=self._number).pack("little"))
        self._flush()

    def _record(self, header: Layout, payload: bytes = b"") -> None:
        self._add(header.pack("little") + payload)

    def _add(self, record: bytes) -> None:
        self._parts.append(record)
        self._size += len(record)
        if self._size > PIECE:
            self._flush()

    def _flush(self) -> None:
        if not self._parts:
            return
        buffer = bytearray().join(self._parts)
        lengths = np.array([len(part) for part in self._parts], np.int64)
        offsets = np.cumsum(lengths) - lengths
        _, sums = kernel.check(buffer, offsets, lengths, False)
        self._state = kernel.stamp(buffer, offsets, lengths, sums, False, self._state)
        self._sink.write(buffer)
        self._parts, self._size = [], 0


def make(path: Path, number: int, files: list[tuple[int, int, int, Iterator[int]]]) -> int:
    with path.open("wb") as sink:
        stream = PlainStream(sink, number, number)
        for each in files:
            stream.file(*each)
        stream.end()
    return path.stat().st_size


class Bench:
    """A pool with an encrypted dataset in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "run").mkdir(mode=0o700)
        (folder / "key").write_bytes(os.urandom(32))
        self.env = {**os.environ, "ZKEEP_HOME": str(folder / "home"), "XDG_RUNTIME_DIR": str(folder / "run")}
        self.zkeep("pool", "create", "v", str(folder / "pool"))
        key = f"keylocation=file://{folder / 'key'}"
        self.zkeep("create", "-o", "encryption=on", "-o", "keyformat=raw", "-o", key, "v/enc")

    def zkeep(self, *words: str, given: Path | None = None, out: Path | None = None) -> tuple[float, int]:
        """Seconds, and peak memory in bytes. `given`: its input, `out`: its output."""
        started = time.monotonic()
        command = [sys.executable, "-c", WITH_PEAK, *words]
        with open(given or os.devnull, "rb") as source, open(out or os.devnull, "wb") as sink:
            done = subprocess.run(command, stdin=source, stdout=sink, env=self.env, check=True, stderr=subprocess.PIPE)
        return time.monotonic() - started, int(done.stderr.split()[-1]) << 10


WITH_PEAK = """
import resource, sys
from zkeep.cli.main import run
status = run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
sys.exit(status)
"""


def cipher(folder: Path) -> str:
    """The command that encrypts its input: age, or openssl where there is none."""
    if shutil.which("age") is None:
        return f"openssl enc -aes-256-ctr -pbkdf2 -pass file:{folder / 'key'}"
    made = subprocess.run(["age-keygen", "-o", folder / "age"], check=True, stderr=subprocess.PIPE, text=True)
    return f"age -r {made.stderr.split()[-1]}"


def timed(work: Callable[[str], object], line: str) -> float:
    started = time.monotonic()
    work(line)
    return time.monotonic() - started


def shell(line: str) -> None:
    subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], check=True, stderr=subprocess.DEVNULL)


def full(bench: Bench, gib: float, turns: int) -> None:
    blksz = 128 << 10
    blocks = max(1, int(gib * (1 << 30)) // blksz)
    stream, out = bench.folder / "plain", bench.folder / "out"
    size = make(stream, 1, [(2, blksz, blocks, iter(range(blocks)))])
    ours, theirs, copied, peak = [], [], [], 0
    encrypt = cipher(bench.folder)
    for _ in range(turns):
        seconds, memory = bench.zkeep("receive", "v/enc/full", given=stream)
        ours.append(seconds)
        peak = max(peak, memory)
        bench.zkeep("destroy", "-r", "v/enc/full")
        theirs.append(timed(shell, f"zstd -3 < {stream} | {encrypt} > {out} && sync {out}"))
        copied.append(timed(shell, f"dd if={stream} of={out} bs=1M conv=fsync"))
    rate = size / min(ours) / 1e6
    print(f"full, {size / (1 << 30):.2f} GiB: {min(ours):.1f} s, {rate:.0f} MB/s, {peak / (1 << 20):.0f} MiB")
    print(f"    zstd -3 | {encrypt.split()[0]}: {min(theirs):.1f} s, {min(ours) / min(theirs):.2f} times as long")
    print(f"    dd: {min(copied):.1f} s, {min(ours) / min(copied):.2f} times as long")
    back(bench, stream, out, turns)
    in_steps(bench, stream, size)
    stream.unlink()
    out.unlink()


def back(bench: Bench, stream: Path, out: Path, turns: int) -> None:
    bench.zkeep("receive", "v/enc/full", given=stream)
    for letters in ("", "-Lec"):
        ours, copied, peak = [], [], 0
        for _ in range(turns):
            seconds, memory = bench.zkeep("send", *letters.split(), "v/enc/full@s1", out=out)
            ours.append(seconds)
            peak = max(peak, memory)
            copied.append(timed(shell, f"cat {stream} > {out}"))
        rate = out.stat().st_size / min(ours) / 1e6
        print(f"send {letters or 'plain'}: {min(ours):.1f} s, {rate:.0f} MB/s, {peak / (1 << 20):.0f} MiB")
        print(f"    cat: {min(copied):.1f} s, {min(ours) / min(copied):.2f} times as long")
    bench.zkeep("destroy", "-r", "v/enc/full")


def in_steps(bench: Bench, stream: Path, size: int) -> None:
    """A filter whose dataset keeps only metadata."""
    bench.env["ZKEEP_STEP"] = str(size // 8)
    seconds, peak = bench.zkeep("encrypt", "-o", "contents=metadata", "v/enc/steps", given=stream)
    del bench.env["ZKEEP_STEP"]
    left = sum(path.stat().st_size for path in (bench.folder / "pool").rglob("*") if path.is_file())
    print(f"encrypt, 8 steps: {seconds:.1f} s, {peak / (1 << 20):.0f} MiB; {left / (1 << 20):.1f} MiB of pool stay")


def increment(bench: Bench, records: int, changed: int) -> None:
    stream = bench.folder / "plain"
    make(stream, 1, [(2, 512, records, iter(range(records)))])
    seconds, peak = bench.zkeep("receive", "v/enc/many", given=stream)
    print(f"full of {records:,} records of 512 B: {seconds:.1f} s, {peak / (1 << 20):.0f} MiB")
    some = np.sort(np.random.default_rng(7).choice(records, min(changed, records), replace=False))
    make(stream, 2, [(2, 512, records, iter(some.tolist()))])
    seconds, peak = bench.zkeep("receive", "v/enc/many", given=stream)
    print(f"increment of {len(some):,} of them: {seconds:.2f} s, {peak / (1 << 20):.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    folder = options.folder / "reencrypting"
    folder.mkdir(parents=True)
    bench = Bench(folder)
    full(bench, 2 * options.scale, options.turns)
    increment(bench, int(5_000_000 * options.scale), 1000)
    bench.zkeep("unload-key", "-a")


if __name__ == "__main__":
    main()
