"""Give the datasets here the names and origins that a replication stream (send -R) says of the source's.

Source: OpenZFS lib/libzfs/libzfs_sendrecv.c recv_incremental_replication().
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from zkeep.errors import Refused
from zkeep.names import DatasetName, shown
from zkeep.pool.datasets import head
from zkeep.pool.datasets.model import Dataset, Pool, Snapshot
from zkeep.pool.datasets.no_room import QuotaExceeded
from zkeep.pool.datasets.orphans import discard
from zkeep.pool.datasets.partial import base_of, bases, needed_by, state_of
from zkeep.pool.datasets.promote import lock_both, promote_in
from zkeep.pool.datasets.view import View
from zkeep.pool.store.catalog import Transaction
from zkeep.pool.transfer.package_header import PackageDataset, PackageHeader


@dataclass(frozen=True)
class _Replication:
    """The state of one replication of names: a transaction, what the stream's header says, and the datasets here.

    `within`: nothing outside of it is changed. `stack` releases the locks of datasets in `locked`. `done`: what was
    changed so far, as participles. `fuller`: the datasets, by id, whose quotas count more than before. `matched`: what
    match() found, by the dataset's id.
    """

    pool: Pool
    t: Transaction
    header: PackageHeader
    top: Dataset
    within: DatasetName
    stack: ExitStack
    locked: set[int] = field(default_factory=set)
    done: list[str] = field(default_factory=list)
    fuller: set[int] = field(default_factory=set)
    matched: dict[int, PackageDataset | None] = field(default_factory=dict)

    def match(self, dataset: Dataset) -> PackageDataset | None:
        """The sender's dataset that one here is. A promotion can change that of its two datasets, and of no other."""
        if dataset.id not in self.matched:
            self.matched[dataset.id] = _match(self.pool, self.header, dataset)
        return self.matched[dataset.id]

    def promote(self, clone: Dataset) -> None:
        """Promote a clone here; both datasets stay locked until the end."""
        lock_both(self.pool, clone, self.stack, self.locked)
        # It gets snapshots of its origin's.
        if clone.origin is not None:
            gaining = _levels(self.pool, clone) - _levels(self.pool, self.pool.by_id(clone.origin[0]))
            self.fuller.update(gaining)
        promote_in(self.pool, self.t, clone)
        for dataset_id in (clone.id, *(clone.origin or ())[:1]):
            self.matched.pop(dataset_id, None)
        self.note("promoted")

    def note(self, done: str) -> None:
        if done not in self.done:
            self.done.append(done)


@dataclass(frozen=True)
class Replicated:
    """What replicate_names() did. `settled`: all datasets have their final names; `done`: what was changed."""

    settled: bool = True
    done: tuple[str, ...] = ()


def replicate_names(
    pool: Pool,
    header: PackageHeader,
    top: DatasetName,
    within: DatasetName,
    place: Callable[[str], DatasetName],
    *,
    force: bool,
    judge: Callable[[], None] = lambda: None,
) -> Replicated:
    """Before an incremental replication: promote, rename, and with -F destroy, as was done at the source.

    `within`: the dataset that the user named; nothing outside is changed, whatever the header says. `judge` is called
    when all has its new name, before that becomes durable: if it raises, nothing is changed.

    One transaction: all or nothing. If not all names are settled, call it again when more datasets have arrived.

    Raises:
        Refused: something to destroy is held or has a clone that stays.
        QuotaExceeded: more would lie below a quota than that allows.
        TryAgain: a dataset to promote is busy.
    """
    dataset = pool.find(top)
    if dataset is None:
        return Replicated()
    segments: list[str] = []
    with ExitStack() as stack, pool.transaction() as t:
        # 1. Clones have the origins that they have there: promoted ones are promoted, pasts of two datasets parted.
        work = _Replication(pool, t, header, dataset, within, stack)
        levels = {each.id: _levels(pool, each) for each in pool.tree().within(dataset)}
        _promote_as_there(work)
        _part_as_there(work)
        # 2. Match datasets by common snapshots; with -F, what is gone there is destroyed.
        local = pool.tree().within(dataset)
        matched = {each.id: there for each in local if (there := work.match(each)) is not None}
        if force:
            segments = _destroy_gone(work, local, matched)
        # 3. Names: of snapshots, then of datasets as far as their parents are here.
        _rename_snapshots(work, matched)
        settled = _rename_datasets(work, local, matched, place)
        _refuse_overdraft(work, levels)
        # 4. Nothing is taken away from under a mount that is written to.
        for before in local:
            now = pool.tree().get(before.id)
            if now is None or now.name != before.name:
                verb = "destroy" if now is None else "rename"
                cannot = f"cannot {verb} {before.name} as at the source"
                stack.enter_context(head.not_mounted(pool, before, cannot))
        # 5. What comes next is judged with these names; if it is refused, all of this is undone.
        judge()
    discard(pool, segments)
    return Replicated(settled, tuple(work.done))


