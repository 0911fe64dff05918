"""The snapshot that a partial receive builds on stays until the receive is done or given up, as in zfs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from receivekit import cut, kept, partial, stream, take, take_chain
from zkeep.errors import Refused
from zkeep.names import DatasetName, SnapshotName
from zkeep.pool.datasets import destroy, namespace
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.view import View

HERE = DatasetName.parse("p/a")
WHY = r"snapshot has dependent clones: p/a/%recv, a partial receive: .*zkeep receive -A p/a"


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    """With p/a@s0 and @s1, and half of @s2."""
    with Pool.create(tmp_path / "pool", "p") as pool:
        take_chain(pool, "full-s0", "inc-s0-s1")
        content = stream("inc-s1-s2")
        cut(pool, content, len(content) // 2)
        yield pool


def destroyed(pool: Pool, spec: str, **options: bool) -> None:
    destroy.execute(pool, destroy.plan_snapshots(View(pool), HERE, spec, destroy.DestroyOptions(**options)))


def rolled_back(pool: Pool) -> None:
    take(pool, stream("inc-s0-s1"), "p/a@other", force=True)


@pytest.mark.parametrize(
    "act",
    [
        lambda pool: destroyed(pool, "s1"),
        lambda pool: destroyed(pool, "s0%s1"),
        lambda pool: destroyed(pool, "s1", recursive=True),
        lambda pool: destroyed(pool, "s1", clones=True),
    ],
)
def test_the_base_of_a_partial_receive_is_not_destroyed(pool: Pool, act: Callable[[Pool], None]) -> None:
    with pytest.raises(Refused, match=WHY):
        act(pool)
    assert kept(pool) == {"p/a": ["s0", "s1"]}
    assert partial(pool)
    take(pool, stream("inc-s1-s2"), resumable=True)
    assert kept(pool) == {"p/a": ["s0", "s1", "s2"]}
    destroyed(pool, "s1")


def test_what_no_partial_receive_builds_on_is_destroyed(pool: Pool) -> None:
    destroyed(pool, "s0")
    assert kept(pool) == {"p/a": ["s1"]}


def test_a_plan_that_was_made_before_the_receive_began_is_refused(pool: Pool) -> None:
    take(pool, b"", abort=True)
    plan = destroy.plan_snapshots(View(pool), HERE, "s1", destroy.DestroyOptions())
    cut(pool, stream("inc-s1-s2"), len(stream("inc-s1-s2")) // 2)
    with pytest.raises(Refused, match=WHY):
        destroy.execute(pool, plan)


@pytest.mark.parametrize("finish", [True, False])
def test_a_deferred_base_goes_once_the_receive_is_done_or_given_up(pool: Pool, *, finish: bool) -> None:
    destroyed(pool, "s1", defer=True)
    namespace.hold(pool, "keep", [SnapshotName.parse("p/a@s1")])
    namespace.release(pool, "keep", [SnapshotName.parse("p/a@s1")])
    assert kept(pool) == {"p/a": ["s0", "s1"]}
    if finish:
        take(pool, stream("inc-s1-s2"), resumable=True)
    else:
        take(pool, b"", abort=True)
    assert kept(pool) == {"p/a": ["s0", "s2"] if finish else ["s0"]}


def test_the_dataset_goes_with_what_it_keeps_of_a_receive(pool: Pool) -> None:
    destroy.execute(pool, destroy.plan_dataset(View(pool), HERE, destroy.DestroyOptions(recursive=True)))
    assert kept(pool) == {}
    assert pool.store.names("segments") == []
    assert pool.catalog.keys("receive") == []
