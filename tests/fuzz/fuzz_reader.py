"""Damaged streams: the reader answers with events or a BadStream, soon, and in little memory.

    python tests/fuzz/fuzz_reader.py [ITERATIONS [SEED]]    a seeded loop of mutations, without special tools
    python tests/fuzz/fuzz_reader.py --atheris [ARGS]       under atheris, if it is installed

A mutated stream gets right checksums half of the time, or nothing behind the checksums would be reached.
"""

from __future__ import annotations

import random
import struct
import sys
import time
from pathlib import Path

from zkeep.errors import BadStream
from zkeep.format import kernel
from zkeep.format.events import Batch
from zkeep.format.reader import Reader
from zkeep.format.records import HEADER, RecordType

DATA = Path(__file__).parents[1] / "data" / "streams"
SEEDS = [path.read_bytes() for path in sorted(DATA.glob("*.zfs")) if path.stat().st_size < 70_000]
WORDS = (0, 1, 2, 255, 511, 512, 1 << 24, 1 << 31, (1 << 31) - 1, 1 << 48, 1 << 63, (1 << 64) - 1)
MOST_SECONDS = 2.0


def one_input(data: bytes) -> bool:
    """Read a stream; True if it was taken. Raises whatever but BadStream the reader raises."""
    reader = Reader(4096)
    handed_out = 0
    started = time.monotonic()
    try:
        for event in reader.feed(data):
            handed_out += len(event.buffer) if isinstance(event, Batch) else 0
        reader.finish()
    except BadStream as error:
        if "\n" in str(error) or not 0 <= error.offset <= len(data):
            raise AssertionError(f"not an error message: {error!r}") from error
        return False
    finally:
        if handed_out > len(data) or len(reader.space()) > 4 * len(data) + (1 << 16):
            raise AssertionError("out of proportion")
        if time.monotonic() - started > MOST_SECONDS:
            raise AssertionError("slow")
    return True


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A few bytes, words, cuts, doublings and swaps of records; then perhaps right checksums."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        rng.choice((_byte, _word, _field, _cut, _double))(made, rng)
    return bytes(restamp(made)) if rng.random() < 0.5 else bytes(made)


def _byte(made: bytearray, rng: random.Random) -> None:
    if made:
        made[rng.randrange(len(made))] = rng.randrange(256)


def _word(made: bytearray, rng: random.Random) -> None:
    if len(made) >= 8:
        struct.pack_into("=Q", made, rng.randrange(len(made) - 7), rng.choice(WORDS))


def _field(made: bytearray, rng: random.Random) -> None:
    """A word in some record's header."""
    starts = _starts(made)
    if starts:
        at = rng.choice(starts) + 4 * rng.randrange(40)
        struct.pack_into("=I", made, at, rng.choice(WORDS) & 0xFFFFFFFF)


def _cut(made: bytearray, rng: random.Random) -> None:
    starts = [*_starts(made), len(made)]
    first, last = sorted((rng.choice(starts), rng.choice(starts)))
    if rng.random() < 0.3:
        del made[rng.randrange(len(made) + 1) :]
    elif last - first < len(made) // 2:
        del made[first:last]


def _double(made: bytearray, rng: random.Random) -> None:
    starts = [*_starts(made), len(made)]
    i = rng.randrange(len(starts) - 1) if len(starts) > 1 else 0
    piece = made[starts[i] : starts[i + 1]] if len(starts) > 1 else b""
    at = rng.choice(starts)
    made[at:at] = piece


def _starts(made: bytearray) -> list[int]:
    found: list[int] = []
    at = 0
    while at < len(made):
        walk = kernel.walk(made, at, len(made), False)
        if not len(walk.offsets):
            break
        found += walk.offsets.tolist()
        at = walk.stop
    return found


def restamp(data: bytearray) -> bytearray:
    """Right checksums, as far as the records can be walked."""
    at, state = 0, kernel.zero_state()
    while len(data) - at >= HEADER:
        walk = kernel.walk(data, at, len(data), False)
        if not len(walk.offsets):
            break
        if walk.types[0] == RecordType.BEGIN:
            state = kernel.zero_state()
        if state.any() or walk.types[0] == RecordType.BEGIN:
            _, sums = kernel.check(data, walk.offsets, walk.lengths, False)
            state = kernel.stamp(data, walk.offsets, walk.lengths, sums, False, state)
        if walk.types[-1] == RecordType.END:
            state = kernel.zero_state()
        at = walk.stop
    return data


def run(iterations: int, seed: int) -> tuple[int, int]:
    """How many mutated streams were taken, and refused."""
    rng = random.Random(seed)
    taken = 0
    for i in range(iterations):
        data = mutate(rng.choice(SEEDS), rng)
        try:
            taken += one_input(data)
        except BaseException:
            Path("crash.zfs").write_bytes(data)
            print(f"iteration {i} of seed {seed}: see crash.zfs", file=sys.stderr)
            raise
    return taken, iterations - taken


def main(args: list[str]) -> None:
    if args[:1] == ["--atheris"]:
        import atheris  # type: ignore[import-not-found]

        atheris.Setup([sys.argv[0], *args[1:]], one_input)
        atheris.Fuzz()
        return
    iterations, seed = (int(arg) for arg in (args + ["2000", "1"][len(args) :])[:2])
    taken, refused = run(iterations, seed)
    print(f"{iterations} streams: {taken} taken, {refused} refused")


if __name__ == "__main__":
    main(sys.argv[1:])
