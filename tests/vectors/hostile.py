"""What a hostile store can do to a pool of its own: files and documents as it likes, every sum of them right again."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path

from corruption import View, view_of
from manifests import Case, received

from zkeep.errors import Damaged, NotAuthentic
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.maintenance.scrub import scrub
from zkeep.pool.store.files import LocalStore
from zkeep.pool.store.port import Blob, Buffer
from zkeep.pool.timeline.segment import TRAIL_SIZE, Segment, finish
from zkeep.pool.timeline.spans import Array
from zkeep.pool.timeline.table import Table
from zkeep.restore.verify import verify
from zkeep.snapshot.open import OpenSnapshot

TRAIL = struct.Struct("<Q16s8s")


class Store:
    """A pool of a case that was honest once; `truth` is what its snapshots showed then, oldest first."""

    def __init__(self, case: Case, folder: Path) -> None:
        self._case = case
        self.path = folder / "pool"
        with received(case, folder) as pool:
            self.snapshots = _snapshots(pool)
            self.truth = [self._view(pool, snapshot) for snapshot in self.snapshots]
        self._kept = folder / "kept"
        shutil.copytree(self.path, self._kept)

    @property
    def segments(self) -> list[Path]:
        """In the order in which they came."""
        return sorted(self.path.glob("segments/*/*.seg"), key=lambda path: int(path.name.split("-")[0], 16))

    def restore(self) -> None:
        """Make it honest again."""
        shutil.rmtree(self.path)
        shutil.copytree(self._kept, self.path)

    @contextmanager
    def changed(self) -> Iterator[Pool]:
        """The pool, to change its documents in transactions of its own."""
        with Pool.open(self.path) as pool:
            yield pool

    def _view(self, pool: Pool, snapshot: Snapshot) -> View:
        with OpenSnapshot(pool, snapshot, self._case.key) as opened:
            verify(opened)
        with OpenSnapshot(pool, snapshot, self._case.key) as opened:
            return view_of(opened)

    def seen(self) -> list[View | type[Exception]]:
        """What the holder of the key sees of each snapshot, or the error that he gets."""
        found: list[View | type[Exception]] = []
        with Pool.open(self.path) as pool:
            for snapshot in _snapshots(pool):
                try:
                    found.append(self._view(pool, snapshot))
                except (NotAuthentic, Damaged) as error:
                    found.append(NotAuthentic if isinstance(error, NotAuthentic) else Damaged)
        return found

    @property
    def is_clean(self) -> bool:
        """Whether a scrub, which has no key, sees nothing."""
        with Pool.open(self.path) as pool:
            return scrub(pool).clean


def _snapshots(pool: Pool) -> list[Snapshot]:
    return [s for found in pool.all_snapshots().values() for s in found]


# Segments


class Draft:
    """A file in the making."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)

    @property
    def size(self) -> int:
        return len(self.content)

    def write(self, *buffers: Buffer, soon: bool = False) -> None:
        for buffer in buffers:
            self.content += bytes(buffer)


def segment(path: Path) -> Segment:
    return Segment(partial(_blob, path), path.name)


def _blob(path: Path) -> Blob:
    return LocalStore(path.parent).open(path.name)


def put(path: Path, content: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(content)


def retabled(path: Path, change: Callable[[Table], Table]) -> None:
    """Change a segment's table, and make its CRCs and its footer right again."""
    old = segment(path)
    draft = Draft(path.read_bytes()[: old.body[1]])
    footer = old.footer
    finish(draft, change(old.table()), old.end_state, footer["records"])
    put(path, bytes(draft.content))


def refooted(path: Path, change: Callable[[bytearray], object]) -> None:
    """Change a segment's footer, and make its digest right again."""
    content = path.read_bytes()
    length, _, magic = TRAIL.unpack(content[-TRAIL_SIZE:])
    text = bytearray(content[-TRAIL_SIZE - length : -TRAIL_SIZE])
    change(text)
    trail = TRAIL.pack(len(text), blake2b(text, digest_size=16).digest(), magic)
    put(path, content[: -TRAIL_SIZE - length] + text + trail)


def without_row(name: str, at: int) -> Callable[[Table], Table]:
    def change(table: Table) -> Table:
        rows: Array = getattr(table, name)
        mask = [i != at for i in range(len(rows))]
        return replace(table, **{name: rows[mask]})

    return change
