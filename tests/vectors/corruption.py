"""One byte of a pool changed at random, and what whoever holds the key then sees of its snapshots.

A trial passes if each snapshot is as it was, or says with exit status 3 or 4 that it is not.
"""

from __future__ import annotations

import hashlib
import os
import random
import sqlite3
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from manifests import Case

from zkeep.errors import ZkeepError
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.store.files import LocalStore
from zkeep.pool.store.port import Blob
from zkeep.pool.timeline.segment import HEAD_SIZE, Segment
from zkeep.restore.opened import Opened
from zkeep.restore.verify import verify
from zkeep.tree.filesystem import Extent, Filesystem
from zkeep.tree.volume import Volume

View = dict[bytes, tuple[object, ...]]
CATALOG = ("catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm")
KINDS = ("body", "body", "body", "table", "footer", "segment", "catalog", "row", "journal")
"Where bytes are changed; the first is most of a pool."


@dataclass(frozen=True)
class Trial:
    """A place, what was done to it, and what came of it: `harmless`, `caught`, or what is wrong."""

    where: str
    outcome: str

    @property
    def is_good(self) -> bool:
        return self.outcome in ("harmless", "caught")


def view_of(opened: Opened) -> View:
    """All that can be read of a snapshot."""
    if opened.is_volume:
        volume = Volume(opened)
        return {b"": (volume.size, _digest(volume.extents()))}
    filesystem = Filesystem(opened)
    paths = [(b".", filesystem.root), *((path, name.number) for path, name in filesystem.walk(filesystem.root))]
    return {path: _shown(filesystem, number) for path, number in paths}


def _shown(filesystem: Filesystem, number: int) -> tuple[object, ...]:
    node = filesystem.znode(number)
    content = _digest(filesystem.extents(node)) if node.is_file else ""
    return node, content, filesystem.xattrs(node)


def _digest(extents: Iterator[Extent]) -> str:
    digest = hashlib.sha256()
    for extent in extents:
        digest.update(b"%d %d " % (extent.offset, len(extent.content)))
        digest.update(extent.content)
    return digest.hexdigest()


def opened_views(pool: Pool, case: Case) -> dict[int, View]:
    found = {}
    for snapshot in _snapshots(pool):
        with Opened(pool, snapshot, case.key) as opened:
            found[snapshot.guid] = view_of(opened)
    return found


def _snapshots(pool: Pool) -> list[Snapshot]:
    return [s for found in pool.all_snapshots().values() for s in found]


class Bench:
    """A pool of a case, at rest, that is damaged again and again."""

    def __init__(self, path: Path, case: Case, seed: int) -> None:
        self._path = path
        self._case = case
        self._dice = random.Random(seed)
        with Pool.open(path) as pool:
            self._truth = opened_views(pool, case)
        self._files = sorted(path.glob("segments/*/*"))
        self._segments = [Segment(partial(_blob, path, file), file.name) for file in self._files]
        self._catalog = {name: (path / name).read_bytes() for name in CATALOG if (path / name).exists()}
        self._sizes = [file.stat().st_size for file in self._files]

    def trial(self) -> Trial:
        kind = self._dice.choice(KINDS)
        if kind == "row":
            return self._row()
        path, at = self._place(kind)
        mask = self._dice.randrange(1, 256)
        with self._rested(), _changed(path, at, mask):
            return Trial(f"{self._case}: {kind}: {path.name} byte {at} ^ {mask:#x}", self._outcome())

    def _place(self, kind: str) -> tuple[Path, int]:
        if kind == "catalog":
            path = self._path / "catalog.sqlite"
            return path, self._dice.randrange(path.stat().st_size)
        if kind == "journal":
            path = self._dice.choice(sorted(self._path.glob("journal/*")))
            return path, self._dice.randrange(path.stat().st_size)
        (index,) = self._dice.choices(range(len(self._files)), self._sizes)
        segment, size = self._segments[index], self._sizes[index]
        body, end = segment.body[1], size - 32 - segment.footer_size
        ranges = {"body": (HEAD_SIZE, body), "table": (body, end), "footer": (end, size), "segment": (0, size)}
        low, high = ranges[kind]
        return self._files[index], self._dice.randrange(low, max(high, low + 1))

    def _row(self) -> Trial:
        """A character of a document in the catalog is another one."""
        with self._rested():
            db = sqlite3.connect(self._path / CATALOG[0], isolation_level=None)
            kind, key, value = self._dice.choice(db.execute("SELECT kind, key, value FROM doc").fetchall())
            at, other = self._dice.randrange(len(value)), self._dice.choice("0129 az}~")
            changed = value[:at] + (other if value[at] != other else "!") + value[at + 1 :]
            db.execute("UPDATE doc SET value = ? WHERE kind = ? AND key = ?", (changed, kind, key))
            db.close()
            return Trial(f"{self._case}: {kind} {key}, character {at} is {changed[at]!r}", self._outcome())

    @contextmanager
    def _rested(self) -> Iterator[None]:
        """Whatever SQLite makes of what it finds, afterwards the catalog is as it was."""
        try:
            yield
        finally:
            for name in CATALOG:
                (self._path / name).unlink(missing_ok=True)
                if name in self._catalog:
                    (self._path / name).write_bytes(self._catalog[name])

    def _outcome(self) -> str:
        try:
            with Pool.open(self._path) as pool:
                snapshots = _snapshots(pool)
                self._dice.shuffle(snapshots)
                if {s.guid for s in snapshots} != self._truth.keys():
                    return "a snapshot is not there"
                return next(filter(None, (self._look(pool, s) for s in snapshots)), "harmless")
        except ZkeepError as error:
            return _judged(error)
        except Exception as error:  # that is what is looked for
            return f"{type(error).__name__}: {error} ({traceback.format_exc(limit=-2)})"

    def _look(self, pool: Pool, snapshot: Snapshot) -> str:
        """Empty if a snapshot is what it was."""
        try:
            with Opened(pool, snapshot, self._case.key) as opened:
                verify(opened)
            with Opened(pool, snapshot, self._case.key) as opened:
                return "" if view_of(opened) == self._truth[snapshot.guid] else "WRONG BYTES"
        except ZkeepError as error:
            return _judged(error)


def _judged(error: ZkeepError) -> str:
    return "caught" if error.status in (3, 4) else f"exit status {error.status}: {error}"


def _blob(root: Path, path: Path) -> Blob:
    return LocalStore(root).open(str(path.relative_to(root)))


@contextmanager
def _changed(path: Path, at: int, mask: int) -> Iterator[None]:
    path.chmod(0o600)
    with path.open("r+b", buffering=0) as target:
        before = os.pread(target.fileno(), 1, at)
        os.pwrite(target.fileno(), bytes([before[0] ^ mask]), at)
        try:
            yield
        finally:
            os.pwrite(target.fileno(), before, at)
