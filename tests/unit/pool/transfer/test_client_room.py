"""P4: what a client of a server keeps in a pool without sending it counts under its quota, and is refused beyond."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from receivekit import take_chain
from zkeep.errors import Refused
from zkeep.names import BookmarkName, DatasetName, SnapshotName
from zkeep.pool.datasets import namespace
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.view import View

ROOT, DATA = DatasetName.parse("p/c"), DatasetName.parse("p/c/d")
ROOM = 20_000
"""Bytes that the client may still cause."""


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    """A pool as one client sees it."""
    with Pool.create(tmp_path / "pool", "p") as pool:
        namespace.create(pool, ROOT, {})
        take_chain(pool, target="p/c/d")
        charged = View(pool).charged(pool.dataset(ROOT))
        namespace.set_properties(pool, [ROOT], {"quota": str(charged + ROOM)})
        pool.scope = ROOT
        yield pool


Attack = Callable[[Pool, int], object]
SNAP = SnapshotName(DATA, "s1")


def many_tags(pool: Pool, n: int) -> None:
    namespace.hold(pool, f"{n:0200}", [SNAP])


def tags_of_a_tree(pool: Pool, n: int) -> None:
    namespace.hold(pool, f"{n:0200}", [SnapshotName(ROOT, "s1")], recursive=True)


def tags_of_several(pool: Pool, n: int) -> None:
    namespace.hold(pool, f"{n:0200}", [SNAP, SnapshotName(DATA, "s0")])


def bookmarks(pool: Pool, n: int) -> None:
    namespace.bookmark(pool, SNAP, BookmarkName(DATA, f"{n:0200}"))


def bookmarks_of_bookmarks(pool: Pool, n: int) -> None:
    if n == 0:
        namespace.bookmark(pool, SNAP, BookmarkName(DATA, "first"))
    namespace.bookmark(pool, BookmarkName(DATA, "first"), BookmarkName(DATA, f"{n:0200}"))


def settings_of_snapshots(pool: Pool, n: int) -> None:
    namespace.set_properties(pool, [SnapshotName(DATA, f"s{n % 3}")], {f"a:{n:0200}": "x" * 500})


def large_settings(pool: Pool, n: int) -> None:
    namespace.set_properties(pool, [SNAP], {f"a:{n}": "x" * 8000})


def settings_of_a_dataset(pool: Pool, n: int) -> None:
    namespace.set_properties(pool, [DATA], {f"a:{n:0200}": "x" * 500})


def datasets_with_settings(pool: Pool, n: int) -> None:
    namespace.create(pool, ROOT.child(f"n{n}"), {f"a:{n:0200}": "x" * 500})


ATTACKS = [
    settings_of_a_dataset, datasets_with_settings,
    many_tags, tags_of_a_tree, tags_of_several, bookmarks, bookmarks_of_bookmarks, settings_of_snapshots,
    large_settings,
]  # fmt: skip


def until_refused(pool: Pool, attack: Attack) -> int:
    """How often it worked."""
    done = next((n for n in range(200) if refusal(pool, attack, n)), None)
    assert done is not None, "it is never refused"
    why = refusal(pool, attack, done)
    assert "the quota is used up" in why or "room for" in why
    return done


def refusal(pool: Pool, attack: Attack, n: int) -> str:
    try:
        attack(pool, n)
    except Refused as error:
        return str(error)
    return ""


@pytest.mark.parametrize("attack", ATTACKS)
def test_p4_a_client_keeps_no_more_than_its_quota(attack: Attack, pool: Pool) -> None:
    done = until_refused(pool, attack)
    assert done
    left = View(pool).quota_room(pool.dataset(ROOT))
    assert left is not None
    assert left >= 0
    journal = sum(path.stat().st_size for path in (pool.path / "journal").iterdir())
    assert journal < ROOM * 200
    before = pool.catalog.keys("bookmark"), [s.doc for s in pool.snapshots(pool.dataset(DATA))]
    with pytest.raises(Refused):
        attack(pool, done)
    assert before == (pool.catalog.keys("bookmark"), [s.doc for s in pool.snapshots(pool.dataset(DATA))])


@pytest.mark.parametrize("attack", ATTACKS[:-1])
def test_the_administrator_is_not_bound(attack: Attack, pool: Pool) -> None:
    pool.scope = None
    namespace.set_properties(pool, [ROOT], {"quota": str(View(pool).charged(pool.dataset(ROOT)))})
    for n in range(3):
        attack(pool, n)


def test_settings_that_shrink_are_taken_where_the_quota_is_used_up(pool: Pool) -> None:
    pool.scope = None
    with pool.transaction() as t:
        pool.update_dataset(t, pool.dataset(DATA), local={"a:b": "x" * 8_000})
    namespace.set_properties(pool, [ROOT], {"quota": str(View(pool).charged(pool.dataset(ROOT)))})
    pool.scope = ROOT
    with pytest.raises(Refused, match="the quota is used up"):
        namespace.set_properties(pool, [DATA], {"a:b": "x" * 8_001})
    namespace.set_properties(pool, [DATA], {"a:b": "x"})


def test_a_full_disk_is_left_what_destroying_needs(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zkeep.pool.datasets.room.disk_is_full", lambda pool: True)
    for attack in ATTACKS:
        with pytest.raises(Refused, match="out of space"):
            attack(pool, 1 if attack is not bookmarks_of_bookmarks else 0)


def test_room_comes_back(pool: Pool) -> None:
    done = until_refused(pool, many_tags)
    namespace.release(pool, f"{0:0200}", [SNAP])
    many_tags(pool, done)
