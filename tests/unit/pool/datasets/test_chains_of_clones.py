"""Promotions in a chain of clones: zkeep follows them, and warns that OpenZFS's receive may not."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from properties.treekit import FULL, INCREMENTS, made, sent, take
from zkeep.format.events import Package
from zkeep.format.reader import read_events
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.promote import promote
from zkeep.pool.maintenance.scrub import scrub
from zkeep.pool.transfer.send import SendRequest, send

TOP = "v/t"
Shape = dict[str, tuple[str | None, list[str]]]


def shape(pool: Pool) -> Shape:
    """Each dataset's origin and snapshots, below the pool's name."""
    found = {}
    for dataset in pool.tree().by_id.values():
        origin = pool.snapshot_at(*dataset.origin) if dataset.origin else None
        names = [s.doc["name"] for s in pool.snapshots(dataset)]
        found[dataset.name.text[1:]] = (str(origin.name)[1:] if origin else None, names)
    return found


class Chain:
    """v/t, below it a dataset, a clone of its @r0, a clone of that one's @r1, and so on; all grow together."""

    def __init__(self, pool: Pool, names: str) -> None:
        self.pool, self.names = pool, names
        self._guid, self._grown = 100, 0
        self._newest: dict[str, int] = {}
        for name in (TOP, self.name(0)):
            self._newest[name] = self._next()
            take(pool, made(FULL, self._newest[name]), f"{name}@r0")
        for number in range(1, len(names)):
            origin = self._newest[self.name(number - 1)]
            self.grow()
            self._newest[self.name(number)] = guid = self._next()
            take(pool, made(INCREMENTS[number], guid, origin, clone=True), f"{self.name(number)}@r{number}")

    def _next(self) -> int:
        self._guid += 2
        return self._guid

    def name(self, number: int) -> str:
        return f"{TOP}/{self.names[number]}"

    @property
    def newest(self) -> str:
        return f"r{self._grown}"

    def grow(self) -> None:
        """One more snapshot of everything."""
        self._grown += 1
        for name, source in self._newest.items():
            self._newest[name] = self._next()
            take(self.pool, made(INCREMENTS[self._grown % 6], self._newest[name], source), f"{name}@{self.newest}")

    def promote(self, *names: str) -> None:
        for name in names:
            promote(self.pool, DatasetName.parse(f"{TOP}/{name}"))


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.create(tmp_path / "v", "v") as pool:
        yield pool


@pytest.fixture
def backup(tmp_path: Path) -> Iterator[Pool]:
    with Pool.create(tmp_path / "w", "w") as pool:
        yield pool


def increments(chain: Chain, since: str) -> bytes:
    return sent(chain.pool, f"{TOP}@{chain.newest}", replicate=True, from_all=f"@{since}")


def warnings(pool: Pool, top: str, since: str, until: str, *, replicate: bool = True) -> list[str]:
    found: list[str] = []
    send(
        pool,
        SendRequest(f"{top}@{until}", raw=True, replicate=replicate, from_all=f"@{since}", warn=found.append),
        io.BytesIO(),
    )
    return found


@pytest.mark.parametrize(
    ("names", "promoted"),
    [
        *(("abcdef"[:length], "abcdef"[length - 1] * times) for length in (3, 4, 5) for times in range(1, length)),
        *(("fedcba"[:length], "fedcba"[length - 1] * (length - 1)) for length in (3, 4, 5)),
        *(("abcde", promoted) for promoted in ("bcde", "edc", "ceed", "eeeeab", "cbcb")),
    ],
)
def test_whatever_was_promoted_is_followed_by_one_receive(pool: Pool, backup: Pool, names: str, promoted: str) -> None:
    chain = Chain(pool, names)
    take(backup, sent(pool, f"{TOP}@{chain.newest}", replicate=True), "w/t")
    since = chain.newest
    chain.promote(*promoted)
    chain.grow()
    take(backup, increments(chain, since), "w/t", force=True)
    assert shape(backup) == shape(pool)
    assert scrub(backup).clean


@pytest.mark.parametrize("promoted", ["c", "cc", "bc"])
def test_a_sender_warns_of_what_openzfs_cannot_follow(pool: Pool, backup: Pool, promoted: str) -> None:
    """Where it happened, and where it was followed; until the receiver is past it."""
    chain = Chain(pool, "abc")
    take(backup, sent(pool, f"{TOP}@r2", replicate=True), "w/t")
    chain.promote(*promoted)
    chain.grow()
    take(backup, increments(chain, "r2"), "w/t", force=True)
    chain.grow()
    take(backup, increments(chain, "r3"), "w/t", force=True)
    for where, top in ((pool, "v/t"), (backup, "w/t")):
        (warning,) = warnings(where, top, "r2", "r3")
        assert f"{top}/c was promoted in a chain of clones since @r2" in warning
        assert f"'zkeep list -o name,origin -r {top}'" in warning
        assert len(warnings(where, top, "r2", "r4")) == 1
        assert warnings(where, top, "r3", "r4") == []
        assert warnings(where, top, "r2", "r4", replicate=False) == []


@pytest.mark.parametrize("promoted", ["", "b"])
def test_a_sender_does_not_warn_of_what_openzfs_follows(pool: Pool, promoted: str) -> None:
    chain = Chain(pool, "abc")
    chain.promote(*promoted)
    chain.grow()
    assert warnings(pool, TOP, "r2", "r3") == []


def test_a_clone_that_the_receiver_has_not_got_is_no_matter(pool: Pool) -> None:
    chain = Chain(pool, "abc")
    chain.promote("c", "c")
    chain.grow()
    assert warnings(pool, TOP, "r1", "r3")  # c has r1 now
    assert warnings(pool, f"{TOP}/a", "r1", "r3") == []


def test_a_header_names_the_origin_and_the_snapshots_that_each_has(pool: Pool) -> None:
    chain = Chain(pool, "abc")
    chain.promote("c", "c")
    chain.grow()
    event = next(e for e in read_events(io.BytesIO(increments(chain, "r2"))) if isinstance(e, Package))
    entries = {str(e["name"]): e for e in dict(event.nvlist)["fss"].values()}  # type: ignore[attr-defined]
    for name, entry in entries.items():
        dataset = pool.dataset(DatasetName.parse(name))
        origin = pool.snapshot_at(*dataset.origin) if dataset.origin else None
        assert dict(entry).get("origin") == (origin.guid if origin else None)
        assert dict(entry["snaps"]) == {s.doc["name"]: s.guid for s in pool.snapshots(dataset)}
        parent = pool.snapshots(pool.dataset(DatasetName.parse(TOP)))[2]
        assert entry["parentfromsnap"] == (parent.guid if name != TOP else 0)
