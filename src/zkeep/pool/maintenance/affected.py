"""The snapshots that a damaged record affects: those whose state includes it, of its dataset and of clones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from zkeep.errors import Damaged
from zkeep.names import MAX_UINT64
from zkeep.pool.datasets.history import history_of
from zkeep.pool.datasets.model import Dataset, Pool, Snapshot
from zkeep.pool.maintenance.check_segment import Flaw
from zkeep.pool.timeline.rewrite import reach
from zkeep.pool.timeline.table import DTYPES, NOTHING, fold, merge
from zkeep.pool.timeline.timeline import Run, Timeline

FOREVER = MAX_UINT64


def family(pool: Pool, dataset: Dataset, txg: int) -> list[Dataset]:
    """The dataset, and the clones in whose past its run of `txg` is."""
    found = [dataset]
    # The list grows while it is gone through: clones of clones come behind.
    for one in found:
        since = txg if one.id == dataset.id else 0
        found += [c for c in pool.tree().clones(one) if c.origin and c.origin[1] >= since]
    return found


def since(pool: Pool, dataset: Dataset, txg: int) -> list[Snapshot]:
    """All snapshots in whose past a run of the dataset is."""
    return [s for one in family(pool, dataset, txg) for s in pool.snapshots(one) if s.txg >= txg]


def affected_snapshots(pool: Pool, dataset: Dataset, run: Run, segment_id: str, flaw: Flaw) -> list[Snapshot]:
    """The snapshots that cannot be sent, or not as they are, because of a flaw in a segment of a run."""
    if flaw.spare:
        own = pool.snapshot_at(dataset.id, run.txg)
        return [own] if own and run.doc["whole"] else []
    if flaw.rows is None:
        return since(pool, dataset, run.txg)
    found = []
    for one in family(pool, dataset, run.txg):
        death = _death(pool, one, run, segment_id, flaw)
        found += [s for s in pool.snapshots(one) if run.txg <= s.txg < death]
    return found


def _death(pool: Pool, dataset: Dataset, run: Run, segment_id: str, flaw: Flaw) -> int:
    """The txg that killed a row, in the timeline of `dataset`; FOREVER where that cannot be known."""
    history = history_of(pool, dataset)
    try:
        with history.timeline(pool.store) as timeline:
            return _killer(timeline, run, segment_id, flaw)
    except Damaged:
        return FOREVER


def _killer(timeline: Timeline, run: Run, segment_id: str, flaw: Flaw) -> int:
    numbers = [segment.number for segment in timeline.segments(run)]
    rows = flaw.rows
    assert rows is not None
    # Put the row into a table by itself, and merge it with one later run after the other: the run after which it is
    # gone killed it.
    row = rows.copy()
    row["segment"] = numbers[run.segments.index(segment_id)]
    table = replace(NOTHING, **{flaw.table: row})
    if flaw.table != "objects":
        objects = fold(timeline.near([run], ("objects",), reach(table, table.objects))).objects
        table = replace(table, objects=objects[objects["object"] == row["object"][0]])
    wanted = reach(table, table.objects)
    for later in timeline.after(run.txg, FOREVER):
        table = merge(table, timeline.near([later], DTYPES, wanted)[0])
        left = getattr(table, flaw.table)
        if not ((left["segment"] == row["segment"][0]) & (left["pos"] == row["pos"][0])).any():
            return later.txg
    return FOREVER


def names(pool: Pool, snapshots: Iterable[Snapshot]) -> list[str]:
    """Names of snapshots; neighbours in one dataset as a range, `a/b@first%last`, as destroy takes it."""
    by_dataset: dict[int, list[Snapshot]] = {}
    for snapshot in snapshots:
        by_dataset.setdefault(snapshot.dataset.id, []).append(snapshot)
    found = []
    for mine in by_dataset.values():
        order = [s.txg for s in pool.snapshots(mine[0].dataset)]
        mine.sort(key=lambda s: s.txg)
        # Where consecutive numbers begin and end.
        places = [order.index(s.txg) for s in mine]
        starts = [i for i, place in enumerate(places) if i == 0 or places[i - 1] != place - 1]
        for first, last in zip(starts, [*(begin - 1 for begin in starts[1:]), len(places) - 1], strict=True):
            text = str(mine[first].name)
            found.append(text if first == last else f"{text}%{mine[last].doc['name']}")
    return found
