"""What changed between the decision of a prune and the destroying counts: nothing goes that is to stay now."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from test_prune import Shell, considered, days, shell, snapshots  # noqa: F401 (a fixture)

from zkeep.cli.common.pools import opened
from zkeep.cli.main import run
from zkeep.errors import Damaged, Refused
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool
from zkeep.pool.maintenance import prune


def _note_damage(pool: Pool) -> None:
    with pool.transaction() as t:
        t.put("scrub", "", {"errors": ["x"], "bytes": 0, "seconds": 0.0, "finished": 1, "damaged": None})


def _set_retention(pool: Pool, text: str) -> None:
    with pool.transaction() as t:
        pool.update_dataset(t, pool.dataset(DatasetName.parse("v")), local={"retention": text})


def _keep_young(pool: Pool) -> None:
    with pool.transaction() as t:
        local = {"retention": "daily=1", "retention_min": "30d"}
        pool.update_dataset(t, pool.dataset(DatasetName.parse("v")), local=local)


def _bookmark_elsewhere(pool: Pool) -> None:
    run(["bookmark", "v/a@3", "v/a#mark"])


def _lose_newest(pool: Pool) -> None:
    run(["destroy", "v/a@1"])


CHANGES: dict[str, tuple[Callable[[Pool], None], list[str]]] = {
    "damage": (_note_damage, ["4", "3", "2", "1"]),
    "no retention": (lambda pool: _set_retention(pool, "none"), ["4", "3", "2", "1"]),
    "another retention": (lambda pool: _set_retention(pool, "daily=3"), ["3", "2", "1"]),
    "a least age": (_keep_young, ["4", "3", "2", "1"]),
    "a bookmark": (_bookmark_elsewhere, ["3", "1"]),
    "the newest goes": (_lose_newest, ["2"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_to_stay_by_what_is_there_now_stays(shell: Shell, change: str) -> None:  # noqa: F811
    """The decision is made again where nothing can change any more."""
    days(4)
    shell("set", "retention=daily=1", "v")
    with opened("v") as pool:
        decision = considered(pool)
        assert [s.doc["name"] for s in decision.gone] == ["4", "3", "2"]
        meanwhile, left = CHANGES[change]
        with opened("v") as other:
            meanwhile(other)
        with pytest.raises((Refused, Damaged), match="cannot prune"):
            list(prune.execute(pool, decision))
    assert snapshots(shell) == left
