"""Destroy datasets and snapshots: first the plan (pure), then its execution.

A plan is refused as a whole if a snapshot is held, or if something outside of the plan depends on it: children
without -r, clones without -R.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from zkeep.errors import Refused, TryAgain
from zkeep.names import MAX_UINT64, BookmarkName, DatasetName, SnapshotName
from zkeep.pool.datasets import head, summaries
from zkeep.pool.datasets.history import past_of
from zkeep.pool.datasets.model import Dataset, NotThere, Pool, Snapshot, txg_key
from zkeep.pool.datasets.namespace import remove_if_deferred
from zkeep.pool.datasets.orphans import discard
from zkeep.pool.datasets.partial import base_of, bases, needed_by
from zkeep.pool.datasets.space import compute
from zkeep.pool.datasets.spaces import RunSums, all_pins
from zkeep.pool.datasets.view import View
from zkeep.pool.store.catalog import Transaction
from zkeep.pool.store.disk import allow_open_files


@dataclass(frozen=True, slots=True)
class DestroyOptions:
    recursive: bool = False
    "-r: children and their snapshots; with a snapshot, those of the same name below."
    clones: bool = False
    "-R: also the clones of what is destroyed."
    defer: bool = False
    "-d: a snapshot with holds or clones is destroyed when the last of them is gone."


@dataclass(slots=True)
class DestroyPlan:
    datasets: list[Dataset] = field(default_factory=list)
    "Children before their parents."
    snapshots: list[Snapshot] = field(default_factory=list)
    "Snapshots to destroy, those of `datasets` included."
    deferred: list[Snapshot] = field(default_factory=list)
    back_to: tuple[Dataset, int] | None = None
    "A dataset and a txg: what is newer in it is destroyed, bookmarks and runs without a snapshot, too. 0: everything."

    def names(self) -> list[str]:
        """Names in the order in which they are destroyed."""
        own: dict[int, list[str]] = {d.id: [] for d in self.datasets}
        lines: list[str] = []
        for snapshot in self.snapshots:
            own.get(snapshot.dataset.id, lines).append(str(snapshot.name))
        for dataset in self.datasets:
            lines += [*own[dataset.id], dataset.name.text]
        return lines


# Snapshots


def select(snapshots: list[Snapshot], spec: str) -> list[Snapshot]:
    """The snapshots that `a,b%c` selects: names, and ranges by age, ends included; an open end means the last."""
    places = {s.doc["name"]: at for at, s in enumerate(snapshots)}
    chosen: dict[str, Snapshot] = {}
    for part in spec.split(","):
        for snapshot in snapshots[_range(places, part)]:
            chosen.setdefault(snapshot.key, snapshot)
    return list(chosen.values())


def _range(places: dict[str, int], part: str) -> slice:
    """The positions, by age, that `a` or `a%b` selects; none if one of the names does not exist."""
    # `a`: that one. `a%b`: from a to b. `a%` and `%b`: from a on, up to b. `%`: all.
    first, between, last = part.partition("%")
    if not between:
        last = first
    if (first and first not in places) or (last and last not in places) or not (first or between):
        return slice(0)
    return slice(places[first] if first else 0, places[last] + 1 if last else None)


def _selected(view: View, dataset: Dataset, spec: str) -> list[Snapshot]:
    chosen: dict[str, Snapshot] = {}
    for part in spec.split(","):
        for snapshot in _in_range(view, dataset, part):
            chosen.setdefault(snapshot.key, snapshot)
    return list(chosen.values())


def _in_range(view: View, dataset: Dataset, part: str) -> list[Snapshot]:
    """What select() says of one part of a spec; no more documents are read than that."""
    first, between, last = part.partition("%")
    ends = [view.pool.find_snapshot(SnapshotName(dataset.name, name)) for name in (first, last) if name]
    found = [snapshot for snapshot in ends if snapshot is not None]
    if len(found) < len(ends) or not between:
        return found if len(found) == len(ends) else []
    since = found[0].txg - 1 if first else 0
    return view.pool.snapshots_after(dataset, since, found[-1].txg if last else MAX_UINT64)


def plan_snapshots(view: View, name: DatasetName, spec: str, options: DestroyOptions) -> DestroyPlan:
    dataset = view.pool.dataset(name)
    datasets = view.tree.within(dataset) if options.recursive else [dataset]
    found = [s for d in datasets for s in _selected(view, d, spec)]
    if not found:
        raise NotThere(f"cannot destroy {name}@{spec}: could not find any snapshots to destroy")
    plan = DestroyPlan(snapshots=found)
    if options.clones:
        add_clones(view, plan)
    # With -d, what is needed now is only marked, and goes when that is over.
    if options.defer:
        known, gone = bases(view.pool), {d.id for d in plan.datasets}
        plan.deferred = [s for s in found if s.holds or _clones_outside(view, gone, s) or base_of(known, s)]
        later = {s.key for s in plan.deferred}
        plan.snapshots = [s for s in plan.snapshots if s.key not in later]
    check(view, plan, options)
    return plan


def plan_steps(view: View, dataset: Dataset, steps: list[Snapshot]) -> DestroyPlan:
    """Destroy steps, the dataset's newest snapshots among them, and the records behind the last snapshot that stays."""
    plan, doomed = DestroyPlan(snapshots=list(steps)), {step.key for step in steps}
    check(view, plan, DestroyOptions())
    # What was written where the dataset is mounted builds on the records of the steps: then they stay.
    if head.unnamed(view.pool, dataset) is None:
        stays = [s.txg for s in view.snapshots[dataset.id] if s.key not in doomed]
        plan.back_to = dataset, max(stays, default=0)
    return plan


