"""What `get` and `list` answer: the value and the source of each property of a dataset, snapshot or bookmark.

A value is a number, text, or None where the property has no value here (`-`); the command line formats numbers.
Figures, snapshots and clones are looked up when first asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property

from zkeep.errors import Damaged
from zkeep.names import MAX_UINT64, BadName, BookmarkName, SnapshotName, parse_any, whole_number
from zkeep.pool.datasets import charge, derived, properties
from zkeep.pool.datasets.answers import Answer, Thing, Value, head, letter
from zkeep.pool.datasets.model import Bookmark, Dataset, Pool, Snapshot
from zkeep.pool.datasets.partial import state_of
from zkeep.pool.datasets.properties import PROPERTIES, Property
from zkeep.pool.datasets.space import HEAD, DatasetSpace, SpaceHistory
from zkeep.pool.datasets.spaces import Spaces

NO_SETTINGS: Mapping[str, str | None] = {}


class View:
    """Answers from one state of the pool; make a new view after a change.

    `loaded` returns the ids of the encryption roots whose keys the agent holds; a pool has no keys.
    """

    def __init__(self, pool: Pool, loaded: Callable[[], set[int]] = set) -> None:
        self.pool = pool
        self._loaded = loaded
        self.tree = pool.tree()

    @cached_property
    def snapshots(self) -> Mapping[int, list[Snapshot]]:
        """The snapshots of a dataset, by its id, oldest first; read when they are first asked for."""
        return _SnapshotsById(self)

    @cached_property
    def loaded(self) -> set[int]:
        return self._loaded()

    def figures(self, dataset: Dataset) -> DatasetSpace:
        """What the dataset uses; what lies below it counts, and is measured with it."""
        return self._spaces.figures(dataset)

    def history(self, dataset: Dataset) -> SpaceHistory:
        return self._spaces.history(dataset)

    @cached_property
    def _spaces(self) -> Spaces:
        return Spaces(self.pool)

    def applicable(self, thing: Thing) -> Iterator[str]:
        """The properties that `get all` prints, in its order: native ones, then those of the user."""
        for prop in PROPERTIES.values():
            if prop.name not in properties.HIDDEN and (
                applies(prop, thing) and (prop.can_be_set or self.get(thing, prop.name).value is not None)
            ):
                yield prop.name
        docs = [thing.doc, *(d.doc for d in self._above(thing))]
        names = {name for doc in docs for key in ("local", "received") for name in doc.get(key, ())}
        found = {n for n in names if n not in PROPERTIES}
        yield from sorted({n for n in found if self.get(thing, n).value is not None})

    def _above(self, thing: Thing) -> Iterator[Dataset]:
        """The datasets that it inherits from, nearest first."""
        if not isinstance(thing, Dataset):
            yield thing.dataset
        yield from self.tree.ancestors(head(thing))

    # One property

    def get(self, thing: Thing, name: str) -> Answer:
        """The value of the property `name` (see properties.find); None where it does not apply."""
        # What a client of a server may see of datasets above its own is next to nothing.
        if self.pool.is_above_scope(head(thing).name):
            return self._get_above(head(thing), name)
        if name.startswith(("written@", "written#")):
            return Answer(self._written_since(thing, name))
        prop = properties.find(name)
        if not prop or not applies(prop, thing) or (prop.name == "notify" and self.pool.scope is not None):
            return Answer(None)
        if prop.name in derived.TABLE:
            return derived.TABLE[prop.name](self, thing)
        return self.setting(thing, prop) if prop.can_be_set else Answer(None)

    def _get_above(self, dataset: Dataset, name: str) -> Answer:
        """What a client sees of a dataset above its own: that it is there, and as large as what the client has."""
        prop, own = properties.find(name), self.pool.scope and self.pool.find(self.pool.scope)
        if prop is None or properties.is_user(prop) or not applies(prop, dataset):
            return Answer(None)
        if prop.name in ("name", "type", "mounted"):
            return derived.TABLE[prop.name](self, dataset)
        if prop.name in ("used", "usedbychildren", "available") and own:
            return self.get(own, "available" if prop.name == "available" else "used")
        # Whether it has a key is not told; TrueNAS takes "-" for encrypted, and would send nothing.
        said = {"mountpoint": f"/{dataset.name}", "encryption": "off", "keyformat": "none"}.get(prop.name)
        if said is not None:
            return Answer(said, "default")
        if prop.can_be_set:
            return Answer(_typed(prop, prop.default), "default")
        return Answer(0 if prop.kind in ("size", "count") else None)

    def within(self, dataset: Dataset, depth: int | None = None) -> Iterator[Dataset]:
        """The dataset and what lies below it, to `depth` levels, as far as it may be shown; by name."""
        pool = self.pool
        for each in self.tree.within(dataset, depth):
            if pool.sees(each.name) or pool.is_above_scope(each.name):
                yield each

    def policy(self, dataset: Dataset, name: str) -> str:
        """The value that zkeep acts on: one that was set here, on the dataset or above it, or the default.

        All decisions use it, so that no received property decides anything.
        """
        return str(self._effective(dataset, PROPERTIES[name], _local).value)

    def setting(self, thing: Thing, prop: Property) -> Answer:
        """The value to show: local, else received, else (where it is inherited) the nearest ancestor's, else the
        default. Where zkeep acts on the property, the value that has effect.
        """
        return self._effective(thing, prop, _local if prop.is_policy else _own)

    def _effective(self, thing: Thing, prop: Property, look: Callable[[Thing, str], tuple[str, str] | None]) -> Answer:
        """`look` returns the value that one level sets, and its source."""
        received = thing.doc.get("received", {}).get(prop.name)
        own = look(thing, prop.name)
        if own:
            return Answer(_typed(prop, own[0]), own[1], received)
        if prop.how == "inherit":
            for above in self._above(thing):
                if properties.is_user(prop) and not self.pool.sees(above.name):
                    break  # what the administrator notes above a client's root may be about others
                if found := look(above, prop.name):
                    return Answer(_typed(prop, found[0]), f"inherited from {above.name}", received)
        if properties.is_user(prop) or (isinstance(thing, Snapshot) and prop.kind == "size"):
            return Answer(None, "-", received)
        return Answer(_typed(prop, prop.default), "default", received)

    def _written_since(self, thing: Thing, name: str) -> Value:
        """`written@x`: bytes written after the snapshot x of its dataset (`written#x`: after the bookmark x).

        x may be a full name, as `tank/home@x`; then also that of a snapshot from which the dataset was cloned.
        """
        if isinstance(thing, Bookmark):
            return None
        dataset, mark = head(thing), name[len("written") :]
        text = mark[1:] if "@" in mark[1:] or "#" in mark[1:] else f"{dataset.name}{mark}"
        point: Snapshot | Bookmark | None = None
        with suppress(BadName):
            parsed = parse_any(text)
            if isinstance(parsed, SnapshotName):
                point = self.pool.find_snapshot(parsed)
            elif isinstance(parsed, BookmarkName):
                point = self.pool.find_bookmark(parsed)
        return self._written(dataset, point, thing.txg if isinstance(thing, Snapshot) else HEAD) if point else None

    def _written(self, dataset: Dataset, since: Snapshot | Bookmark, until: int) -> int | None:
        """Bytes referred to at `until` and born after a point of the dataset's past; None: it is none of it."""
        total = self.history(dataset).written(since.txg, until).stored
        # What a clone got from its origin, and was born after the point, was written by the origin.
        while since.dataset.id != dataset.id:
            origin = dataset.origin and self.pool.snapshot_at(*dataset.origin)
            if not origin or since.txg > origin.txg:
                return None
            dataset = origin.dataset
            total += self.history(dataset).written(since.txg, origin.txg).stored
        return total

    # Room

    def free(self) -> int:
        """Bytes that are free on the disk."""
        disk = os.statvfs(self.pool.path)
        return disk.f_bavail * disk.f_frsize

    def available(self, dataset: Dataset) -> int:
        """What the disk and the quotas on the way up leave."""
        # A client sees only its own quotas: what others leave on the disk would tell of them.
        levels = [level for level, _ in self.quotas(dataset) if self.pool.sees(level.name)]
        if self.pool.scope is not None and levels:  # what others leave of the disk, or of a common quota, is not told
            seen = [(level, limit) for level, limit in self.quotas(dataset) if level in levels]
            rooms = [limit - self.charged(level) - self.reserved(level) for level, limit in seen]
        else:
            rooms = [self.free(), *self._rooms(dataset)]
        if refquota := int(self.policy(dataset, "refquota")):
            rooms.append(refquota - self.figures(dataset).referenced.stored)
        return max(0, min(rooms))

    def quota_room(
        self, dataset: Dataset, apart_from: str = "", settings: Mapping[str, str | None] = NO_SETTINGS
    ) -> int | None:
        """Bytes that the quotas on the way up leave; None where there is none.

        What receives have reserved takes room, too, except for the receive `apart_from`. `settings`: properties that
        the dataset is going to have.
        """
        rooms = list(self._rooms(dataset, apart_from, settings))
        return max(0, min(rooms)) if rooms else None

    def quotas(
        self, dataset: Dataset, settings: Mapping[str, str | None] = NO_SETTINGS
    ) -> Iterator[tuple[Dataset, int]]:
        """The dataset and those above it that have a quota, each with its quota."""
        for level in (dataset, *self.tree.ancestors(dataset)):
            given = level is dataset and "quota" in settings
            limit = int(settings["quota"] or 0) if given else int(self.policy(level, "quota"))
            if limit:
                yield level, limit

    def _rooms(
        self, dataset: Dataset, apart_from: str = "", settings: Mapping[str, str | None] = NO_SETTINGS
    ) -> Iterator[int]:
        for level, limit in self.quotas(dataset, settings):
            yield limit - self.charged(level) - self.reserved(level, apart_from)

    def charged(self, level: Dataset) -> int:
        """The bytes that a quota counts: what is used, and what came beside the records (charge.py)."""
        size = self.figures(level).used.stored
        for dataset in self.tree.within(level):
            snapshots = [s.doc for s in self.snapshots[dataset.id]]
            bookmarks = [b.doc for b in self.pool.bookmarks(dataset)]
            size += charge.of_dataset(dataset.doc, self._spaces.runs[dataset.id], snapshots, bookmarks)
        return size

    def reserved(self, level: Dataset, apart_from: str = "") -> int:
        """The bytes reserved for receives into the dataset or below it."""
        docs = dict(self.pool.catalog.scan("reserve"))
        total = sum(int(d["bytes"]) for k, d in docs.items() if k != apart_from and self._is_in(level, d["dataset"]))
        # Partial receives count what they keep, also where no reservation was written for them.
        for key in set(self.pool.catalog.keys("receive")) - docs.keys() - {apart_from}:
            if key.isdecimal() and self._is_in(level, int(key)):  # a partial receive of a version without reservations
                dataset = self.tree.get(int(key))
                partial = state_of(self.pool.catalog, dataset) if dataset is not None else None
                total += int(partial["tally"]["bytes"]) if partial else 0
        return total

    def _is_in(self, level: Dataset, dataset_id: int) -> bool:
        dataset = self.tree.get(dataset_id)
        return dataset is not None and dataset.name.is_within(level.name)


