"""Trees as no filesystem of a person has them, sealed as the kernel seals them, and opened from a pool."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from zkeep.crypto.unwrap import first_that_opens
from zkeep.pool.datasets.model import Pool
from zkeep.pool.transfer.receive import ReceiveOptions, receive
from zkeep.snapshot.open import OpenSnapshot

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import sealing

KEY = bytes(range(32))
FIRST, ROOT = sealing.FIRST, sealing.ROOT
FOLDER, FILE = 4, 8
Entries = list[tuple[bytes, int, int]]
"Name, object, FOLDER or FILE."


def tree(root: Entries, *rest: sealing.Thing) -> Iterator[sealing.Thing]:
    yield from sealing.basics()
    yield sealing.folder(ROOT, ROOT, root)
    yield from rest


def file(number: int, parent: int = ROOT, size: int = 100, record: int = 131072) -> sealing.Thing:
    """Blocks of zeros, each beginning with the file's number and its own."""
    fill = lambda at, size: (at.to_bytes(8, "little") + bytes(size - 8), sealing.OFF)  # noqa: E731
    return sealing.file(number, parent, size, record, fill)


@contextmanager
def opened(folder: Path, things: Iterable[sealing.Thing], suite: int = 8) -> Iterator[OpenSnapshot]:
    sealing.seal(folder / "stream", KEY, things, suite)
    with Pool.create(folder / "pool", "v", {}) as pool:
        with (folder / "stream").open("rb") as source:
            receive(pool, source, "v/x", ReceiveOptions())
        (snapshot,) = [s for found in pool.all_snapshots().values() for s in found]
        with OpenSnapshot(pool, snapshot, first_that_opens([KEY])) as found:
            yield found
