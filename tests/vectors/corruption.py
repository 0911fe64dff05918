"""One byte of a pool changed at random, and what the holder of the key then sees of its snapshots.

A trial passes if each snapshot is as it was, or says that it is not: with exit status 3, as the pool's own sums tell
damage from forgery.
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
from typing import Any

from manifests import Case

from zkeep.errors import ZkeepError
from zkeep.format.records import HEADER, LAYOUTS, RecordType
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.store.files import LocalStore
from zkeep.pool.store.port import Blob
from zkeep.pool.timeline.segment import TRAIL_SIZE, Segment
from zkeep.restore.verify import verify
from zkeep.snapshot.open import OpenSnapshot
from zkeep.tree.filesystem import Extent, Filesystem
from zkeep.tree.volume import Volume

View = dict[bytes, tuple[object, ...]]
CATALOG = ("catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm")
KINDS = ("payload", "mac", "header", "dnode", "seal", "table", "footer", "segment", "page", "row", "key", "journal")
"""Where bytes are changed: of records, a block's payload, its salt, IV or MAC, any field of its header, an OBJECT, an
OBJECT_RANGE; of segments, tables, footer and trail, anything; of the catalog, SQLite's file, a document, the key by
which it is found, the journal."""
ROWS = {"payload": "blocks", "mac": "blocks", "header": "blocks", "dnode": "objects", "seal": "ranges"}
"The table whose rows lead to the records of a kind."


def _fields(rtype: RecordType, *names: str) -> list[tuple[int, int]]:
    """Where fields of a header begin and end; all but its checksums, if none is named."""
    found = LAYOUTS[rtype].dtype("little").fields or {}
    wanted = names or [name for name in found if "checksum" not in name]
    return [(at, at + kind.itemsize) for kind, at in (found[name][:2] for name in wanted)]


FIELDS = {
    "mac": _fields(RecordType.WRITE, "salt", "iv", "mac"),
    "header": _fields(RecordType.WRITE),
    "seal": _fields(RecordType.OBJECT_RANGE),
    "dnode": _fields(RecordType.OBJECT),
}


@dataclass(frozen=True)
class Trial:
    """A kind of place, what was done to it, and what came of it: `harmless`, `caught`, or what is wrong."""

    kind: str
    where: str
    outcome: str

    @property
    def is_good(self) -> bool:
        return self.outcome in ("harmless", "caught")


def view_of(opened: OpenSnapshot) -> View:
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
        with OpenSnapshot(pool, snapshot, case.key) as opened:
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
        self._rows = {name: [segment.rows(name) for segment in self._segments] for name in set(ROWS.values())}

    def trial(self) -> Trial:
        kind = self._dice.choice(KINDS)
        if kind in ("row", "key"):
            return self._document(kind)
        path, at = self._place(kind)
        mask = self._dice.randrange(1, 256)
        with self._rested(), _changed(path, at, mask):
            return Trial(kind, f"{self._case}: {kind}: {path.name} byte {at} ^ {mask:#x}", self._outcome())

    def _place(self, kind: str) -> tuple[Path, int]:
        if kind == "page":
            path = self._path / CATALOG[0]
            return path, self._dice.randrange(path.stat().st_size)
        if kind == "journal":
            path = self._dice.choice(sorted(self._path.glob("journal/*")))
            return path, self._dice.randrange(path.stat().st_size)
        if kind in ROWS:
            return self._record(kind)
        (index,) = self._dice.choices(range(len(self._files)), self._sizes)
        segment, size = self._segments[index], self._sizes[index]
        body, end = segment.body[1], size - TRAIL_SIZE - segment.footer_size
        low, high = {"table": (body, end), "footer": (end, size), "segment": (0, size)}[kind]
        return self._files[index], self._dice.randrange(low, max(high, low + 1))

    def _record(self, kind: str) -> tuple[Path, int]:
        """A byte of any record of a kind, each record as likely as any other."""
        counts = [len(rows) for rows in self._rows[ROWS[kind]]]
        (index,) = self._dice.choices(range(len(counts)), counts)
        row = self._dice.choice(self._rows[ROWS[kind]][index])
        low, high = self._stretch(kind, int(row["size"]))
        return self._files[index], int(row["pos"]) + self._dice.randrange(low, max(high, low + 1))

    def _stretch(self, kind: str, size: int) -> tuple[int, int]:
        """A field of a record of `size` bytes, or its content."""
        content = [(HEADER, size)] if size > HEADER and kind in ("payload", "dnode") else []
        return self._dice.choice([*content, *FIELDS.get(kind, ())] or [(0, HEADER)])

    def _document(self, what: str) -> Trial:
        """A character of a document in the catalog, or of its key, is another one."""
        with self._rested():
            db = sqlite3.connect(self._path / CATALOG[0], isolation_level=None)
            kind, key, value = self._dice.choice(db.execute("SELECT kind, key, value FROM doc").fetchall())
            text = value if what == "row" else f"{kind}\0{key}"
            at, changed = self._changed(text)
            new = (kind, key, changed) if what == "row" else (*changed.partition("\0")[::2], value)
            db.execute(
                "UPDATE OR IGNORE doc SET kind = ?, key = ?, value = ? WHERE kind = ? AND key = ?", (*new, kind, key)
            )
            db.close()
            return Trial(what, f"{self._case}: {what} of {kind} {key}: {at} is {changed[at]!r}", self._outcome())

    def _changed(self, text: Any) -> tuple[int, Any]:
        """Where, and what became of it; of a compressed document it is a byte."""
        at, other = self._dice.randrange(len(text)), self._dice.choice("0129 az}~/")
        new = other if text[at : at + 1] != other else "!"
        if isinstance(text, bytes):
            new = bytes([text[at] ^ self._dice.randrange(1, 256)])
        return at, text[:at] + new + text[at + 1 :]

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
            with OpenSnapshot(pool, snapshot, self._case.key) as opened:
                verify(opened)
            with OpenSnapshot(pool, snapshot, self._case.key) as opened:
                return "" if view_of(opened) == self._truth[snapshot.guid] else "WRONG BYTES"
        except ZkeepError as error:
            return _judged(error)


def _judged(error: ZkeepError) -> str:
    return "caught" if error.status == 3 else f"exit status {error.status}: {error}"


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
