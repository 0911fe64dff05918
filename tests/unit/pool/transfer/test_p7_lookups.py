"""P7: a step costs what it changes, however many snapshots, datasets, bookmarks and holds there are.

Work is counted, not timed: statements that the index of the catalog was asked, and documents that it gave.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from zkeep.names import BookmarkName, DatasetName, SnapshotName
from zkeep.pool.datasets import destroy, namespace
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.promote import promote
from zkeep.pool.datasets.view import View
from zkeep.pool.store.index import Index
from zkeep.pool.transfer.receive import ReceiveOptions, receive
from zkeep.pool.transfer.send import SendRequest, send

sys.path.insert(0, str(Path(__file__).parents[4] / "bench"))
import scaling

FEW, MANY = 20, 400
DATA = DatasetName("b/data")


@dataclass
class Work:
    statements: int = 0
    documents: int = 0

    def total(self) -> int:
        return self.statements + self.documents


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    work, run = Work(), Index._run

    def counting(self: Index, query: str, *values: object) -> list[Any]:
        rows = run(self, query, *values)
        work.statements += 1
        work.documents += len(rows)
        return rows

    with monkeypatch.context() as patched:
        patched.setattr(Index, "_run", counting)
        yield work


@contextmanager
def filled(tmp_path: Path, kind: str, count: int) -> Iterator[Pool]:
    place = tmp_path / f"{kind}{count}"
    with scaling.new_pool(place / "home", place / "pool") as pool:
        scaling.FILL[kind](pool, count)
        yield pool


Step = Callable[[Pool, int], object]


def take(pool: Pool, number: int) -> None:
    receive(pool, io.BytesIO(scaling.stream(number)), "b/data", ReceiveOptions())


def destroy_one(pool: Pool, count: int) -> None:
    destroy.execute(pool, destroy.plan_snapshots(View(pool), DATA, f"n{count}", destroy.DestroyOptions()))


def promote_a_clone(pool: Pool, count: int) -> None:
    last = pool.snapshots_by_guid(scaling.guid(0))[0]
    with pool.transaction() as t:
        pool.create_dataset(t, DatasetName("b/clone"), origin={"dataset": last.dataset.id, "txg": last.txg})
    promote(pool, DatasetName("b/clone"))


ONE_AMONG_SNAPSHOTS: dict[str, Step] = {
    "receive": lambda pool, n: take(pool, n + 1),
    "send": lambda pool, n: send(pool, SendRequest(f"b/data@n{n}", raw=True, from_=f"@n{n - 1}"), io.BytesIO()),
    "hold": lambda pool, n: namespace.hold(pool, "tag", [SnapshotName(DATA, f"n{n}")]),
    "rename": lambda pool, n: namespace.rename_snapshot(pool, SnapshotName(DATA, f"n{n}"), SnapshotName(DATA, "x")),
    "bookmark": lambda pool, n: namespace.bookmark(pool, SnapshotName(DATA, f"n{n}"), BookmarkName(DATA, "x")),
    "destroy": destroy_one,
    "get": lambda pool, n: View(pool).get(pool.snapshot(SnapshotName(DATA, f"n{n}")), "guid"),
    "a dry run of destroy": lambda pool, n: destroy.plan_snapshots(View(pool), DATA, f"n{n}", destroy.DestroyOptions()),
}
ONE_AMONG_DATASETS: dict[str, Step] = {
    "create": lambda pool, n: namespace.create(pool, DatasetName("b/many/more"), {}),
    "receive": lambda pool, n: take(pool, 1),
    "hold": lambda pool, n: namespace.hold(pool, "tag", [SnapshotName(DatasetName(f"b/many/d{n}"), "s0")]),
    "set": lambda pool, n: namespace.set_properties(pool, [DatasetName(f"b/many/d{n}")], {"a:b": "c"}),
    "rename": lambda pool, n: namespace.rename(pool, DatasetName(f"b/many/d{n}"), DatasetName("b/many/other")),
    "promote": promote_a_clone,
    "get used": lambda pool, n: View(pool).get(pool.dataset(DatasetName(f"b/many/d{n}")), "used"),
    "get available": lambda pool, n: View(pool).get(pool.dataset(DatasetName(f"b/many/d{n}")), "available"),
    "get written@": lambda pool, n: View(pool).get(pool.dataset(DatasetName(f"b/many/d{n}")), "written@s0"),
    "estimate": lambda pool, n: send(pool, SendRequest(f"b/many/d{n}@s0", raw=True, dry_run=True), io.BytesIO()),
}
ONE_AMONG_BOOKMARKS: dict[str, Step] = {
    "receive": lambda pool, n: take(pool, 1),
    "bookmark": lambda pool, n: namespace.bookmark(pool, SnapshotName(DATA, "s0"), BookmarkName(DATA, "x")),
    "destroy": lambda pool, n: destroy.destroy_bookmark(pool, BookmarkName(DATA, f"m{n}")),
}
ONE_AMONG_HOLDS: dict[str, Step] = {
    "hold": lambda pool, n: namespace.hold(pool, "x", [SnapshotName(DATA, "s0")]),
    "release": lambda pool, n: namespace.release(pool, f"tag{n}", [SnapshotName(DATA, "s0")]),
}
ONE = {
    "snapshots": ONE_AMONG_SNAPSHOTS,
    "datasets": ONE_AMONG_DATASETS,
    "bookmarks": ONE_AMONG_BOOKMARKS,
    "holds": ONE_AMONG_HOLDS,
}


@pytest.mark.parametrize(("kind", "verb"), [(kind, verb) for kind, verbs in ONE.items() for verb in verbs])
def test_p7_one_of_many_costs_what_one_of_few_costs(
    kind: str, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for count in (FEW, MANY):
        with filled(tmp_path, kind, count) as pool:
            pool.runs.of(pool.dataset(DATA).key)  # read once by each process; followed from then on
            with counted(monkeypatch) as work:
                ONE[kind][verb](pool, count)
        found.append(work.total())
    assert found[1] <= found[0] + 40


def again(pool: Pool, count: int) -> None:
    receive(pool, io.BytesIO(scaling.many_increments(count)), "b/data", ReceiveOptions())


def full(pool: Pool, count: int) -> None:
    receive(pool, io.BytesIO(scaling.stream(0)), "b/new", ReceiveOptions())
    receive(pool, io.BytesIO(scaling.many_increments(count)), "b/new", ReceiveOptions())


def replicate(pool: Pool, count: int) -> None:
    made = io.BytesIO()
    send(pool, SendRequest("b/many@s0", raw=True, replicate=True), made)
    for _ in range(2):
        made.seek(0)
        receive(pool, made, "b/copy", ReceiveOptions())


def destroy_all(pool: Pool, count: int) -> None:
    destroy.execute(pool, destroy.plan_snapshots(View(pool), DATA, f"%n{count}", destroy.DestroyOptions()))


def list_all(pool: Pool, count: int) -> None:
    view = View(pool)
    for dataset in view.tree.within(pool.dataset(DatasetName("b"))):
        for thing in (dataset, *view.snapshots[dataset.id]):
            for name in ("used", "referenced", "written", "clones", "origin", "encryptionroot", "mountpoint"):
                view.get(thing, name)


ALL: dict[str, dict[str, Step]] = {
    "snapshots": {
        "receive again": again,
        "receive": full,
        "send -I": lambda pool, n: send(
            pool, SendRequest(f"b/data@n{n}", raw=True, from_all="@n1", props=True), io.BytesIO()
        ),
        "destroy a%b": destroy_all,
        "list": list_all,
    },
    "datasets": {
        "send -R and receive": replicate,
        "list": list_all,
        "hold -r": lambda pool, n: namespace.hold(pool, "tag", [SnapshotName(DatasetName("b/many"), "s0")], True),
        "rename": lambda pool, n: namespace.rename(pool, DatasetName("b/many"), DatasetName("b/few")),
        "destroy -r": lambda pool, n: destroy.execute(
            pool, destroy.plan_dataset(View(pool), DatasetName("b/many"), destroy.DestroyOptions(recursive=True))
        ),
    },
}


@pytest.mark.parametrize(("kind", "verb"), [(kind, verb) for kind, verbs in ALL.items() for verb in verbs])
def test_p7_many_cost_as_much_each_as_few(
    kind: str, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = 20, 80
    each = []
    for count in (few, many):
        with filled(tmp_path, kind, count) as pool, counted(monkeypatch) as work:
            ALL[kind][verb](pool, count)
        each.append(work.total() / count)
    assert each[1] <= 1.2 * each[0]


def test_p7_a_snapshot_of_a_package_takes_few_statements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset is read again only after it was changed: once for each snapshot."""
    found = []
    for count in (20, 60):
        with filled(tmp_path, "snapshots", count) as pool, counted(monkeypatch) as work:
            full(pool, count)
        found.append(work.statements)
    assert found[1] - found[0] < 74 * 40
