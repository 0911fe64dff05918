"""P7: figures of many runs are read from rows in short, which say what the documents say, whatever happened to them."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zkeep.errors import Damaged
from zkeep.names import DatasetName, SnapshotName
from zkeep.pool.datasets import destroy
from zkeep.pool.datasets.model import Pool, dataset_key, txg_key
from zkeep.pool.datasets.space import compute
from zkeep.pool.datasets.view import View
from zkeep.pool.store import index as index_module
from zkeep.pool.store.catalog import Catalog
from zkeep.pool.store.index import MEMORY, Index
from zkeep.pool.store.journal import encode
from zkeep.pool.store.row import sum_of
from zkeep.pool.store.terms import read_sums, terms

sys.path.insert(0, str(Path(__file__).parents[4] / "bench"))
import scaling

Doc = dict[str, Any]
DATA = DatasetName("b/data")
RUN = {"whole": True, "from_txg": 0, "fromguid": 0, "features": 0, "maxblkid": 0, "segments": [], "records": 0}
AMOUNT = st.integers(0, 2**64 - 1)
KILLED = st.one_of(st.sampled_from([0, 1, 30]), st.integers(0, 30))


def run(txg: int, stored: int, logical: int, dead: Doc) -> Doc:
    return {**RUN, "txg": txg, "bytes": stored, "logical": logical, "file_bytes": 0, "dead": dead}


@st.composite
def histories(draw: st.DrawFn) -> list[Doc]:
    """The runs of a dataset; each kills bytes of none, some or many of those before it."""
    docs: list[Doc] = []
    for txg in range(1, draw(st.integers(1, 40))):
        killed = draw(st.lists(st.integers(1, txg), max_size=draw(KILLED), unique=True))
        docs.append(run(txg, draw(AMOUNT), draw(AMOUNT), {str(t): [draw(AMOUNT), draw(AMOUNT)] for t in killed}))
    return docs


def short(docs: list[Doc]) -> list[Doc]:
    index = Index(MEMORY, 0)
    with closing(index), index.change():
        index.apply([("run", txg_key(3, doc["txg"]), encode(doc)) for doc in docs])
        assert [key for key, _ in index.scan("run", "")] == [key for key, _ in index.sums("")]
        assert index.sums(dataset_key(4)) == []
        return [doc for _, doc in index.sums(dataset_key(3))]


@settings(max_examples=25, deadline=None)
@given(histories(), st.sets(st.integers(1, 40)))
def test_figures_from_rows_are_those_from_documents(docs: list[Doc], pins: set[int]) -> None:
    dataset: dict[int, Doc] = {3: {"name": "", "origin": None}}
    stored = [json.loads(encode(doc)) for doc in docs]
    slow = compute(dataset, {3: stored}, {3: sorted(pins)})
    quick = compute(dataset, {3: short(docs)}, {3: sorted(pins)})
    assert quick.datasets == slow.datasets
    assert quick.histories == slow.histories


@given(st.lists(st.tuples(st.integers(1, 9), st.one_of(st.none(), AMOUNT)), max_size=30))
def test_rows_follow_changes_of_documents(changes: list[tuple[int, int | None]]) -> None:
    index, now = Index(MEMORY, 0), {}
    with closing(index):
        for txg, amount in changes:
            doc = None if amount is None else run(txg, amount, amount, {"1": [amount, 1]})
            now[txg] = doc
            with index.change():
                index.apply([("run", txg_key(3, txg), None if doc is None else encode(doc))])
        kept = [doc for _, doc in sorted(now.items()) if doc]
        found = [doc for _, doc in index.sums("")]
        assert [(d["txg"], d["bytes"], d["dead"]) for d in found] == [
            (d["txg"], d["bytes"], {"1": tuple(d["dead"]["1"])}) for d in kept
        ]
        assert index.is_complete()


@pytest.mark.parametrize("text", ["x", "1", "1,2,3", "1,2;3", "1,2;3,4", "1,2;3,4,5,6", "1,2;;", ",", "1,2;x,1,1"])
def test_figures_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (of int() or of unpacking)
        read_sums(text)


@pytest.mark.parametrize("document", [{}, {"bytes": 1}, [], {**run(5, 1, 1, {}), "dead": {"x": [1, 1]}}])
def test_a_document_that_is_no_run_is_refused_as_before(document: object) -> None:
    ((kind, key),) = terms("run", txg_key(3, 5), encode(document))
    assert (kind, key) == ("@run.sums", txg_key(3, 5) + "\n")
    index = Index(MEMORY, 0)
    with closing(index), index.change():
        index.apply([("run", txg_key(3, 5), encode(document))])
        with pytest.raises(Damaged):
            index.sums("")


@contextmanager
def altered(folder: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(folder / "catalog.sqlite")) as db:
        db.create_function("place", 2, sum_of, deterministic=True)
        yield db
        db.commit()


def of_an_older_version(folder: Path) -> None:
    """Make the index one of a zkeep that knew no rows of runs."""
    with altered(folder) as db:
        db.execute("DELETE FROM doc WHERE kind = '@run.sums'")
        db.execute("UPDATE doc SET value = '1', sum = ? WHERE kind = '@' AND key = ''", [sum_of("@", "", "1")])
        db.execute("DELETE FROM tally")
        db.execute(index_module._COUNTED)


def filled(tmp_path: Path) -> tuple[Path, list[tuple[str, Doc]]]:
    with scaling.new_pool(tmp_path / "home", tmp_path / "pool") as pool:
        scaling.add_snapshots(pool, 20)
        return tmp_path / "pool", pool.catalog.sums()


def test_an_index_of_an_older_version_gets_them(tmp_path: Path) -> None:
    folder, before = filled(tmp_path)
    of_an_older_version(folder)
    for _ in range(2):
        with Pool.open(folder) as pool:
            assert pool.catalog.sums() == before
            assert pool.catalog.verify() == []


def test_a_rebuilt_index_has_them(tmp_path: Path) -> None:
    folder, before = filled(tmp_path)
    with Pool.open(folder) as pool:
        store = pool.store
        with closing(Catalog.rebuild(store)) as catalog:
            assert catalog.sums() == before
            assert catalog.verify() == []


def test_forged_figures_are_damage(tmp_path: Path) -> None:
    folder, before = filled(tmp_path)
    key = before[3][0]
    with altered(folder) as db:
        forged = f"{key}\nmany,1"
        db.execute("DELETE FROM doc WHERE kind = '@run.sums' AND key LIKE ?", [key + "%"])
        db.execute("INSERT INTO doc VALUES ('@run.sums', ?, 'null', ?)", [forged, sum_of("@run.sums", forged, "null")])
        db.execute("DELETE FROM tally")
        db.execute(index_module._COUNTED)
    with Pool.open(folder) as pool:
        with pytest.raises(Damaged, match="the figures of run"):
            View(pool).figures(pool.dataset(DATA))
        assert pool.catalog.verify()


BIG = str(10**400)


@pytest.mark.parametrize(
    "rows",
    [
        [f"{{run}}\n{BIG},1"],
        ["{run}\n-" + "9" * 30 + ",5"],
        ["{run}\n1_0, 5"],
        ["{run}\n05,5"],
        ["{run}\n5,5;-4,5,5"],
        ["{run}\n5,5;" + "9" * 30 + ",5,5"],
        ["{run}\n5,5;3,5," + BIG],
        ["{run}\n5,5;3,5,5;3,5,5"],
        ["{run}\n5,5", "{run}\n7,7"],
        ["{dataset}/" + "9" * 40 + "\n5,5"],
        ["{dataset}/-5\n5,5"],
        ["{dataset}/5/6\n5,5"],
        ["{dataset}/5\n5,5"],
    ],
)
def test_p4_figures_that_no_run_can_have_are_damage(rows: list[str], tmp_path: Path) -> None:
    folder, before = filled(tmp_path)
    key = before[3][0]
    with altered(folder) as db:
        db.execute("DELETE FROM doc WHERE kind = '@run.sums' AND key LIKE ?", [key + "%"])
        for row in rows:
            forged = row.format(run=key, dataset=key.partition("/")[0])
            sums = ("@run.sums", forged, "null", sum_of("@run.sums", forged, "null"))
            db.execute("INSERT INTO doc VALUES (?, ?, ?, ?)", sums)
        db.execute("DELETE FROM tally")
        db.execute(index_module._COUNTED)
    with Pool.open(folder) as pool, pytest.raises(Damaged, match="the figures of run"):
        View(pool).figures(pool.dataset(DATA))


@pytest.mark.parametrize("what", ["used of the dataset", "used of a snapshot", "a range"])
def test_p7_few_documents_are_read(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    known, really = index_module.KnownRows.document, index_module.checked

    def checked(kind: str, *rest: Any) -> Doc:
        read.append(kind)
        return really(kind, *rest)

    def document(self: index_module.KnownRows, row: Any) -> Doc:
        read.append(row[0])
        return known(self, row)

    with scaling.new_pool(tmp_path / "home", tmp_path / "pool") as pool:
        scaling.add_snapshots(pool, 200)
        monkeypatch.setattr(index_module, "checked", checked)
        monkeypatch.setattr(index_module.KnownRows, "document", document)
        view = View(pool)
        if what == "used of the dataset":
            assert view.get(pool.dataset(DATA), "used").value
        elif what == "used of a snapshot":
            assert view.get(pool.snapshot(SnapshotName(DATA, "n9")), "used").value == 0
        else:
            plan = destroy.plan_snapshots(view, DATA, "n2%n5,n1,n199%,%s0", destroy.DestroyOptions())
            found = [str(s.doc["name"]) for s in plan.snapshots]
            assert found == ["n2", "n3", "n4", "n5", "n1", "n199", "n200", "s0"]
            destroy.reclaims(view, plan)
    assert len(read) <= 30


SPECS = st.lists(
    st.builds(
        "".join,
        st.tuples(st.sampled_from(["", "s0", "n1", "n2", "n5", "x"]), st.sampled_from(["", "%"]), st.just("")),
    )
    | st.builds(
        "{}%{}".format, st.sampled_from(["", "s0", "n2", "n4", "x"]), st.sampled_from(["", "n1", "n4", "n6", "x"])
    ),
    min_size=1,
    max_size=3,
).map(",".join)


def test_a_range_selects_what_it_selects_of_all(tmp_path: Path) -> None:
    with scaling.new_pool(tmp_path / "home", tmp_path / "pool") as pool:
        scaling.add_snapshots(pool, 6)
        view = View(pool)
        dataset = pool.dataset(DATA)
        every = pool.snapshots(dataset)

        @settings(max_examples=150, deadline=None)
        @given(SPECS)
        def same(spec: str) -> None:
            assert destroy._selected(view, dataset, spec) == destroy.select(every, spec)

        same()


MALFORMED_RUN = encode({"bytes": 1})
DAMAGE = {
    "malformed": (MALFORMED_RUN, lambda kind, key: sum_of(kind, key, MALFORMED_RUN)),
    "no document": ("[", lambda kind, key: sum_of(kind, key, "[")),
    "not what was stored": ("{}", lambda kind, key: 5),
    "no text": (b"\xff", lambda kind, key: 5),
}


def spoil(folder: Path, kind: str, what: str) -> str:
    """Spoil the row of the third document of a kind, in a way that the tally does not show; its key."""
    value, total = DAMAGE[what]
    with altered(folder) as db:
        (key,) = db.execute("SELECT key FROM doc WHERE kind = ? ORDER BY key LIMIT 1 OFFSET 2", [kind]).fetchone()
        db.execute("UPDATE doc SET value = ?, sum = ? WHERE kind = ? AND key = ?", [value, total(kind, key), kind, key])
        db.execute("DELETE FROM tally")
        db.execute(index_module._COUNTED)
    return str(key)


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("kind", ["run", "snapshot"])
def test_p4_a_bad_row_in_an_index_of_an_older_version_costs_only_itself(what: str, kind: str, tmp_path: Path) -> None:
    folder, _ = filled(tmp_path)
    of_an_older_version(folder)
    key = spoil(folder, kind, what)
    with Pool.open(folder) as pool:
        good = SnapshotName(DATA, "n9")
        assert pool.snapshot(good).name == good
        with pytest.raises(Damaged, match=key.partition("/")[2]):
            View(pool).figures(pool.dataset(DATA))
        assert pool.catalog.verify()


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("replaced", [False, True])
def test_p4_a_bad_row_of_a_run_is_deleted_or_replaced(what: str, replaced: bool, tmp_path: Path) -> None:
    folder, before = filled(tmp_path)
    key = spoil(folder, "run", what)
    value = encode(run(int(key.partition("/")[2]), 7, 8, {})) if replaced else None
    with closing(Index(str(folder / "catalog.sqlite"), 0)) as index:
        with index.change():
            index.apply([("run", key, value)])
        found = index.sums("")
        assert [pair for pair in found if pair[0] != key] == [pair for pair in before if pair[0] != key]
        assert [doc["bytes"] for each, doc in found if each == key] == [7] * replaced
        assert list(index.faults()) == []


@pytest.mark.parametrize("what", DAMAGE)
def test_p4_a_bad_row_of_a_snapshot_is_deleted_with_all_that_leads_to_it(what: str, tmp_path: Path) -> None:
    folder, _ = filled(tmp_path)
    key = spoil(folder, "snapshot", what)
    with closing(Index(str(folder / "catalog.sqlite"), 0)) as index:
        with index.change():
            index.apply([("snapshot", key, None)])
        leading = [found for kind, found, _ in index.rows(terms=True) if kind.startswith("@snapshot")]
        assert len(leading) == 2 * 20
        assert not [found for found in leading if found.endswith(key)]
        assert list(index.faults()) == []


@pytest.mark.parametrize("older", [False, True])
def test_an_index_on_a_disk_that_is_not_written_to_is_read_whatever_its_version(older: bool, tmp_path: Path) -> None:
    folder, before = filled(tmp_path)
    if older:
        of_an_older_version(folder)
    with altered(folder) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path = folder / "catalog.sqlite"
    content = path.read_bytes()
    with closing(Index(str(path), 0, frozen=True)) as index:
        assert index.is_complete()
        assert index.sums("") == before
    assert path.read_bytes() == content
