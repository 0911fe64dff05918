"""Compaction gives back what nothing needs and changes nothing that anyone can ask."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from receivekit import receiving
from vectors.histories import DATA, History, histories, new_pool, point, put_together, take_chain
from zkeep.names import BookmarkName, DatasetName, SnapshotName
from zkeep.pool.datasets import destroy, namespace
from zkeep.pool.datasets.model import Dataset, Pool
from zkeep.pool.datasets.orphans import reading
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance.compact import compact, sweep
from zkeep.pool.maintenance.scrub import scrub
from zkeep.pool.timeline import copying, rewrite, tiers
from zkeep.pool.timeline import segment as seg
from zkeep.pool.timeline.timeline import Timeline
from zkeep.pool.transfer.receive import ReceiveOptions, receive

HISTORIES = {h.name: h for h in histories(DATA / "histories")}
HISTORY = HISTORIES["rs512b"]
SEEDS = int(os.environ.get("ZKEEP_SEEDS", "3"))


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with new_pool(tmp_path) as pool:
        take_chain(pool, HISTORY)
        yield pool


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is worth merging and trimming."""
    monkeypatch.setattr(tiers, "SMALLEST", 1)
    monkeypatch.setattr(tiers, "FLOOR", 1 << 29)
    monkeypatch.setattr(tiers, "WASTED", 0.001)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small slices, pages, segments and chunks while compaction works, so that all of them are cut."""
    monkeypatch.setattr(seg, "TARGET", 6000)
    monkeypatch.setattr(copying, "CHUNK", 3000)
    monkeypatch.setattr(Timeline.slices, "__defaults__", (40,))
    monkeypatch.setattr(Timeline.cuts, "__defaults__", (40,))


def dataset(pool: Pool) -> Dataset:
    return pool.dataset(DatasetName.parse("v/x"))


def remove(pool: Pool, *numbers: int) -> None:
    for number in numbers:
        plan = destroy.plan_snapshots(View(pool), DatasetName.parse("v/x"), f"s{number}", destroy.DestroyOptions())
        destroy.execute(pool, plan)


def bookmark(pool: Pool, number: int) -> None:
    namespace.bookmark(pool, SnapshotName.parse(f"v/x@s{number}"), BookmarkName.parse(f"v/x#b{number}"))


def figures(pool: Pool) -> Any:
    view = View(pool)
    space = view.figures(dataset(pool))
    return space.used, space.referenced, space.written, space.snapshots


def answers(pool: Pool, history: History, left: set[int]) -> dict[Any, bytes]:
    pairs = [(a, b) for a, b in history.pairs if b in left and (a is None or point(pool, a))]
    return {pair: put_together(pool, pair) for pair in pairs}


def disk(pool: Pool) -> int:
    return sum(pool.store.size(name) for name in pool.store.names("segments"))


@pytest.mark.usefixtures("eager", "tiny")
@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("name", ["rs512b", "birth", "rs1k"])
def test_nothing_changes_that_anyone_can_ask(tmp_path: Path, name: str, seed: int) -> None:
    dice, history = random.Random(f"{name} {seed}"), HISTORIES[name]
    with new_pool(tmp_path) as pool:
        take_chain(pool, history)
        left = set(range(history.last + 1))
        for number in dice.sample(sorted(left), dice.randrange(1, history.last + 1)):
            if dice.random() < 0.5:
                bookmark(pool, number)
            remove(pool, number)
            left.discard(number)
        streams, sums = answers(pool, history, left), figures(pool)
        for _ in range(2):
            report = compact(pool, dataset(pool))
            assert report.skipped == []
            assert figures(pool) == sums
            assert answers(pool, history, left) == streams
        assert scrub(pool).clean


def test_destroyed_space_comes_back(pool: Pool) -> None:
    remove(pool, *range(HISTORY.last))
    before = disk(pool)
    report = compact(pool)
    assert report.merged == HISTORY.last + 1
    assert report.freed == before - disk(pool)
    assert len(list(pool.catalog.scan("run"))) == 1
    needed = View(pool).figures(dataset(pool)).referenced.stored
    assert disk(pool) <= needed * 1.25, "tables of contents of tiny files"


@pytest.mark.usefixtures("eager")
def test_a_bookmark_keeps_the_boundary_but_not_the_content(pool: Pool) -> None:
    for number in range(HISTORY.last):
        bookmark(pool, number)
    remove(pool, *range(HISTORY.last))
    runs = len(list(pool.catalog.scan("run")))
    report = compact(pool, dataset(pool))
    assert (report.merged, len(list(pool.catalog.scan("run")))) == (0, runs)
    assert report.trimmed > 0
    needed = View(pool).figures(dataset(pool)).referenced.stored
    assert sum(doc["bytes"] for _, doc in pool.catalog.scan("run")) == needed


def test_runs_of_snapshots_stay_as_they_came(pool: Pool) -> None:
    compact(pool)
    assert all(doc["whole"] for _, doc in pool.catalog.scan("run"))


def test_a_budget_is_kept(pool: Pool) -> None:
    remove(pool, *range(HISTORY.last))
    report = compact(pool, dataset(pool), budget=100)
    assert report.merged == 0
    assert report.written < 5000, "of records nothing; a table of contents is not counted"


def test_a_reader_keeps_its_files_until_the_next_sweep(pool: Pool) -> None:
    remove(pool, *range(HISTORY.last))
    files = set(pool.store.names("segments"))
    with reading(pool):
        compact(pool, dataset(pool))
        assert files < set(pool.store.names("segments"))
    assert sweep(pool) > 0
    assert not files & set(pool.store.names("segments"))
    assert scrub(pool).clean


def test_damage_is_passed_over_and_loses_nothing(pool: Pool) -> None:
    remove(pool, *range(HISTORY.last))
    name = pool.store.names("segments")[-1]
    path = pool.store.path(name)
    content = bytearray(path.read_bytes())
    content[64 + 312 + 20] ^= 1
    path.write_bytes(content)
    files = pool.store.names("segments")
    report = compact(pool, dataset(pool))
    assert name in report.skipped[0]
    assert pool.store.names("segments") == files
    assert list(pool.catalog.scan("compact")) == []


def test_two_at_once_do_not_meet(pool: Pool) -> None:
    remove(pool, *range(HISTORY.last))
    with pool.store.lock(f"compact-{dataset(pool).id}"):
        assert compact(pool, dataset(pool)).merged == 0


def test_a_change_meanwhile_undoes_a_step(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    remove(pool, *range(HISTORY.last))
    original = rewrite.rewrite

    def meddle(*args: Any) -> None:
        original(*args)
        with pool.transaction() as t:
            key, doc = t.scan("run")[0]
            t.put("run", key, {**doc, "meddled": 1})

    monkeypatch.setattr("zkeep.pool.maintenance.step.rewrite", meddle)
    files = pool.store.names("segments")
    report = compact(pool, dataset(pool))
    assert "changed meanwhile" in report.skipped[0]
    assert pool.store.names("segments") == files


def test_sweep_leaves_a_receive_alone_and_takes_a_dead_one_away(pool: Pool) -> None:
    with pool.transaction() as t:
        txg = t.next_txg()
        t.put("receive", f"txg/{txg:020d}", receiving(txg))
    name = f"segments/{txg % 256:02x}/{txg:x}-0.seg"
    pool.store.put(name, b"x")
    pool.store.draft(f"{txg:x}-1").close()
    with reading(pool):  # as a receive under way does
        sweep(pool)
        assert pool.store.exists(name)
    sweep(pool)
    assert not pool.store.exists(name)
    assert pool.store.drafts() == []
    assert list(pool.catalog.scan("receive")) == []


def test_a_clone_s_past_is_renamed_with_its_origin_s(pool: Pool) -> None:
    """Figures of a clone name runs of its origin, which may be merged later."""
    options = ReceiveOptions(set_properties={"origin": "v/x@s5"})
    receive(pool, io.BytesIO(HISTORY.stream((5, 6))), "v/clone@s6", options)
    remove(pool, 0, 1, 2, 3, 4)
    clone = pool.dataset(DatasetName.parse("v/clone"))
    before = View(pool).figures(clone)
    assert compact(pool).merged > 0
    assert View(pool).figures(clone) == before
    assert put_together(pool, (None, 6), "v/clone") == HISTORY.stream((None, 6))


# The policy


def part(size: int, *, garbage: int = 0, txg: int = 1) -> tiers.Part:
    doc = {"txg": txg, "bytes": size, "file_bytes": size, "records": 0, "dead": {}}
    return tiers.Part(doc, ({"dead": {str(txg): [garbage, 0]}},), pinned=False, sent=False)


def test_a_large_run_is_not_merged_for_a_small_one() -> None:
    group = [part(1 << 29), part(1 << 20), part(1 << 20)]
    assert list(tiers.merges(group)) == [group[1:]]


def test_small_runs_do_not_pile_up() -> None:
    group = [part(100) for _ in range(500)]
    assert list(tiers.merges(group)) == [group]


def test_a_few_large_runs_do_not_keep_small_ones_from_merging() -> None:
    group = [part(60 << 20), part(60 << 20), part(60 << 20), *(part(4 << 10) for _ in range(40)), part(50 << 20)]
    assert list(tiers.merges(group)) == [group]
    assert list(tiers.merges(group, 64 << 20)) == [group[3:-1]]


def test_a_run_is_trimmed_when_that_pays() -> None:
    most, some = part(1 << 20, garbage=900_000), part(1 << 20, garbage=100_000)
    assert tiers.trims([some, most]) == [most]
    assert tiers.trims([some, most], 0.05) == [most, some]


def test_groups_end_at_pins_and_stretches_at_content() -> None:
    runs = [{"txg": t, "bytes": 0, "dead": {}} for t in (1, 2, 3, 4, 5)]
    groups = list(tiers.groups(runs, pins=[2, 4], needed=[4]))
    assert [[p.txg for p in g] for g in groups] == [[1, 2], [3, 4], [5]]
    assert [[d["txg"] for d in p.later] for g in groups for p in g] == [[2, 3, 4], [3, 4], [4], [], []]
    assert [p.sent for g in groups for p in g] == [False, False, False, True, False]
