"""Steps of a receive that broke off are removed in one transaction, whatever another process does at that moment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reencryptkit import Intake, Keys, encrypted_pool, raw_stream, take
from zkeep.errors import Refused, TryAgain, ZkeepError
from zkeep.names import DatasetName
from zkeep.pool.datasets import destroy
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance.scrub import scrub
from zkeep.reencrypt import leftovers
from zkeep.reencrypt.leftovers import exclusive, partial_of, remove_leftovers

STORY = Path(__file__).parents[2] / "data" / "opened" / "story"
FULL, NEXT = ((STORY / f"plain-blanc-{year}.zfs").read_bytes() for year in (2018, 2019))
HERE = DatasetName.parse("v/enc/ds")
STEP = 4 << 10


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    """A pool with a snapshot, and the steps of an increment that broke off."""
    with encrypted_pool(tmp_path / "pool") as made:
        take(made, FULL)
        with pytest.raises(ZkeepError):
            take(made, NEXT[: len(NEXT) * 9 // 10], step=STEP, resumable=True)
        assert len(made.snapshots(made.dataset(HERE))) > 1
        yield made


def names(pool: Pool) -> list[str]:
    return [str(s.doc["name"]) for s in pool.snapshots(pool.dataset(HERE))]


def another_receives(pool: Pool, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Let another process receive all of the increment before or after the steps are destroyed."""
    real, todo = destroy.execute, [None]

    def execute(mine: Pool, plan: destroy.DestroyPlan) -> None:
        if moment == "after":
            real(mine, plan)
        if todo:
            todo.clear()
            with Pool.open(pool.path) as other:
                take(other, NEXT, resumable=True)
        if moment == "before":
            real(mine, plan)

    monkeypatch.setattr(leftovers.destroy, "execute", execute)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_what_another_process_has_just_received_stays(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    another_receives(pool, monkeypatch, moment)
    if moment == "before":
        with pytest.raises((Refused, TryAgain), match="changed meanwhile"):
            remove_leftovers(pool, HERE)
    else:
        remove_leftovers(pool, HERE)
    assert names(pool) == ["2018", "2019"]
    assert not scrub(pool).errors
    assert raw_stream(pool, "v/enc/ds@2019", "@2018")


def test_giving_up_and_receiving_exclude_each_other(pool: Pool) -> None:
    before = names(pool)
    intake = Intake(Keys(), STEP)
    with Pool.open(pool.path) as other, exclusive(other, HERE), pytest.raises(TryAgain, match="busy"):
        intake.gives_up(pool, HERE)
    assert names(pool) == before
    assert intake.gives_up(pool, HERE)
    assert (names(pool), partial_of(pool, HERE)) == (["2018"], None)
    assert len(pool.catalog.keys("run", pool.dataset(HERE).key + "/")) == 1
    assert not scrub(pool).errors


def test_a_dataset_whose_only_snapshot_was_destroyed_receives_a_full_stream_with_f(pool: Pool) -> None:
    intake = Intake(Keys(), STEP)
    assert intake.gives_up(pool, HERE)
    destroy.execute(pool, destroy.plan_snapshots(View(pool), HERE, "2018", destroy.DestroyOptions()))
    assert not pool.catalog.keys("run", pool.dataset(HERE).key + "/")
    with pytest.raises(Refused, match="must specify -F"):
        take(pool, FULL)
    take(pool, FULL, force=True)
    take(pool, NEXT)
    assert names(pool) == ["2018", "2019"]
    assert not scrub(pool).errors
