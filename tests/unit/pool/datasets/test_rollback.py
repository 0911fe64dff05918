"""Rolling back: all that is newer goes, or nothing does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from test_namespace import add, clone, ds, names, snap

from receivekit import receiving
from zkeep.errors import Refused, TryAgain
from zkeep.names import BookmarkName
from zkeep.pool.datasets import destroy, namespace
from zkeep.pool.datasets.destroy import DestroyOptions
from zkeep.pool.datasets.model import NotThere, Pool, txg_key
from zkeep.pool.datasets.rollback import plan_rollback
from zkeep.pool.datasets.view import View


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.create(tmp_path / "p", "p") as pool:
        for name in ("p/a@1", "p/a@2", "p/a@3"):
            add(pool, name)
        yield pool


def rollback(pool: Pool, name: str, letter: str = "") -> None:
    options = DestroyOptions(letter in ("r", "R"), letter == "R")
    destroy.execute(pool, plan_rollback(View(pool), snap(name), options))


def refused(pool: Pool, name: str, letter: str, why: str) -> None:
    before = names(pool), list(pool.catalog.scan("run"))
    with pytest.raises(Refused) as caught:
        rollback(pool, name, letter)
    assert why in str(caught.value)
    assert (names(pool), list(pool.catalog.scan("run"))) == before


def test_to_the_newest_there_is_nothing_to_do(pool: Pool) -> None:
    before = names(pool)
    rollback(pool, "p/a@3")
    assert names(pool) == before


def test_newer_ones_are_named_and_go_only_with_r(pool: Pool) -> None:
    refused(pool, "p/a@1", "", "more recent snapshots or bookmarks exist; use '-r' to force deletion of")
    refused(pool, "p/a@1", "", "p/a@2, p/a@3")
    rollback(pool, "p/a@1", "r")
    assert names(pool) == ["p", "p/a", "p/a@1"]
    assert len(pool.catalog.keys("run")) == 1


def test_bookmarks_that_are_newer_count_and_go(pool: Pool) -> None:
    namespace.bookmark(pool, snap("p/a@1"), BookmarkName.parse("p/a#old"))
    namespace.bookmark(pool, snap("p/a@3"), BookmarkName.parse("p/a#new"))
    destroy.execute(pool, destroy.plan_snapshots(View(pool), ds("p/a"), "2,3", DestroyOptions()))
    refused(pool, "p/a@1", "", "p/a#new")
    rollback(pool, "p/a@1", "r")
    assert names(pool) == ["p", "p/a", "p/a@1", "p/a#old"]


def test_what_no_snapshot_names_any_more_goes_too(pool: Pool) -> None:
    """The next increment from @1 fits then, without -F."""
    destroy.execute(pool, destroy.plan_snapshots(View(pool), ds("p/a"), "2,3", DestroyOptions()))
    rollback(pool, "p/a@1")
    first = pool.snapshot(snap("p/a@1"))
    assert pool.catalog.keys("run") == [txg_key(first.dataset.id, first.txg)]


@pytest.mark.parametrize("letter", ["r", "R"])
def test_holds_keep_everything(pool: Pool, letter: str) -> None:
    namespace.hold(pool, "keep", [snap("p/a@3")])
    refused(pool, "p/a@1", letter, "p/a@3: it is held (keep)")


def test_clones_of_newer_ones_go_only_with_capital_r(pool: Pool) -> None:
    clone(pool, "p/a@2", "p/b")
    add(pool, "p/b@x")
    refused(pool, "p/a@1", "r", "clones of previous snapshots exist; use '-R' to force deletion of")
    rollback(pool, "p/a@1", "R")
    assert names(pool) == ["p", "p/a", "p/a@1"]


def test_a_hold_in_a_clone_keeps_everything(pool: Pool) -> None:
    clone(pool, "p/a@2", "p/b")
    add(pool, "p/b@x")
    namespace.hold(pool, "keep", [snap("p/b@x")])
    refused(pool, "p/a@1", "R", "p/b@x: it is held")


def test_a_clone_of_the_snapshot_itself_stays(pool: Pool) -> None:
    clone(pool, "p/a@1", "p/b")
    rollback(pool, "p/a@1", "r")
    assert names(pool) == ["p", "p/a", "p/a@1", "p/b"]


def test_a_dataset_below_its_own_clone(pool: Pool) -> None:
    clone(pool, "p/a@2", "p/b")
    namespace.rename(pool, ds("p/a"), ds("p/b/a"))
    refused(pool, "p/b/a@1", "R", "below a clone of its own")


def test_an_interrupted_receive_keeps_its_source(pool: Pool) -> None:
    newest = pool.snapshot(snap("p/a@3"))
    with pool.transaction() as t:
        t.put("receive", newest.dataset.key, receiving(99) | {"source": [newest.dataset.id, newest.txg]})
    refused(pool, "p/a@1", "r", "an interrupted receive needs p/a@3")


def test_a_busy_dataset_is_left_alone(pool: Pool) -> None:
    before = names(pool)
    with pool.store.lock(destroy.lock_name(pool.dataset(ds("p/a")))), pytest.raises(TryAgain):
        rollback(pool, "p/a@1", "r")
    assert names(pool) == before


def test_a_snapshot_that_came_meanwhile_is_not_lost(pool: Pool) -> None:
    plan = plan_rollback(View(pool), snap("p/a@1"), DestroyOptions(True, False))
    add(pool, "p/a@4")
    with pytest.raises(Refused, match="changed meanwhile"):
        destroy.execute(pool, plan)
    assert "p/a@4" in names(pool)


def test_a_snapshot_that_is_not_there(pool: Pool) -> None:
    with pytest.raises(NotThere):
        rollback(pool, "p/a@9", "r")


def test_runs_that_a_snapshot_needs_are_never_dropped(pool: Pool) -> None:
    dataset = pool.dataset(ds("p/a"))
    before, first = list(pool.catalog.scan("run")), pool.snapshots(dataset)[0].txg
    with pytest.raises(TryAgain, match="p/a@3 was made meanwhile"), pool.transaction() as t:
        destroy.drop_after(pool, t, dataset, first)
    assert list(pool.catalog.scan("run")) == before
