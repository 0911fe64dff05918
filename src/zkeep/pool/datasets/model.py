"""A pool as a tree of datasets, with their snapshots and bookmarks: views over the catalog's documents.

Documents keep names relative to the pool (the top dataset is ""), so that a pool may go by another name.
A view is of the moment at which it was read; changing anything needs a transaction, and the view after it is
a new one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zkeep.clock import seconds_now
from zkeep.errors import Damaged, Refused, TryAgain, ZkeepError
from zkeep.names import MAX_UINT64, BookmarkName, DatasetName, SnapshotName, parse_pool, shown, whole_number
from zkeep.pool.datasets.pruning import NOTE_EVERY, clock_fault
from zkeep.pool.datasets.things import Bookmark, Dataset, DatasetTree, Snapshot, dataset_key, txg_key
from zkeep.pool.store.catalog import INDEX, RESERVE, WAIT, Catalog, ChangeMark, Malformed, Transaction
from zkeep.pool.store.disk import Disk, make_folder
from zkeep.pool.store.files import LocalStore
from zkeep.pool.store.index import closing_on_error
from zkeep.pool.types import Doc

if TYPE_CHECKING:
    from zkeep.pool.datasets.runs import Runs

__all__ = ["Bookmark", "Dataset", "DatasetTree", "Exists", "NotThere", "Pool", "Snapshot", "dataset_key", "txg_key"]

IDENTITY = "POOL"
CLOCK = "clock"
"The kind of the document that has the last time that the pool knows, by which jumps of the clock are seen."
HEAD = "head"
"The kind of the documents that have a dataset's newest state, where no snapshot names it (datasets/head.py)."
NO_ROOM = "no-room"
"The kind of the documents that know what was refused for lack of room (datasets/no_room.py)."
VERIFY = "verify"
"The kind of the documents that know when a dataset's snapshots were last verified with the key."
FORMAT = 1
_LONGEST_IDENTITY = 1 << 16
MOST_SETTINGS = 16 << 10
"Bytes of the properties that a client of a server may have set on a dataset: no quota counts them."
_FOLDERS = {"journal", "lock", "tmp", "partial", "segments", "summaries"}
_OURS = {*_FOLDERS, RESERVE, INDEX, f"{INDEX}-wal", f"{INDEX}-shm", f"{INDEX}-journal"}


class NotThere(Refused):
    """A pool, dataset, snapshot or bookmark of this name does not exist."""


class Exists(Refused):
    """The name is taken."""


def new_guid() -> int:
    """Random, 64 bits, never 0."""
    return int.from_bytes(os.urandom(8), "big") or 1


class Pool:
    """An open pool. Close it, or use it as a context manager."""

    def __init__(self, store: LocalStore, catalog: Catalog, name: str) -> None:
        self.store = store
        self.catalog = catalog
        self.name = name
        self._tree: tuple[ChangeMark, DatasetTree] | None = None
        self.warn: Callable[[str], object] = lambda text: None
        "Called with one line for a person, about a failure that did not undo what was asked for."
        self.scope: DatasetName | None = None
        "If set, nothing outside of this dataset is found, by name or by guid: all that one client of a server has."

    @classmethod
    def create(cls, path: Path, name: str, local: dict[str, str] | None = None) -> Pool:
        """Make a pool in `path`, a folder that is empty or not there. `local`: the top's properties."""
        parse_pool(name)
        make_folder(path, 0o700)
        if (path / IDENTITY).exists():
            raise Exists(f"cannot create pool {name}: there is a pool in {path} already")
        if strangers := sorted(set(os.listdir(path)) - _OURS):
            raise Refused(f"cannot create pool {name}: {path} is not empty ({strangers[0]!a} is there)")
        # The catalog first, POOL last: a folder without POOL is no pool, whatever an interrupted call left in it.
        store = LocalStore(path)
        with closing_on_error(cls(store, Catalog(store), name)) as pool:
            with pool.transaction() as t:
                guid = pool._plant(t, local or {})
            identity = {"format": FORMAT, "guid": guid, "name": name}
            pool._publish(json.dumps(identity, indent=1).encode() + b"\n")
            return pool

    def _publish(self, identity: bytes) -> None:
        """Write the file that makes the folder a pool.

        Raises:
            TryAgain: the disk failed, and does not let it be taken back.
        """
        try:
            self.store.put(IDENTITY, identity)
        except OSError as error:
            try:
                self.store.delete(IDENTITY)
            except OSError:
                at = self.store.root
                way = f"if there is a pool in {at}, 'zkeep pool import {at} {self.name}' makes it known"
                raise TryAgain(f"cannot create pool {self.name}: {error.strerror}; {way}") from None
            raise

    def _plant(self, t: Transaction, local: dict[str, str]) -> int:
        """The documents of a new pool; what an interrupted creation left behind is replaced."""
        for key, _ in t.scan("dataset"):
            t.delete("dataset", key)
        guid, now = new_guid(), seconds_now()
        pool = {
            "guid": guid,
            "name": self.name,
            "created": now,
            "next_id": 1,
            "next_txg": 1,
            "properties": {},
        }
        t.put("pool", "", pool)
        self._put_new(t, "", "filesystem", local=local)
        return guid

    @classmethod
    def open(cls, path: Path, name: str | None = None, wait: float = WAIT, disk: Disk | None = None) -> Pool:
        """`name`: what the pool is called here, if not as at its creation."""
        store = LocalStore(path, disk)
        identity = read_identity(path)
        with closing_on_error(Catalog(store, wait)) as catalog:
            document = catalog.get("pool", "")
            if not document or document.get("guid") != identity["guid"]:
                raise Damaged(f"{path}: the catalog is not of this pool")
            return cls(store, catalog, name or identity["name"])

    def close(self) -> None:
        self.catalog.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def afterwards(self, done: str, later: str = "zkeep pool compact") -> Iterator[None]:
        """Do work behind a transaction that is committed: a failure is only a warning.

        `done`: what was committed, in words, for the warning; `later`: the command that does the rest.
        """
        try:
            yield
        except (ZkeepError, OSError) as error:
            self.warn(f"{done}; what follows it was left for '{later}': {error}")

    @property
    def path(self) -> Path:
        return self.store.root

    @cached_property
    def runs(self) -> Runs:
        from zkeep.pool.datasets.runs import Runs

        return Runs(self.catalog)

    @property
    def doc(self) -> Doc:
        document = self.catalog.get("pool", "")
        if document is None:
            raise Damaged("the catalog has no document of the pool itself")
        return document

    def transaction(self) -> AbstractContextManager[Transaction]:
        return self.catalog.transaction()

    # Names: full outside, relative in documents

    def relative(self, name: DatasetName) -> str:
        if name.pool != self.name:
            raise NotThere(f"cannot open {name}: it is not in pool {self.name}")
        return name.text.partition("/")[2]

    def full(self, relative: str) -> DatasetName:
        return DatasetName(f"{self.name}/{relative}" if relative else self.name)

    # Lookups

    def tree(self) -> DatasetTree:
        # One tree for each state of the datasets; a change of one makes a new tree when it is next asked for. What
        # else changes (runs, snapshots) leaves it: a package of many snapshots reads its dataset once for each.
        mark, changed = self.catalog.changes("dataset", self._tree[0] if self._tree else None)
        if self._tree is None or changed is None or changed:
            self._tree = mark, DatasetTree(self.catalog, self.name)
        return self._tree[1]

    def sees(self, name: DatasetName) -> bool:
        """Whether the dataset, if it exists, is in the scope. What is outside is as if it did not exist."""
        return self.scope is None or name.is_within(self.scope)

    def is_above_scope(self, name: DatasetName) -> bool:
        """Whether the scope lies below it: then it is known to exist, and nothing else of it is shown."""
        return self.scope is not None and name != self.scope and self.scope.is_within(name)

    def called(self, dataset: Dataset) -> str:
        """Its name, for a message; one outside of the scope is not named."""
        return dataset.name.text if self.sees(dataset.name) else "a dataset that is not yours"

    def find(self, name: DatasetName) -> Dataset | None:
        return self.tree().find(name) if self.sees(name) else None

    def dataset(self, name: DatasetName) -> Dataset:
        found = self.find(name)
        if not found:
            raise NotThere(f"cannot open {name}: dataset does not exist")
        return found

    def by_id(self, dataset_id: int) -> Dataset:
        found = self.tree().get(dataset_id)
        if found is None:
            raise Damaged(f"catalog: dataset {dataset_id} is named, and is not there")
        return found

    def origins(self, dataset: Dataset) -> list[tuple[Dataset, int]]:
        """What it is a clone of, what that is one of, and so on; each with the txg at which the clone began.

        All as it is now, and at one moment: a promotion may have turned round what `dataset` was looked up with.

        Raises:
            Damaged: one of them is not there, or is a clone of itself.
        """
        found: list[tuple[Dataset, int]] = []
        with self.catalog.reading():
            level, seen = self.tree().get(dataset.id), {dataset.id}
            while level is not None and level.origin is not None:
                dataset_id, txg = level.origin
                if dataset_id in seen:
                    raise Damaged(f"catalog: {level.name} is a clone of itself")
                seen.add(dataset_id)
                level = self.by_id(dataset_id)
                found.append((level, txg))
        return found

    def snapshots(self, dataset: Dataset) -> list[Snapshot]:
        """Oldest first."""
        return [Snapshot(dataset, doc) for _, doc in self.catalog.scan("snapshot", dataset.key + "/")]

    def snapshot_txgs(self, dataset: Dataset) -> list[int]:
        """The txgs of the snapshots, ascending; their documents are not read."""
        keys = self.catalog.keys("snapshot", dataset.key + "/")
        try:
            return [whole_number(key.rpartition("/")[2], MAX_UINT64) for key in keys]
        except ValueError as error:
            raise Damaged(f"catalog: a snapshot has the key {shown(str(error))}: it is not what was stored") from None

    def all_snapshots(self) -> dict[int, list[Snapshot]]:
        """The snapshots of every dataset, by its id; oldest first."""
        by_id = self.tree().by_id
        found: dict[int, list[Snapshot]] = {dataset_id: [] for dataset_id in by_id}
        for key, doc in self.catalog.scan("snapshot"):
            dataset_id = int(key.partition("/")[0])
            if dataset_id not in by_id:
                raise Damaged(f"catalog: snapshot {key} is of a dataset that is not there")
            found[dataset_id].append(Snapshot(by_id[dataset_id], doc))
        return found

    def find_snapshot(self, name: SnapshotName) -> Snapshot | None:
        dataset = self.find(name.dataset)
        found = self.catalog.lookup("snapshot", "name", name.name, dataset.key + "/") if dataset else []
        return Snapshot(dataset, found[0][1]) if dataset and found else None

    def newest_snapshot(self, dataset: Dataset) -> Snapshot | None:
        """The newest snapshot; None if there is none."""
        found = self.catalog.last("snapshot", dataset.key + "/")
        return Snapshot(dataset, found[1]) if found else None

    def snapshots_after(self, dataset: Dataset, txg: int, until: int = MAX_UINT64) -> list[Snapshot]:
        """The snapshots younger than `txg`, and not than `until`; oldest first."""
        first, last = txg_key(dataset.id, txg), txg_key(dataset.id, until)
        rows = self.catalog.after("snapshot", dataset.key + "/", first, last)
        return [Snapshot(dataset, doc) for _, doc in rows]

    def snapshots_by_guid(self, guid: int, dataset: Dataset | None = None) -> list[Snapshot]:
        """The snapshots of this guid, of one dataset or of all, by their datasets' numbers."""
        prefix = dataset.key + "/" if dataset else ""
        rows = self.catalog.lookup("snapshot", "guid", str(guid), prefix)
        found = [Snapshot(self.by_id(int(key.partition("/")[0])), doc) for key, doc in rows]
        return [snapshot for snapshot in found if self.sees(snapshot.dataset.name)]

    def snapshot(self, name: SnapshotName) -> Snapshot:
        found = self.find_snapshot(name)
        if not found:
            raise NotThere(f"cannot open {name}: snapshot does not exist")
        return found

    def snapshot_at(self, dataset_id: int, txg: int) -> Snapshot | None:
        doc = self.catalog.get("snapshot", txg_key(dataset_id, txg))
        return Snapshot(self.by_id(dataset_id), doc) if doc else None

    def bookmarks(self, dataset: Dataset) -> list[Bookmark]:
        return [Bookmark(dataset, doc) for _, doc in self.catalog.scan("bookmark", dataset.key + "/")]

    def bookmarks_by_guid(self, guid: int, dataset: Dataset) -> list[Bookmark]:
        rows = self.catalog.lookup("bookmark", "guid", str(guid), dataset.key + "/") if self.sees(dataset.name) else []
        return [Bookmark(dataset, doc) for _, doc in rows]

    def find_bookmark(self, name: BookmarkName) -> Bookmark | None:
        dataset = self.find(name.dataset)
        doc = self.catalog.get("bookmark", f"{dataset.key}/{name.name}") if dataset else None
        return Bookmark(dataset, doc) if dataset and doc else None

    def bookmark(self, name: BookmarkName) -> Bookmark:
        found = self.find_bookmark(name)
        if not found:
            raise NotThere(f"cannot open {name}: bookmark does not exist")
        return found

    def pins(self, dataset: Dataset) -> list[int]:
        """The txgs that snapshots, bookmarks and clones of `dataset` name, ascending."""
        named = [*self.snapshot_txgs(dataset), *(b.txg for b in self.bookmarks(dataset))]
        return sorted({*named, *(c.origin[1] for c in self.tree().clones(dataset) if c.origin)})

    # Changes, in a transaction

    def _put_new(self, t: Transaction, relative: str, kind: str, **fields: object) -> Doc:
        doc: Doc = {
            "id": t.next_id(),
            "name": relative,
            "guid": new_guid(),
            "type": kind,
            "createtxg": t.next_txg(),
            "creation": seconds_now(),
            "origin": None,
            "local": {},
            "received": {},
            "received_name": None,
            "raw": None,
        }
        doc.update(fields)
        t.put("dataset", dataset_key(doc["id"]), doc)
        return doc

    def create_dataset(self, t: Transaction, name: DatasetName, kind: str = "filesystem", **fields: object) -> Dataset:
        """`kind`: filesystem or volume; `fields`: of its document. The parent must exist."""
        if self.find(name):
            raise Exists(f"cannot create {name}: dataset already exists")
        above = name.parent and self.find(name.parent)
        if not above:
            raise NotThere(f"cannot create {name}: parent does not exist; -p makes it, too")
        if above.is_volume:
            raise Refused(f"cannot create {name}: its parent is a volume")
        self._bound(fields.get("local"))
        return Dataset(name, self._put_new(t, self.relative(name), kind, **fields))

    def _bound(self, local: Any) -> None:
        """Refuse more settings than a client may make. Raises Refused."""
        if self.scope is not None and local:
            size = sum(len(name) + len(text or "") for name, text in local.items())
            if size > MOST_SETTINGS:
                raise Refused(f"cannot set so many properties: each has room for {MOST_SETTINGS} bytes of them")

    def update_dataset(self, t: Transaction, dataset: Dataset, **fields: object) -> Dataset:
        """Set these fields; the others stay as the catalog has them. Raises Refused: it was destroyed meanwhile."""
        self._bound(fields.get("local"))
        now = _as_now(t, "dataset", dataset)
        changed = Dataset(dataset.name, {**now, **fields})
        # What a package says of its dataset again with every snapshot is written once.
        if changed.doc != now:
            t.put("dataset", dataset.key, changed.doc)
        return changed

    def add_snapshot(
        self, t: Transaction, dataset: Dataset, name: str, txg: int, guid: int, **fields: object
    ) -> Snapshot:
        """A snapshot that names `txg`. `fields`: of its document (creation, ivset_guid, features, ...).

        `received_at` is this host's time, whatever a stream says of its creation: retention counts from it.
        """
        full = dataset.name.snapshot(name)
        if self.find_snapshot(full) or self.snapshot_at(dataset.id, txg):
            raise Exists(f"cannot create {full}: snapshot already exists")
        doc: Doc = {
            "name": name,
            "guid": guid,
            "txg": txg,
            "createtxg": txg,
            "creation": seconds_now(),
            "ivset_guid": 0,
            "features": 0,
            "holds": {},
            "local": {},
            "received": {},
        }
        snapshot = Snapshot(dataset, {**doc, **self._time_of_receipt(t), **fields})
        if self.scope is not None and snapshot.holds:
            snapshot.doc["client_tags"] = sorted(snapshot.holds)
        t.put("snapshot", snapshot.key, snapshot.doc)
        self._touch(t, dataset)
        return snapshot

    def _time_of_receipt(self, t: Transaction) -> Doc:
        """`received_at`, unless the clock cannot be right; and the pool knows the time from now on."""
        now, known = seconds_now(), (t.get(CLOCK, "") or {}).get("seen")
        if clock_fault(now, known):
            return {}
        if known is None or now - known >= NOTE_EVERY:
            t.put(CLOCK, "", {"seen": now})
        return {"received_at": now}

    def update_snapshot(self, t: Transaction, snapshot: Snapshot, **fields: object) -> Snapshot:
        self._bound(fields.get("local"))
        changed = Snapshot(snapshot.dataset, {**_as_now(t, "snapshot", snapshot), **fields})
        t.put("snapshot", snapshot.key, changed.doc)
        return changed

    def remove_snapshot(self, t: Transaction, snapshot: Snapshot) -> None:
        """Forget it and its BEGIN record; the runs stay until compaction folds them.

        If it names what a dataset that is written to here holds now, that stays, as its head.
        """
        t.delete("snapshot", snapshot.key)
        dataset = snapshot.dataset
        now = t.get("dataset", dataset.key) or {}  # it may have been mounted since it was looked up
        if now.get("live") and not self.catalog.after("run", dataset.key + "/", snapshot.key):
            t.put(HEAD, dataset.key, {**snapshot.doc, "name": "head", "holds": {}, "local": {}})
        else:
            t.delete("begin", snapshot.key)
        self._touch(t, snapshot.dataset)

    def add_bookmark(self, t: Transaction, source: Snapshot | Bookmark, name: str) -> Bookmark:
        full = source.dataset.name.bookmark(name)
        if self.find_bookmark(full):
            raise Exists(f"cannot create bookmark {full}: bookmark exists")
        kept = ("guid", "txg", "createtxg", "creation", "ivset_guid", "features")
        doc = {"name": name, **{key: source.doc[key] for key in kept}}
        bookmark = Bookmark(source.dataset, doc)
        t.put("bookmark", bookmark.key, doc)
        return bookmark

    def remove_dataset(self, t: Transaction, dataset: Dataset) -> list[str]:
        """Delete a dataset's documents; returns the ids of its segments, whose files may be deleted after commit."""
        runs = t.scan("run", dataset.key + "/")
        segments = [segment for _, run in runs for segment in run["segments"]]
        # A partial receive has segments, too, that no run names yet.
        with suppress(Malformed):
            partial = t.get("receive", dataset.key)
            segments += partial["tally"]["segments"] if partial else []
        for kind in ("snapshot", "begin", "run", "bookmark", "key", "sent"):
            for key, _ in t.scan(kind, dataset.key + "/"):
                t.delete(kind, key)
        for kind in ("receive", "reserve", "health", HEAD):
            t.delete(kind, dataset.key)
        t.delete(VERIFY, dataset.key)
        t.delete(NO_ROOM, dataset.key)
        t.delete("dataset", dataset.key)
        return segments

    def _touch(self, t: Transaction, dataset: Dataset) -> None:
        """Note when the dataset's snapshots changed."""
        doc, now = t.get("dataset", dataset.key), seconds_now()
        if doc and doc.get("snapshots_changed") != now:
            t.put("dataset", dataset.key, {**doc, "snapshots_changed": now})