# Datasets


def plan_dataset(view: View, name: DatasetName, options: DestroyOptions) -> DestroyPlan:
    dataset = view.pool.dataset(name)
    if name.parent is None:
        raise Refused(f"cannot destroy {name}: it is the pool's own; use 'zkeep pool destroy {name}'")
    plan = DestroyPlan()
    # Deepest first, so that no child is ever without its parent.
    plan.datasets = sorted(view.tree.within(dataset), key=lambda d: d.name.text, reverse=True)
    plan.snapshots = [s for d in plan.datasets for s in view.snapshots[d.id]]
    if not (options.recursive or options.clones):
        others = [name for name in plan.names() if name != dataset.name.text]
        if others:
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            kind = "volume" if dataset.is_volume else "filesystem"
            listed = ", ".join(sorted(others)[:3]) + more
            raise Refused(f"cannot destroy {dataset.name}: {kind} has children; use -r to destroy also {listed}")
    if options.clones:
        add_clones(view, plan)
    check(view, plan, options)
    return plan


def add_clones(view: View, plan: DestroyPlan) -> None:
    """Add clones of the plan's snapshots, and their clones, until nothing is added: the newest go first."""
    groups: list[list[Dataset]] = [plan.datasets]
    datasets, snapshots = {d.id for d in plan.datasets}, {s.key for s in plan.snapshots}
    examined = 0
    while examined < len(plan.snapshots):
        snapshot = plan.snapshots[examined]
        examined += 1
        for clone in view.tree.clones(snapshot.dataset, snapshot.txg):
            if clone.id in datasets:
                continue
            if not view.pool.sees(clone.name):
                raise Refused(f"cannot destroy {snapshot.name}: {view.pool.called(clone)} is a clone of it")
            # With a clone goes what lies below it, whose snapshots may have clones, too.
            below = sorted(view.tree.within(clone), key=lambda d: d.name.text, reverse=True)
            groups.append([d for d in below if d.id not in datasets])
            datasets |= {d.id for d in groups[-1]}
            fresh = [s for d in groups[-1] for s in view.snapshots[d.id] if s.key not in snapshots]
            snapshots |= {s.key for s in fresh}
            plan.snapshots += fresh
    plan.datasets = [dataset for group in reversed(groups) for dataset in group]


def _clones_outside(view: View, inside: set[int], snapshot: Snapshot) -> list[Dataset]:
    """Clones of the snapshot, without the datasets of these ids."""
    return [c for c in view.tree.clones(snapshot.dataset, snapshot.txg) if c.id not in inside]


