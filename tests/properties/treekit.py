"""A tree of datasets to which things happen, as at a source that is replicated."""

from __future__ import annotations

import io
from random import Random
from typing import Any

from badinput.badkit import Record, begin_of, forged, rekeyed, stream
from zkeep.format.nvlist import NvList, NvType
from zkeep.format.records import BeginFlag, HeaderType
from zkeep.names import DatasetName
from zkeep.pool.datasets import destroy, namespace
from zkeep.pool.datasets.model import Dataset, Pool, Snapshot
from zkeep.pool.datasets.promote import promote
from zkeep.pool.datasets.view import View
from zkeep.pool.transfer.receive import ReceiveOptions, receive
from zkeep.pool.transfer.send import SendRequest, send

HISTORY = "rs512b"
FULL = stream(HISTORY, "full-s0")
INCREMENTS = [stream(HISTORY, f"inc-s{n}-s{n + 1}") for n in range(6)]


def take(pool: Pool, data: bytes, target: str, **options: Any) -> None:
    """Receive; a stream of a clone alone has its origin named, as the pool's administrator would."""
    begin = begin_of(data)
    if begin.flags & BeginFlag.CLONE and begin.hdrtype == HeaderType.SUBSTREAM:
        origin = pool.snapshots_by_guid(begin.fromguid)[0]
        options.setdefault("set_properties", {"origin": str(origin.name)})
    receive(pool, io.BytesIO(data), target, ReceiveOptions(**options))