class _SnapshotsById(dict[int, list[Snapshot]]):
    """Reads the snapshots of a dataset when they are first asked for."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self._view = view

    def __missing__(self, dataset_id: int) -> list[Snapshot]:
        dataset = self._view.tree.get(dataset_id)
        if dataset is None:
            raise Damaged(f"catalog: dataset {dataset_id} is named, and is not there")
        self[dataset_id] = self._view.pool.snapshots(dataset)
        return self[dataset_id]


def applies(prop: Property, thing: Thing) -> bool:
    """Whether it has the property; for a snapshot, the type of its dataset counts, too."""
    if letter(thing) not in prop.applies:
        return False
    kinds = set(prop.applies) & {"f", "v"}
    return not isinstance(thing, Snapshot) or not kinds or letter(thing.dataset) in kinds


def _local(thing: Thing, name: str) -> tuple[str, str] | None:
    """The value that was set here on the thing itself."""
    text = thing.doc.get("local", {}).get(name)
    return (text, "local") if text is not None and properties.makes_sense(name, text) else None


def _own(thing: Thing, name: str) -> tuple[str, str] | None:
    """The value of the thing itself, local or received. A local null hides a received one (`inherit`, `receive -x`)."""
    # The key may be there with None: hidden, and the ancestors' value shows.
    if name in thing.doc.get("local", {}):
        return _local(thing, name)
    text = thing.doc.get("received", {}).get(name)
    return (text, "received") if text is not None and properties.makes_sense(name, text) else None


def _typed(prop: Property, text: str) -> Value:
    if prop.is_number:
        with suppress(ValueError):
            return whole_number(text, MAX_UINT64)
    return text if properties.is_user(prop) else text or None