def check(view: View, plan: DestroyPlan, options: DestroyOptions) -> None:
    known, gone = bases(view.pool), {d.id for d in plan.datasets}
    # A hold, a clone that stays, or a partial receive that builds on it keeps a snapshot.
    for snapshot in plan.snapshots:
        if snapshot.holds:
            tags = ", ".join(sorted(snapshot.holds)[:3])
            raise Refused(f"cannot destroy {snapshot.name}: it is held ({tags}); release it or use -d")
        if clones := _clones_outside(view, gone, snapshot):
            hint = f"use -R to destroy also {view.pool.called(clones[0])}"
            raise Refused(f"cannot destroy {snapshot.name}: snapshot has dependent clones; {hint}")
        if (receiving := base_of(known, snapshot)) and receiving.id not in gone:
            raise Refused(f"cannot destroy {snapshot.name}: {needed_by(view.pool, receiving)}")


# What it gives back, and doing it


def reclaims(view: View, plan: DestroyPlan) -> int:
    """Bytes by which the pool's `used` shrinks."""
    gone, gone_snapshots = {d.id for d in plan.datasets}, {s.key for s in plan.snapshots}
    # Compute the figures twice: as they are, and without what goes. The difference counts what only the doomed share.
    runs = RunSums(view.pool.catalog)
    runs.read_all()
    every = all_pins(view.pool)
    pins = {i: [txg for txg in txgs if txg_key(i, txg) not in gone_snapshots] for i, txgs in every.items()}
    # With its last snapshot a dataset's runs go, too, unless something else needs them: see drop_unneeded().
    for dataset in {s.dataset.id: s.dataset for s in plan.snapshots if not pins.get(s.dataset.id)}.values():
        kept_by = view.pool.bookmarks(dataset) or dataset.doc.get("live") or head.unnamed(view.pool, dataset)
        if dataset.id not in gone and not kept_by:
            runs.pop(dataset.id, None)
    kept = {i: d.doc for i, d in view.tree.by_id.items() if i not in gone}
    top = view.tree.find(DatasetName(view.pool.name))
    assert top is not None  # every pool has one
    return view.figures(top).used.stored - compute(kept, runs, pins).datasets[top.id].used.stored


def execute(
    pool: Pool,
    plan: DestroyPlan,
    mounts: head.HeldMounts | None = None,
    decide_again: Callable[[], None] = lambda: None,
) -> None:
    """Execute a plan, all or nothing; the files of destroyed datasets are deleted after the commit.

    `mounts`: those of its datasets that are mounted may stay so. `decide_again`: called within the transaction that
    destroys, where nothing changes any more: it may take snapshots out of the plan, or raise.

    Raises:
        Refused: something changed since it was planned.
        TryAgain: a dataset is busy, or its mount has gone on.
    """
    mounts = mounts or head.HeldMounts()
    segments: list[str] = []
    rolled_back = [plan.back_to[0]] if plan.back_to else []
    # Under the locks of all datasets no receive begins; what was planned is checked again inside the transaction.
    with ExitStack() as stack:
        allow_open_files(len(plan.datasets))
        for dataset in [*plan.datasets, *rolled_back]:
            busy = f"cannot destroy {dataset.name}: dataset is busy"
            stack.enter_context(pool.store.lock(lock_name(dataset), busy=busy))
            if dataset.id not in mounts.ids:
                stack.enter_context(head.not_mounted(pool, dataset, f"cannot destroy {dataset.name}"))
        with pool.catalog.transaction(urgent=True) as t:
            mounts.check()
            decide_again()
            _recheck(pool, plan)
            segments = _remove(pool, t, plan)
    discard(pool, segments)
    with pool.afterwards("destroyed"):
        for dataset in plan.datasets:
            summaries.forget(pool, dataset)


def lock_name(dataset: Dataset) -> str:
    """The name of the lock that is held while a dataset is received into, or destroyed."""
    return f"dataset-{dataset.key}"