def _as_now(t: Transaction, kind: str, thing: Dataset | Snapshot) -> Doc:
    """The document as it is in a transaction: one that is gone must not come back with what was read before."""
    now = t.get(kind, thing.key)
    if now is None:
        raise NotThere(f"cannot change {thing.name}: it was destroyed meanwhile")
    return now


def read_identity(path: Path, file_name: str = IDENTITY) -> Doc:
    """What the file POOL of a pool's folder says; NotThere if there is none."""
    try:
        with LocalStore(path).open(file_name) as file:
            text = file.read(0, min(file.size, _LONGEST_IDENTITY))
        identity: Doc = json.loads(text)
        # The folder may be anybody's: every field is checked, and no message repeats bytes that a terminal obeys.
        version, _, _ = identity["format"], int(identity["guid"]), parse_pool(identity["name"])
    except (FileNotFoundError, NotADirectoryError):
        raise NotThere(f"there is no pool in {path}") from None
    except (ValueError, KeyError, TypeError, RecursionError, Refused) as error:
        raise Damaged(f"{path / file_name} is not what was stored: {ascii(str(error))[1:-1]}") from None
    if version != FORMAT:
        raise Refused(f"the pool in {path} has format {version!a:.80}; this zkeep knows format {FORMAT}")
    return identity