def _levels(pool: Pool, dataset: Dataset) -> set[int]:
    """The ids of the dataset and of those above it: their quotas count what it has."""
    return {dataset.id, *(above.id for above in pool.tree().ancestors(dataset))}


def _refuse_overdraft(work: _Replication, before: dict[int, set[int]]) -> None:
    """Refuse what puts more below a quota than that allows.

    Datasets that are made bring properties, renamed ones what they have, and promoted ones what was their origins'.
    `before`: the levels of each dataset, by its id.
    """
    pool, fuller = work.pool, set(work.fuller)
    for dataset in pool.tree().within(work.top) if work.done else ():
        fuller |= _levels(pool, dataset) - before.get(dataset.id, set())
    view = View(pool)
    for level in (pool.tree().get(dataset_id) for dataset_id in fuller):
        limit = int(view.policy(level, "quota")) if level is not None else 0
        if level is not None and 0 < limit < view.charged(level) + view.reserved(level):
            raise QuotaExceeded(f"cannot receive {work.within}: the quota is used up")


def _promote_as_there(work: _Replication) -> None:
    """Promote clones that were promoted at the source.

    Each promotion takes a clone one origin up, so a clone of a clone may need several: as many as it has origins here,
    and one at least, but no more, whatever the header says.
    """
    pool = work.pool
    local = pool.tree().within(work.top)
    left = Counter({d.id: max(1, len(pool.origins(d))) for d in local})
    # The first by name that was promoted there goes first. A promotion changes the answer for its two datasets only.
    todo = [(d.name.text, d.id) for d in local]
    heapify(todo)
    while todo:
        name, dataset_id = heappop(todo)
        dataset = pool.by_id(dataset_id)
        if left[dataset_id] <= 0 or not _is_promoted(work, dataset):
            continue
        left[dataset_id] -= 1
        work.promote(dataset)
        origin = pool.by_id(dataset.origin[0]) if dataset.origin else dataset
        for each in {(name, dataset_id), (origin.name.text, origin.id)}:
            heappush(todo, each)


def _is_promoted(work: _Replication, dataset: Dataset) -> bool:
    """Whether the dataset was promoted at the source: its origin there is older than its origin here, or none.

    A promotion takes snapshots away from the origin: one outside of `within` keeps them.
    """
    pool, within = work.pool, work.within
    # here                                  there, after `zfs promote clone`
    #
    # fs@a --- fs@b --- fs                  clone@a --- clone@b --- clone
    #             \                                         \
    #              clone (origin fs@b)                       fs (origin clone@b)
    origin = pool.snapshot_at(*dataset.origin) if dataset.origin else None
    there = work.match(dataset)
    if origin is None or there is None or there.origin == origin.guid or not _is_in(origin, within):
        return False
    if there.origin == 0:
        return True
    return any(s.txg < origin.txg and _is_in(s, within) for s in pool.snapshots_by_guid(there.origin))


def _is_in(snapshot: Snapshot, within: DatasetName) -> bool:
    return snapshot.dataset.name.is_within(within)


