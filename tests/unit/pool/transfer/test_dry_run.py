"""receive -n refuses what the real receive would, and changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from receivekit import CHAINS, REPLICATION, cut, kept, stream, take, take_chain
from zkeep.errors import Refused
from zkeep.names import DatasetName, SnapshotName
from zkeep.pool.datasets import namespace
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.rehearsal import rehearsal

KERNEL = CHAINS.parent / "kernel"
PROMOTED = [(KERNEL / f"promoted{n}.zfs").read_bytes() for n in (".0", ".1", "")]


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.create(tmp_path / "pool", "p") as pool:
        yield pool


def state(pool: Pool) -> dict[str, str]:
    """Every file of the pool but locks, by its content."""
    paths = sorted(p for p in pool.path.rglob("*") if p.is_file() and "lock" not in p.parts and "-shm" not in p.name)
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def outcome(pool: Pool, content: bytes, target: str, **options: Any) -> tuple[str, list[str]]:
    told: list[str] = []
    try:
        take(pool, content, target, on_snapshot=lambda a: told.append(a.kept) if a.bytes is None else None, **options)
    except Refused as error:
        return str(error), told
    return "", told


def nothing(pool: Pool) -> None:
    pass


def held(pool: Pool) -> None:
    take_chain(pool)
    namespace.hold(pool, "keep", [SnapshotName.parse("p/a@s2")])


def bounded(size: int) -> Any:
    def act(pool: Pool) -> None:
        namespace.set_properties(pool, [DatasetName.parse("p")], {"quota": str(size)})

    return act


def taken(*streams: bytes, target: str = "p/a") -> Any:
    def act(pool: Pool) -> None:
        for content in streams:
            take(pool, content, target)

    return act


CASES: list[tuple[Any, bytes, str, dict[str, Any]]] = [
    (nothing, stream("full-s0"), "p/a", {}),
    (nothing, stream("full-s0"), "p/none/a", {}),
    (nothing, stream("full-s0"), "p", {"name_from": "d"}),
    (nothing, stream("inc-s0-s1"), "p/a", {}),
    (taken(stream("full-s0")), stream("inc-s0-s1"), "p/a", {}),
    (taken(stream("full-s0")), stream("full-s0"), "p/a", {}),
    (taken(stream("full-s0")), stream("inc-s1-s2"), "p/a", {}),
    (held, stream("inc-s0-s1"), "p/a@other", {"force": True}),
    (bounded(100_000), stream("full-s0"), "p/a", {}),
    (bounded(1_200_000), REPLICATION.read_bytes(), "p/x", {}),
    (bounded(100_000), REPLICATION.read_bytes(), "p/x", {}),
    (nothing, REPLICATION.read_bytes(), "p/x", {}),
    (taken(REPLICATION.read_bytes(), target="p/x"), REPLICATION.read_bytes(), "p/x", {}),
    (nothing, PROMOTED[1], "p/x", {}),
    (taken(PROMOTED[0], target="p/x"), PROMOTED[1], "p/x", {}),
    (taken(PROMOTED[0], target="p/x"), PROMOTED[1], "p/x", {"force": True}),
    (nothing, stream("full-s0")[:-400], "p/a", {}),
    (nothing, stream("full-s0"), "p/a", {"set_properties": {"refquota": "1000"}}),
]


@pytest.mark.parametrize(("before", "content", "target", "options"), CASES)
def test_n_says_what_the_real_one_does(
    pool: Pool, before: Any, content: bytes, target: str, options: dict[str, Any]
) -> None:
    before(pool)
    unchanged = state(pool)
    promised = outcome(pool, content, target, dry_run=True, **options)
    assert state(pool) == unchanged
    assert promised == outcome(pool, content, target, **options)


def test_n_goes_on_with_a_partial_receive_and_leaves_it(pool: Pool) -> None:
    content = stream("full-s0")
    cut(pool, content, len(content) // 2)
    unchanged = state(pool)
    take(pool, content, dry_run=True, resumable=True)
    assert outcome(pool, stream("inc-s0-s1"), "p/a", dry_run=True)[0]
    assert state(pool) == unchanged
    take(pool, content, resumable=True)
    assert kept(pool) == {"p/a": ["s0"]}


def test_a_rehearsal_sees_no_more_than_the_pool(tmp_path: Path) -> None:
    with Pool.create(tmp_path / "p", "p") as pool:
        with pool.transaction() as t:
            pool.create_dataset(t, pool.full("a"))
            pool.create_dataset(t, pool.full("b"))
        pool.scope = pool.full("a")
        copy = rehearsal(pool)
        try:
            assert copy.find(pool.full("a")) is not None
            assert copy.find(pool.full("b")) is None
        finally:
            copy.close()
