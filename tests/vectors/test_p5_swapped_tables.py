"""P5: a server that swaps tables, or moves a snapshot's mark, cannot make a plain stream leave out or free anything.

Everything that is sent is authentic by itself in all of these; what is missing, or freed, would make the receiver hold
a state that never was.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from corruption import view_of
from histories import new_pool, take
from hostile import Store, retabled
from manifests import Case, cases

from zkeep.errors import Damaged, NotAuthentic
from zkeep.names import BookmarkName, SnapshotName
from zkeep.pool.datasets import destroy, namespace
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance.compact import compact
from zkeep.pool.timeline import spans as sp
from zkeep.pool.timeline.spans import Array
from zkeep.pool.timeline.table import Table
from zkeep.pool.transfer.send import SendRequest, send
from zkeep.restore.plain.send import PlainSender
from zkeep.snapshot.open import OpenSnapshot

CASE = next(case for case in cases() if case.name == "ccm192-lzjb-8k-composed")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(CASE, tmp_path_factory.mktemp("store"))


@pytest.fixture
def store(kept: Store) -> Iterator[Store]:
    """Three snapshots: a full stream and two increments."""
    yield kept
    kept.restore()


def every(pool: Pool) -> list[Snapshot]:
    return [snapshot for found in pool.all_snapshots().values() for snapshot in found]


def sent(store: Store, source: int | None, target: int, case: Case = CASE) -> bytes:
    sink = io.BytesIO()
    with Pool.open(store.path) as pool:
        names = [str(snapshot.name) for snapshot in every(pool)]
        from_ = names[source] if source is not None else None
        send(pool, SendRequest(names[target], from_=from_, decrypting=lambda: PlainSender(case.key)), sink)
    return sink.getvalue()


def refused(store: Store, source: int | None, target: int, why: str = "") -> None:
    with pytest.raises((NotAuthentic, Damaged)) as error:
        sent(store, source, target)
    assert "\n" not in str(error.value)
    assert why in str(error.value)


PAIRS = [(None, 2), (0, 1), (1, 2), (0, 2)]


def test_changes_are_said_to_lie_before_the_source(store: Store) -> None:
    """Two runs become one, as after a destroy, and the destroyed snapshot is put back: an increment would be empty."""
    with store.changed() as pool:
        _, one, _ = every(pool)
        kept = [(kind, pool.catalog.get(kind, one.key)) for kind in ("snapshot", "begin")]
        name = str(one.doc["name"])
        destroy.execute(pool, destroy.plan_snapshots(View(pool), one.dataset.name, name, destroy.DestroyOptions()))
        compact(pool)
        with pool.transaction() as t:
            for kind, doc in kept:
                assert doc is not None
                t.put(kind, one.key, doc)
            newest, run = list(pool.catalog.scan("run"))[-1]
            t.put("run", one.key, {**run, "txg": one.txg})
            t.delete("run", newest)
    assert len(sent(store, None, 2)) > 100_000
    refused(store, 1, 2, "v/x@s1: the MAC of the object set does not verify")


def test_what_an_increment_from_a_bookmark_may_lack_is_said(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the snapshot is there, it is opened; else there is nothing to compare with."""
    with store.changed() as pool:
        _, one, last = every(pool)
        mark = BookmarkName.parse(f"{one.dataset.name}#mark")
        namespace.bookmark(pool, SnapshotName.parse(str(one.name)), mark)
        request = SendRequest(str(last.name), from_=str(mark), decrypting=lambda: PlainSender(CASE.key))
        shown = []
        for gone in (False, True):
            if gone:
                plan = destroy.plan_snapshots(
                    View(pool), one.dataset.name, str(one.doc["name"]), destroy.DestroyOptions()
                )
                destroy.execute(pool, plan)
            sink = io.BytesIO()
            send(pool, request, sink)
            shown.append(sink.getvalue())
            said = capsys.readouterr().err
            assert ("has no snapshot any more" in said) == gone
        assert shown[0] == shown[1]


# What tables say of objects and blocks, beside where their records lie


def changed(name: str, column: str, value: int) -> Callable[[Table], Table]:
    """One column of all rows gets a value."""

    def change(table: Table) -> Table:
        rows: Array = getattr(table, name).copy()
        rows[column] = value
        return replace(table, **{name: rows})

    return change


def added(name: str, rows: Callable[[Table], Array]) -> Callable[[Table], Table]:
    def change(table: Table) -> Table:
        return replace(table, **{name: sp.union(getattr(table, name), rows(table))})

    return change


LIES = {
    "objects take no slots": (changed("objects", "slots", 0), 0, 2),
    "blocks of dnodes have no slots": (changed("ranges", "slots", 0), 0, 2),
    "blocks have no length": (changed("blocks", "length", 0), 0),
    "blocks are large": (changed("objects", "blksz", 1 << 24), 2),
    "objects are short": (changed("objects", "maxblkid", 0), 1),
    "trees are flat": (changed("objects", "nlevels", 1), 2),
    "nothing died": (changed("died", "end", 0), 2),
    "all were freed": (added("freed", lambda table: sp.lines(np.array([1], "<u8"), np.array([1 << 40], "<u8"))), 1),
}
"What a table may say, and in which segments it is tried."
CASES = [(lie, where) for lie, (_, *places) in LIES.items() for where in places]


@pytest.fixture(scope="module")
def honest(kept: Store) -> dict[tuple[int | None, int], bytes]:
    return {pair: sent(kept, *pair) for pair in PAIRS}


@pytest.mark.parametrize(("lie", "where"), CASES)
def test_what_tables_say_of_objects_leaves_nothing_out(
    store: Store, honest: dict[tuple[int | None, int], bytes], where: int, lie: str, tmp_path: Path
) -> None:
    """The stream brings what it brought, or breaks off."""
    first = sent(store, None, 0)
    retabled(store.segments[where], LIES[lie][0])
    for pair, want in honest.items():
        try:
            found = sent(store, *pair)
        except (NotAuthentic, Damaged):
            continue
        if found != want:
            before = first, honest[0, 1]
            shown = [arrived(tmp_path, before[: pair[0] + 1 if pair[0] is not None else 0], s) for s in (found, want)]
            assert shown[0] == shown[1], pair


def arrived(folder: Path, before: tuple[bytes, ...], stream: bytes) -> object:
    """What a pool without keys has that received streams."""
    place = Path(tempfile.mkdtemp(dir=folder))
    with new_pool(place) as pool:
        for each in (*before, stream):
            take(pool, each)
        newest = every(pool)[-1]
        with OpenSnapshot(pool, newest) as opened:
            return view_of(opened)