def sent(pool: Pool, snapshot: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    send(pool, SendRequest(snapshot, raw=True, **options), sink)
    return sink.getvalue()


def made(data: bytes, guid: int, source: int = 0, *, clone: bool = False) -> bytes:
    """The same content as a snapshot of this guid, on top of one of the guid `source`."""

    def follow(*lists: NvList) -> None:
        for fields in lists:
            for name, follows in (("to_ivset_guid", guid), ("from_ivset_guid", source)):
                if name in fields and follows:
                    fields.remove(name)
                    fields.set(name, follows ^ 1, NvType.UINT64)

    def change(records: list[Record]) -> None:
        begin = records[0]
        rekeyed(begin, follow)
        for record in records:
            record.put("toguid", guid)
        begin.put("fromguid", source)
        flags = int(begin.get().flags)  # type: ignore[attr-defined]
        begin.put("flags", flags | BeginFlag.CLONE if clone else flags & ~BeginFlag.CLONE)

    return forged(data, change)


class Source:
    """The pool `v`; what is replicated is v/t. Its snapshots r0, r1, ... are of all datasets."""

    def __init__(self, pool: Pool, seed: int) -> None:
        self.pool = pool
        self.told: list[str] = []
        self._chance = Random(seed)
        self._made = 0
        self._clones: list[tuple[int, str]] = []
        self._promotions = 0
        for dataset in ("v/t", "v/t/a", "v/t/a/b"):
            take(pool, made(FULL, self._guid()), f"{dataset}@r0")

    def step(self, number: int) -> None:
        """Some events, and a snapshot of everything."""
        self._clones, self._promotions = [], 0
        for _ in range(self._chance.randrange(1, 5)):
            event = self._chance.choice(EVENTS)
            if what := event(self):
                self.told.append(f"r{number}: {event.__name__.strip('_')} {what}")
        for dataset in self.datasets():
            self._grow(dataset, f"r{number}")
        for guid, name in self._clones:
            self._clone_now(guid, name, f"r{number}")
        for _ in range(self._promotions):
            self.told.append(f"r{number}: late {self._promote_one()}")

    def datasets(self) -> list[Dataset]:
        return self.pool.tree().within(self.pool.dataset(DatasetName.parse("v/t")))

    def has_knots(self) -> bool:
        """Whether something is a clone of what lies below it. No stream tells that to a pool that has none of it."""
        origins = [(d, self.pool.by_id(d.origin[0])) for d in self.datasets() if d.origin]
        return any(origin.name.is_within(dataset.name) for dataset, origin in origins)

    def _guid(self) -> int:
        return self._chance.getrandbits(60) | 2

    def _name(self, kind: str) -> str:
        self._made += 1
        return f"{kind}{self._made}"

    def _grow(self, dataset: Dataset, name: str) -> None:
        last = self.pool.snapshots(dataset)[-1]
        take(self.pool, made(self._chance.choice(INCREMENTS), self._guid(), last.guid), f"{dataset.name}@{name}")

    def _every(self) -> list[Snapshot]:
        return [snapshot for dataset in self.datasets() for snapshot in self.pool.snapshots(dataset)]

    def _others(self) -> list[Dataset]:
        return self.datasets()[1:]

    # Events; each tells what it did, or nothing

    def _create(self) -> str:
        name = f"{self._chance.choice(self.datasets()).name}/{self._name('new')}@{self._name('first')}"
        take(self.pool, made(FULL, self._guid()), name)
        return name

    def _extra(self) -> str:
        dataset = self._chance.choice(self.datasets())
        self._grow(dataset, self._name("extra"))
        return str(dataset.name)

    def _destroy_snapshot(self) -> str:
        last = {self.pool.snapshots(dataset)[-1].guid for dataset in self.datasets()}
        cloned = {d.origin for d in self.datasets()}
        free = [s for s in self._every() if s.guid not in last and (s.dataset.id, s.txg) not in cloned]
        free = [s for s in free if not s.doc["name"].startswith("r")]
        if not free:
            return ""
        gone = self._chance.choice(free)
        plan = destroy.plan_snapshots(View(self.pool), gone.dataset.name, gone.doc["name"], destroy.DestroyOptions())
        destroy.execute(self.pool, plan)
        return str(gone.name)

    def _destroy(self) -> str:
        origins = {d.origin[0] for d in self.datasets() if d.origin}
        parents = {d.name.parent for d in self.datasets()}
        free = [d.name for d in self._others() if d.id not in origins and d.name not in parents]
        if not free:
            return ""
        name = self._chance.choice(free)
        destroy.execute(self.pool, destroy.plan_dataset(View(self.pool), name, destroy.DestroyOptions(recursive=True)))
        return str(name)

    def _rename(self) -> str:
        """In its folder, or into another."""
        if not self._others():
            return ""
        old = self._chance.choice(self._others()).name
        assert old.parent is not None
        elsewhere = [d.name for d in self.datasets() if not d.name.is_within(old)]
        parent = self._chance.choice([old.parent, self._chance.choice(elsewhere)])
        new = parent.child(self._name("renamed"))
        namespace.rename(self.pool, old, new)
        return f"{old} {new}"

    def _change_names(self) -> str:
        """Each of two gets the other's."""
        names = [d.name for d in self._others()]
        pairs = [(a, b) for a in names for b in names if not a.is_within(b) and not b.is_within(a)]
        if not pairs:
            return ""
        one, other = self._chance.choice(pairs)
        between = DatasetName.parse(f"v/t/{self._name('between')}")
        for old, new in ((one, between), (other, one), (between, other)):
            namespace.rename(self.pool, old, new)
        return f"{one} {other}"

    def _rename_snapshot(self) -> str:
        free = [s.name for s in self._every() if not s.doc["name"].startswith("r")]
        if not free:
            return ""
        old = self._chance.choice(free)
        new = old.dataset.snapshot(self._name("extra"))
        namespace.rename_snapshot(self.pool, old, new)
        return f"{old} {new}"

    def _clone(self) -> str:
        """With a first snapshot of its own, or with none until everything gets one."""
        free = [s for s in self._every() if s.dataset.name.text != "v/t"]
        if not free:
            return ""
        origin = self._chance.choice(free)
        name = f"{self._chance.choice(self.datasets()).name}/{self._name('clone')}"
        if self._chance.random() < 0.5:
            self._clones.append((origin.guid, name))
        else:
            self._clone_now(origin.guid, name, self._name("first"))
        return f"{origin.name} {name}"

    def _clone_now(self, origin: int, name: str, snapshot: str) -> None:
        parent = DatasetName.parse(name).parent
        if parent and self.pool.find(parent) and any(s.guid == origin for s in self._every()):
            data = made(self._chance.choice(INCREMENTS), self._guid(), origin, clone=True)
            take(self.pool, data, f"{name}@{snapshot}")

    def _promote(self) -> str:
        """Now, or when everything has got its snapshot, as if it had been before."""
        if self._chance.random() < 0.5:
            return self._promote_one()
        self._promotions += 1
        return "later"

    def _promote_one(self) -> str:
        free = [d for d in self.datasets() if self._may_be_promoted(d)]
        if not free:
            return ""
        clone = self._chance.choice(free)
        promote(self.pool, clone.name)
        return str(clone.name)

    def _may_be_promoted(self, clone: Dataset) -> bool:
        """Its origin keeps a snapshot, and no name is taken."""
        if clone.origin is None:
            return False
        before = self.pool.snapshots(self.pool.by_id(clone.origin[0]))
        moving = {s.doc["name"] for s in before if s.txg <= clone.origin[1]}
        own = {s.doc["name"] for s in self.pool.snapshots(clone)}
        return before[-1].txg > clone.origin[1] and not moving & own


EVENTS = (
    *(Source._create, Source._extra, Source._destroy_snapshot, Source._destroy, Source._rename),
    *(Source._change_names, Source._rename_snapshot, Source._clone, Source._clone, Source._promote, Source._promote),
)
