"""The index is made again from the journal while other processes have the old one open: they go on with the new one."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from receivekit import kept, take_chain
from zkeep.names import DatasetName
from zkeep.pool.datasets import destroy
from zkeep.pool.datasets.destroy import DestroyOptions
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.rehearsal import rehearsal
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance.compact import compact
from zkeep.pool.maintenance.scrub import rebuild_catalog, scrub
from zkeep.pool.store.files import LocalStore
from zkeep.pool.transfer.send import SendRequest, send


def renew(path: Path) -> None:
    """What forget-keys does."""
    with Pool.open(path) as pool:
        pool.catalog.renew()


def remove(path: Path) -> None:
    """What somebody may do who takes the index for what it is: it can be made again."""
    for file in path.glob("catalog.sqlite*"):
        file.unlink()
    Pool.open(path).close()


WAYS: dict[str, Callable[[Path], object]] = {
    "renewed": renew,
    "rebuilt": lambda path: rebuild_catalog(path, 1.0),
    "removed": remove,
}


@pytest.fixture(params=WAYS)
def made_again(request: pytest.FixtureRequest) -> Callable[[Path], object]:
    return WAYS[request.param]


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.create(tmp_path / "pool", "p") as pool:
        take_chain(pool)
        yield pool


def make(pool: Pool, name: str) -> None:
    with pool.transaction() as t:
        pool.create_dataset(t, DatasetName(name))


def test_each_sees_what_the_other_does(pool: Pool, made_again: Callable[[Path], object]) -> None:
    """One that stayed with the old file saw nothing of what others did, and they nothing of what it did."""
    made_again(pool.path)
    with Pool.open(pool.path) as other:
        for number in range(3):
            make(other, f"p/other{number}")
            assert pool.find(DatasetName(f"p/other{number}"))
            make(pool, f"p/mine{number}")
            assert other.find(DatasetName(f"p/mine{number}"))


def test_nothing_that_was_compacted_is_missed(pool: Pool, made_again: Callable[[Path], object]) -> None:
    """A process that read old documents missed segments that had gone for good reason."""
    pool.tree()
    made_again(pool.path)
    with Pool.open(pool.path) as other:
        plan = destroy.plan_snapshots(View(other), DatasetName("p/a"), "s0%s1", DestroyOptions())
        destroy.execute(other, plan)
        assert compact(other).freed
    send(pool, SendRequest(snapshot="p/a@s2", raw=True), io.BytesIO())
    assert scrub(pool).clean
    assert kept(pool) == {"p/a": ["s2"]}


def test_one_moment_is_of_the_index_that_is_there(pool: Pool, made_again: Callable[[Path], object]) -> None:
    made_again(pool.path)
    with Pool.open(pool.path) as other:
        make(other, "p/new")
        with pool.catalog.reading():
            assert pool.catalog.lookup("dataset", "name", "new")
            make(other, "p/later")
            assert not pool.catalog.lookup("dataset", "name", "later")
        assert pool.find(DatasetName("p/later"))


def test_a_rehearsal_stays_with_its_copy(pool: Pool, made_again: Callable[[Path], object]) -> None:
    copy = rehearsal(pool)
    try:
        make(copy, "p/tried")
        made_again(pool.path)
        assert copy.find(DatasetName("p/tried"))
        assert not pool.find(DatasetName("p/tried"))
    finally:
        copy.close()


def test_what_is_compacted_while_a_catalog_is_rebuilt_is_not_missing(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    exists, compacted = LocalStore.exists, []

    def compact_first(store: LocalStore, name: str) -> bool:
        if name.startswith("segments/") and not compacted:
            compacted.append(name)
            plan = destroy.plan_snapshots(View(pool), DatasetName("p/a"), "s0%s1", DestroyOptions())
            destroy.execute(pool, plan)
            compact(pool)
        return exists(store, name)

    monkeypatch.setattr(LocalStore, "exists", compact_first)
    assert rebuild_catalog(pool.path, 1.0) == []
    assert compacted
    assert scrub(pool).clean