def _part_as_there(work: _Replication) -> None:
    """Divide a dataset here whose older snapshots belong to another dataset at the source.

    That is what a promotion there does to a clone that was never replicated before: its part of the past must become
    a dataset of its own here, too.
    """
    pool, guids = work.pool, work.header.by_guid
    top, *todo = pool.tree().within(work.top)
    # How many datasets here are which one of the source.
    here = Counter(there.name for each in (top, *todo) if (there := work.match(each)) is not None)
    while todo:
        dataset = todo.pop()
        # Which dataset at the source each snapshot belongs to. The newest one says whose this dataset is.
        owned = [(s, guids[s.guid][0]) for s in pool.snapshots(dataset) if s.guid in guids]
        older = [(snapshot, owner) for snapshot, owner in owned if owner is not owned[-1][1]]
        # As that one is another than the older one's owner, what counts here of it are other datasets.
        if not older or here[older[-1][1].name]:
            continue
        # A clone of the newest of the others, promoted, takes these snapshots; it may have to be divided again.
        snapshot, owner = older[-1]
        clone = _clone_for(pool, work.t, snapshot, owner)
        work.promote(clone)
        here[owner.name] += 1
        todo.append(pool.by_id(clone.id))


def _clone_for(pool: Pool, t: Transaction, snapshot: Snapshot, owner: PackageDataset) -> Dataset:
    """A clone of the snapshot, beside its dataset; called as at the source, where that is free here."""
    origin = snapshot.dataset
    assert origin.name.parent is not None
    name = origin.name.parent.child(owner.name.rpartition("/")[2])
    if pool.find(name):
        name = origin.name.parent.child(_aside(snapshot.guid))
    same = {field: origin.doc[field] for field in ("raw", "crypt") if field in origin.doc}
    source = {"dataset": origin.id, "txg": snapshot.txg}
    return pool.create_dataset(
        t, name, origin.doc["type"], origin=source, received=owner.received, received_name=owner.name, **same
    )


def _match(pool: Pool, header: PackageHeader, dataset: Dataset) -> PackageDataset | None:
    """Match a local dataset to one of the sender's, by the newest snapshot that both have.

    A dataset without snapshots is matched by its partial receive.
    """
    # Newest first: after a promotion both datasets have the old snapshots, and only the newest tells them apart.
    guids = header.by_guid
    mine = [s.guid for s in reversed(pool.snapshots(dataset))]
    partial = state_of(pool.catalog, dataset) if not mine else None
    mine += [partial["toguid"]] if partial else []
    found = next((guid for guid in mine if guid in guids), None)
    return guids[found][0] if found is not None else None


def _destroy_gone(work: _Replication, local: list[Dataset], matched: dict[int, PackageDataset]) -> list[str]:
    """With -F: destroy snapshots and datasets that do not exist at the source; returns segments without a name."""
    pool, t, guids = work.pool, work.t, work.header.by_guid
    segments: list[str] = []
    for dataset in _leaves_first(local):
        # Of a dataset that the source has, single snapshots go; one that it has not goes whole, but never the top.
        gone = [s for s in pool.snapshots(dataset) if s.guid not in guids]
        whole = dataset.id not in matched and dataset is not local[0]
        for snapshot in gone:
            _refuse_kept(pool, snapshot, whole=whole)
        if whole or (gone and dataset.id in matched):
            work.note("destroyed")
        if dataset.id in matched:
            for snapshot in gone:
                pool.remove_snapshot(t, snapshot)
        elif dataset is not local[0]:  # a child that stays is given another parent
            segments += pool.remove_dataset(t, dataset)
    return segments


def _leaves_first(datasets: list[Dataset]) -> Iterator[Dataset]:
    """Sort datasets: clones before their origins, and children before their parents."""
    todo = sorted(datasets, key=lambda d: -d.name.depth)
    while todo:
        origins = {d.origin[0] for d in todo if d.origin}
        parents = {d.name.parent for d in todo}
        # Take what has neither clone nor child left. If there is none (a clone above its origin), take any.
        free = [d for d in todo if d.id not in origins and d.name not in parents] or todo[:1]
        yield from free
        done = {d.id for d in free}
        todo = [d for d in todo if d.id not in done]