def _recheck(pool: Pool, plan: DestroyPlan) -> None:
    """Refuse a plan if something changed between planning and locking."""
    known = {d.id for d in plan.datasets}
    receives, view = bases(pool), View(pool)
    for snapshot in plan.snapshots:
        if clones := _clones_outside(view, known, snapshot):
            raise Refused(f"cannot destroy {snapshot.name}: it was cloned meanwhile, as {pool.called(clones[0])}")
        if (receiving := base_of(receives, snapshot)) and receiving.id not in known:
            raise Refused(f"cannot destroy {snapshot.name}: {needed_by(pool, receiving)}")
    for snapshot in (*plan.snapshots, *plan.deferred):
        now = pool.snapshot_at(snapshot.dataset.id, snapshot.txg)
        if not now or now.doc != snapshot.doc:
            raise Refused(f"cannot destroy {snapshot.name}: it was changed meanwhile")
    planned = Counter(s.dataset.id for s in plan.snapshots)
    for dataset in plan.datasets:
        _recheck_dataset(pool, dataset, known, planned[dataset.id])
    if plan.back_to:
        dataset, txg = plan.back_to
        newer = {s.key for s in pool.snapshots_after(dataset, txg)}
        gone = txg > 0 and pool.snapshot_at(dataset.id, txg) is None
        if gone or newer - {s.key for s in plan.snapshots}:
            raise Refused(f"cannot roll back {dataset.name}: it was changed meanwhile")


def _recheck_dataset(pool: Pool, dataset: Dataset, known: set[int], planned: int) -> None:
    """Refuse if a doomed dataset has another name now, or more in it: what came since was never shown to the user."""
    now = pool.tree().get(dataset.id)
    fresh = [d for d in pool.tree().within(dataset) if d.id not in known]
    count = len(pool.catalog.keys("snapshot", dataset.key + "/"))
    if now is None or now.name != dataset.name or fresh or count != planned:
        raise Refused(f"cannot destroy {dataset.name}: it was changed meanwhile")


def _remove(pool: Pool, t: Transaction, plan: DestroyPlan) -> list[str]:
    """Delete documents; returns the segments that nothing names any more. Snapshots of a dataset go with it."""
    segments: list[str] = []
    gone = {d.id for d in plan.datasets}
    for snapshot in plan.deferred:
        pool.update_snapshot(t, snapshot, defer_destroy=True)
    for snapshot in plan.snapshots:
        if snapshot.dataset.id not in gone:
            pool.remove_snapshot(t, snapshot)
    if plan.back_to:
        segments += drop_after(pool, t, *plan.back_to)
    for dataset in plan.datasets:
        segments += pool.remove_dataset(t, dataset)
    for dataset in {s.dataset.id: s.dataset for s in plan.snapshots if s.dataset.id not in gone}.values():
        segments += drop_unneeded(pool, t, dataset)
    # A clone that is gone may have been all that kept its origin, if that is marked to be destroyed.
    for dataset in plan.datasets:
        if dataset.origin and pool.tree().get(dataset.origin[0]) and (origin := pool.snapshot_at(*dataset.origin)):
            remove_if_deferred(pool, t, origin)
    return segments


def drop_after(pool: Pool, t: Transaction, dataset: Dataset, txg: int) -> list[str]:
    """Forget bookmarks and runs that are newer; returns the segments that nothing names any more.

    Raises:
        TryAgain: there is a newer snapshot, which needs them. Somebody has just made it.
    """
    if newer := pool.snapshots_after(dataset, txg):
        raise TryAgain(f"cannot roll back {dataset.name}: {newer[-1].name} was made meanwhile")
    segments: list[str] = []
    younger = pool.catalog.after("run", dataset.key + "/", txg_key(dataset.id, txg))
    for key, run in younger:
        segments += run["segments"]
        t.delete("run", key)
    for bookmark in pool.bookmarks(dataset) if younger else ():  # a bookmark names a run that is there
        if bookmark.txg > txg:
            t.delete("bookmark", bookmark.key)
    state = head.unnamed(pool, dataset)
    if state is not None and state.txg > txg:
        head.drop(t, dataset)
    return segments


def drop_unneeded(pool: Pool, t: Transaction, dataset: Dataset) -> list[str]:
    """Forget the runs of a dataset whose last snapshot is gone; returns the segments that nothing names any more."""
    # A bookmark names a run that is there, and a mounted dataset's head needs its runs. A clone needs a snapshot.
    return [] if past_of(pool, dataset) else drop_after(pool, t, dataset, 0)


def destroy_bookmark(pool: Pool, name: BookmarkName) -> None:
    with pool.transaction() as t:
        t.delete("bookmark", pool.bookmark(name).key)
