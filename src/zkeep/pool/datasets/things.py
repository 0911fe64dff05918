"""Datasets, snapshots and bookmarks as views of the catalog's documents, and the tree of datasets.

Each shows the state in which it was read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from zkeep.names import BookmarkName, DatasetName, SnapshotName
from zkeep.pool.store.catalog import Catalog
from zkeep.pool.store.terms import origin_term
from zkeep.pool.types import Doc

RESUME = "resume"
"Field of a snapshot's document: it holds the part that came of a stream that broke off, and says where that goes on."
MADE_HERE = "made_here"
"Field of a snapshot's document: its records were made here, and not received."


def dataset_key(dataset_id: int) -> str:
    return f"{dataset_id:012d}"


def txg_key(dataset_id: int, txg: int) -> str:
    """The key of what belongs to one txg of a dataset: snapshot, run, begin."""
    return f"{dataset_id:012d}/{txg:020d}"


@dataclass(frozen=True, slots=True)
class Dataset:
    name: DatasetName
    doc: Doc

    @property
    def id(self) -> int:
        return int(self.doc["id"])

    @property
    def guid(self) -> int:
        return int(self.doc["guid"])

    @property
    def is_volume(self) -> bool:
        return bool(self.doc["type"] == "volume")

    @property
    def origin(self) -> tuple[int, int] | None:
        """The dataset's id and the txg that a clone began with."""
        origin = self.doc["origin"]
        return (origin["dataset"], origin["txg"]) if origin else None

    @property
    def key(self) -> str:
        return dataset_key(self.id)

    @property
    def has_own_key(self) -> bool:
        """Whether it is an encryption root: as it was at the sender, or as change-key made it here."""
        own = self.doc.get("own_key")
        return bool(self.doc.get("encroot") if own is None else own)


@dataclass(frozen=True, slots=True)
class Snapshot:
    dataset: Dataset
    doc: Doc

    @property
    def name(self) -> SnapshotName:
        return SnapshotName(self.dataset.name, self.doc["name"])

    @property
    def guid(self) -> int:
        return int(self.doc["guid"])

    @property
    def txg(self) -> int:
        return int(self.doc["txg"])

    @property
    def received_at(self) -> int | None:
        """When it came to be here, by this host's clock, in seconds since 1970; None: an older zkeep noted none."""
        at = self.doc.get("received_at")
        return None if at is None else int(at)

    @property
    def is_made_here(self) -> bool:
        """Whether it was taken here, and not received."""
        return bool(self.doc.get(MADE_HERE))

    @property
    def holds(self) -> dict[str, int]:
        """When each tag was set, in seconds since 1970."""
        return dict(self.doc["holds"])

    @property
    def key(self) -> str:
        return txg_key(self.dataset.id, self.txg)


@dataclass(frozen=True, slots=True)
class Bookmark:
    dataset: Dataset
    doc: Doc

    @property
    def name(self) -> BookmarkName:
        return BookmarkName(self.dataset.name, self.doc["name"])

    @property
    def guid(self) -> int:
        return int(self.doc["guid"])

    @property
    def txg(self) -> int:
        return int(self.doc["txg"])

    @property
    def key(self) -> str:
        return f"{self.dataset.key}/{self.doc['name']}"


class DatasetTree:
    """The datasets, in one state of the catalog. Each is read when it is first asked for, by name or id."""

    def __init__(self, catalog: Catalog, pool: str) -> None:
        self._catalog = catalog
        self._pool = pool
        self._known: dict[int, Dataset] = {}
        self._names: dict[str, Dataset | None] = {}
        self._clones: dict[int, dict[int, list[Dataset]]] = {}

    @cached_property
    def by_id(self) -> dict[int, Dataset]:
        """All datasets by id, sorted by name. To read only one or some, use get(), find() or within()."""
        found = [self._dataset(doc) for _, doc in self._catalog.scan("dataset")]
        return {d.id: d for d in sorted(found, key=lambda d: d.name.text)}

    @property
    def by_name(self) -> dict[str, Dataset]:
        return {d.name.text: d for d in self.by_id.values()}

    def _dataset(self, doc: Doc) -> Dataset:
        found = self._known.get(int(doc["id"]))
        if found is None:
            # Documents have names without the pool's: a pool may be imported under another one.
            relative = doc["name"]
            found = Dataset(DatasetName(f"{self._pool}/{relative}" if relative else self._pool), doc)
            self._known[found.id] = self._names[found.name.text] = found
        return found

    def get(self, dataset_id: int) -> Dataset | None:
        found = self._known.get(dataset_id)
        if found is None and (doc := self._catalog.get("dataset", dataset_key(dataset_id))):
            found = self._dataset(doc)
        return found

    def find(self, name: DatasetName) -> Dataset | None:
        if name.text not in self._names:
            relative = name.text.partition("/")[2]
            rows = self._catalog.lookup("dataset", "name", relative) if name.pool == self._pool else []
            self._names[name.text] = self._dataset(rows[0][1]) if rows else None
        return self._names[name.text]

    def parent(self, dataset: Dataset) -> Dataset | None:
        above = dataset.name.parent
        return self.find(above) if above else None

    def ancestors(self, dataset: Dataset) -> Iterator[Dataset]:
        """The parent first, the pool's top dataset last."""
        above = self.parent(dataset)
        while above:
            yield above
            above = self.parent(above)

    def within(self, dataset: Dataset, depth: int | None = None) -> list[Dataset]:
        """The dataset and everything below it, to `depth` levels, by name."""
        now = self.find(dataset.name)
        found = [now] if now else []
        if depth == 0:
            return found
        limit = 10**6 if depth is None else dataset.name.depth + depth
        # Below the top lie all the others; else the index finds the names that begin with this one.
        if dataset.name.parent is None:
            below = [d for d in self.by_id.values() if d.name != dataset.name]
        else:
            relative = dataset.name.text.partition("/")[2]
            below = [self._dataset(doc) for _, doc in self._catalog.below("dataset", "name", f"{relative}/")]
        return found + [d for d in below if d.name.depth <= limit]

    def clones(self, dataset: Dataset, txg: int | None = None) -> list[Dataset]:
        """The clones of `dataset`: of the snapshot at `txg`, or of any."""
        if dataset.id not in self._clones:
            # The index finds clones by the term ORIGIN/TXG of their origin, without reading other datasets.
            rows = self._catalog.below("dataset", "origin", origin_term(dataset.id, ""))
            by_txg: dict[int, list[Dataset]] = {}
            for clone in sorted((self._dataset(doc) for _, doc in rows), key=lambda d: d.name.text):
                if clone.origin:
                    by_txg.setdefault(clone.origin[1], []).append(clone)
            self._clones[dataset.id] = by_txg
        found = self._clones[dataset.id]
        if txg is not None:
            return list(found.get(txg, ()))
        return sorted((clone for clones in found.values() for clone in clones), key=lambda d: d.name.text)
