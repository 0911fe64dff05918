"""A scrub sees every changed byte, and names the snapshots that it hurts and no others."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from vectors.histories import DATA, histories, new_pool, put_together, snapshot, take_chain
from zkeep.errors import Damaged
from zkeep.pool.datasets.model import Pool
from zkeep.pool.maintenance.scrub import ScrubReport, rebuild_catalog, scrub
from zkeep.pool.store.port import segment_name
from zkeep.pool.timeline.segment import Segment

HISTORY = next(h for h in histories(DATA / "histories") if h.name == "rs512b")


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with new_pool(tmp_path) as pool:
        take_chain(pool, HISTORY)
        yield pool


def segment_of(pool: Pool, number: int) -> str:
    run = pool.catalog.get("run", snapshot(pool, number).key)
    assert run is not None
    return segment_name(run["segments"][0])


def flip(pool: Pool, name: str, at: int) -> None:
    path = pool.store.path(name)
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)


def hurt(report: ScrubReport) -> set[int]:
    """The numbers of the snapshots that a report names."""
    found = set()
    for error in report.errors:
        for name in error.snapshots:
            first, _, last = name.rpartition("@s")[2].partition("%s")
            found |= set(range(int(first), int(last or first) + 1))
    return found


def broken(pool: Pool) -> set[int]:
    """The numbers of the snapshots whose full stream cannot be sent as it was."""
    found = set()
    for number in range(HISTORY.last + 1):
        try:
            if put_together(pool, (None, number)) != HISTORY.stream((None, number)):
                found.add(number)
        except Damaged:
            found.add(number)
    return found


def test_a_sound_pool_is_clean_and_every_byte_was_looked_at(pool: Pool) -> None:
    seen: list[tuple[int, int]] = []
    report = scrub(pool, lambda done, total: seen.append((done, total)))
    assert report.clean
    assert report.bytes == seen[-1][0] <= seen[-1][1]


def test_every_changed_byte_is_seen_and_all_that_it_breaks_is_named(pool: Pool) -> None:
    names, dice = pool.store.names("segments"), random.Random(5)
    for _ in range(60):
        name = dice.choice(names)
        at = dice.randrange(pool.store.size(name))
        flip(pool, name, at)
        report = scrub(pool)
        assert not report.clean, (name, at)
        assert broken(pool) <= hurt(report), (name, at)
        flip(pool, name, at)
    assert scrub(pool).clean


def test_a_record_that_was_overwritten_hurts_only_the_snapshots_before(pool: Pool) -> None:
    """The first block of a file of s0: it lives until the run that wrote it again."""
    name = segment_of(pool, 0)
    with pool.store.open(name) as blob:
        block = Segment(lambda: blob, name).rows("blocks")[0]
    flip(pool, name, int(block["pos"]) + 312)
    report = scrub(pool)
    assert hurt(report) == broken(pool) != set()
    assert f"object {block['object']}, offset {block['offset']}" in str(report.errors[0])
    assert f"{name}: byte {block['pos']}" in str(report.errors[0])


@pytest.mark.parametrize("cut", [0, 40, 3000, -1])
def test_a_segment_that_is_short_hurts_all_from_its_run_on(pool: Pool, cut: int) -> None:
    path = pool.store.path(segment_of(pool, 3))
    path.write_bytes(path.read_bytes()[:cut])
    assert hurt(scrub(pool)) == set(range(3, HISTORY.last + 1))


def test_a_missing_segment_is_named_by_scrub_and_by_the_rebuilt_catalog(pool: Pool, tmp_path: Path) -> None:
    pool.store.delete(segment_of(pool, 5))
    assert hurt(scrub(pool)) == {5, 6}
    pool.close()
    (missing,) = rebuild_catalog(tmp_path / "pool")
    assert missing.snapshots == ("v/x@s5%s6",)


def test_bytes_behind_the_end_are_seen(pool: Pool) -> None:
    path = pool.store.path(segment_of(pool, 2))
    path.write_bytes(path.read_bytes() + b"\0")
    assert not scrub(pool).clean


def test_a_begin_of_another_snapshot_is_seen(pool: Pool) -> None:
    one, other = snapshot(pool, 1), snapshot(pool, 2)
    with pool.transaction() as t:
        t.put("begin", one.key, t.get("begin", other.key) or {})
    assert hurt(scrub(pool)) == {1}


@pytest.mark.parametrize("kinds", [("run",), ("begin",), ("run", "begin")])
@pytest.mark.parametrize("number", [1, HISTORY.last])
def test_a_snapshot_whose_documents_were_lost_is_named(pool: Pool, kinds: tuple[str, ...], number: int) -> None:
    lost = snapshot(pool, number)
    with pool.transaction() as t:
        for kind in kinds:
            t.delete(kind, lost.key)
    report = scrub(pool)
    assert number in hurt(report)
    assert [error.where for error in report.errors if "it is missing" in error.what] == [
        f"catalog: {kind} {lost.key}" for kind in ("begin", "run") if kind in kinds
    ]
    assert report.damaged == {lost.dataset.id}


def test_the_last_snapshot_is_named_where_nothing_else_of_its_dataset_is_left(pool: Pool) -> None:
    lost = snapshot(pool, HISTORY.last)
    with pool.transaction() as t:
        for kind in ("run", "begin"):
            for key, _ in t.scan(kind, lost.dataset.key + "/"):
                t.delete(kind, key)
        for number in range(HISTORY.last):
            t.delete("snapshot", snapshot(pool, number).key)
    assert hurt(scrub(pool)) == {HISTORY.last}


def test_figures_that_do_not_add_up_are_seen(pool: Pool) -> None:
    key = snapshot(pool, 1).key
    with pool.transaction() as t:
        t.put("run", key, {**(t.get("run", key) or {}), "bytes": 5})
    (error,) = scrub(pool).errors
    assert "bytes are 5" in str(error)


def test_the_outcome_is_kept_for_status(pool: Pool) -> None:
    scrub(pool)
    doc = pool.catalog.get("scrub", "")
    assert doc is not None
    assert doc["errors"] == []