def _refuse_kept(pool: Pool, snapshot: Snapshot, *, whole: bool) -> None:
    """Refuse to destroy a snapshot that is needed. `whole`: its dataset, and a partial receive there, goes with it."""
    if snapshot.holds:
        raise Refused(f"cannot destroy {snapshot.name}, gone at the source: it is held")
    if clones := pool.tree().clones(snapshot.dataset, snapshot.txg):
        raise Refused(f"cannot destroy {snapshot.name}, gone at the source: {pool.called(clones[0])} is its clone")
    receiving = base_of(bases(pool), snapshot)
    if receiving and not (whole and receiving.id == snapshot.dataset.id):
        raise Refused(f"cannot destroy {snapshot.name}, gone at the source: {needed_by(pool, receiving)}")


def _rename_snapshots(work: _Replication, matched: dict[int, PackageDataset]) -> None:
    pool, guids = work.pool, work.header.by_guid
    for dataset_id in matched:
        dataset = pool.tree().get(dataset_id)
        if dataset is None:
            continue
        # By guid: the name may have changed at the source, the guid never does.
        wanted = {s.txg: guids[s.guid][1] for s in pool.snapshots(dataset) if s.guid in guids}
        kept = {s.doc["name"] for s in pool.snapshots(dataset) if s.txg not in wanted}
        for snapshot in pool.snapshots(dataset):
            name = wanted.get(snapshot.txg, snapshot.doc["name"])
            if name != snapshot.doc["name"]:
                if name in kept:
                    raise Refused(f"cannot rename {snapshot.name} to @{name}, as at the source: the name is taken")
                pool.update_snapshot(work.t, snapshot, name=name)
                work.note("renamed")


def _rename_datasets(
    work: _Replication, local: list[Dataset], matched: dict[int, PackageDataset], place: Callable[[str], DatasetName]
) -> bool:
    """Give each dataset below the top its sender's name; what the sender does not know moves with its parent.

    So does what belongs below a dataset that is still to come; if it has that one's name, it steps aside.
    """
    pool, header = work.pool, work.header
    top, tree = local[0].name.text, pool.tree().by_id
    below = sorted((d for d in local[1:] if d.id in tree), key=lambda d: d.name.depth)
    others = {d.name.text for d in tree.values()} - {d.name.text for d in below}
    wanted = {d.id: place(matched[d.id].name).text for d in below if d.id in matched}
    coming = {place(name).text for name in header.datasets.keys() - {o.name for o in matched.values()}}
    waiting: set[int] = set()
    aside: set[int] = set()
    # Which datasets must wait for their parent (below which they stay), and which of those must step aside, depends on
    # the others: repeat until nothing changes.
    while True:
        names = _moved(top, below, {i: name for i, name in wanted.items() if i not in waiting}, aside)
        parents = others.union(names.values())
        homeless = {i for i, name in wanted.items() if name.rpartition("/")[0] not in parents} - waiting
        needed = coming.union(name for i, name in wanted.items() if i not in waiting)
        in_the_way = {i for i in waiting if names[i] in needed} - aside
        if not homeless and not in_the_way:
            break
        waiting |= homeless
        aside |= in_the_way
    for dataset in below:
        if names[dataset.id] != dataset.name.text:
            pool.update_dataset(work.t, dataset, name=pool.relative(DatasetName.parse(names[dataset.id])))
            work.note("renamed")
    taken = sorted(name for name, count in Counter(names.values()).items() if count > 1 or name in others)
    if taken:
        raise Refused(f"cannot rename as at the source: {shown(taken[0])} is in the way")
    return not waiting


def _moved(top: str, below: list[Dataset], wanted: dict[int, str], aside: set[int]) -> dict[int, str]:
    """The name of each by id: as wanted, or below what its parent is called then; if that is gone, below the top."""
    # Parents come first in `below`, so `moved` knows where a parent went when its children are looked at.
    moved = {top: top}
    names: dict[int, str] = {}
    for dataset in below:
        above = moved.get(dataset.name.text.rpartition("/")[0])
        base = _aside(dataset.guid) if dataset.id in aside or above is None else dataset.name.base
        names[dataset.id] = wanted.get(dataset.id) or f"{above or top}/{base}"
        moved[dataset.name.text] = names[dataset.id]
    return names


def _aside(guid: int) -> str:
    """A name that no user would give."""
    return f"recv-{guid:x}"
