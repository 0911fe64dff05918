"""Summaries answer as their runs would, and nothing depends on them."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from vectors.histories import DATA, History, Pair, forget_originals, histories, new_pool, put_together, take_chain
from zkeep.names import DatasetName
from zkeep.pool.datasets import destroy, summaries
from zkeep.pool.datasets.history import history_of, own_runs
from zkeep.pool.datasets.model import Dataset, Pool
from zkeep.pool.datasets.summaries import Unit, missing, sum_up
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance.compact import compact
from zkeep.pool.maintenance.scrub import scrub
from zkeep.pool.store.port import Store
from zkeep.pool.timeline.summary import FOLDER, SummaryName, matching
from zkeep.pool.timeline.timeline import LAST, Run, Timeline
from zkeep.pool.transfer.receive import ReceiveOptions, receive

HISTORIES = {h.name: h for h in histories(DATA / "histories")}
HISTORY = HISTORIES["rs512b"]


@pytest.fixture(autouse=True)
def pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs are a summary, two summaries are one."""
    monkeypatch.setattr(summaries, "FAN", 2)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with new_pool(tmp_path) as pool:
        take_chain(pool, HISTORY)
        yield pool


def dataset(pool: Pool) -> Dataset:
    return pool.dataset(DatasetName.parse("v/x"))


def names(pool: Pool) -> list[str]:
    return pool.store.names(FOLDER)


def remove(pool: Pool, *numbers: int) -> None:
    for number in numbers:
        plan = destroy.plan_snapshots(View(pool), DatasetName.parse("v/x"), f"s{number}", destroy.DestroyOptions())
        destroy.execute(pool, plan)


def everything(pool: Pool, history: History) -> dict[Pair, bytes]:
    """All that can be asked, put together."""
    forget_originals(pool)
    return {pair: put_together(pool, pair) for pair in history.pairs}


@pytest.mark.parametrize("name", sorted(HISTORIES))
def test_p2_streams_are_the_same_with_and_without(tmp_path: Path, name: str) -> None:
    history = HISTORIES[name]
    with new_pool(tmp_path) as pool:
        take_chain(pool, history)
        assert names(pool), "receives write them"
        streams = everything(pool, history)
        summaries.forget(pool, dataset(pool))
        assert everything(pool, history) == streams
        assert scrub(pool).clean


def test_what_a_receive_finds_out_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = []
    for kept in (True, False):
        with new_pool(tmp_path / str(kept)) as pool:
            if not kept:
                monkeypatch.setattr(summaries, "AT_ONCE", 0)
            take_chain(pool, HISTORY)
            assert bool(names(pool)) == kept
            docs.append([doc for _, doc in pool.catalog.scan("run")])
    assert docs[0] == docs[1]


def test_a_look_is_answered_by_few_pieces(pool: Pool) -> None:
    history = history_of(pool, dataset(pool))
    with history.timeline(pool.store) as timeline:
        pieces = timeline.pieces(timeline.runs)
        assert [run for piece in pieces for run in piece.runs] == timeline.runs
        assert len(pieces) <= len(timeline.runs).bit_length()
        assert all(len(piece.runs) == 1 or piece.summary for piece in pieces)
        some = timeline.pieces(timeline.runs[1:])
        assert [run for piece in some for run in piece.runs] == timeline.runs[1:]


def test_runs_that_changed_are_not_answered_for(pool: Pool) -> None:
    before = names(pool)
    remove(pool, *range(1, HISTORY.last))
    assert compact(pool, dataset(pool)).merged
    left = [(None, 0), (None, HISTORY.last), (0, HISTORY.last)]
    with history_of(pool, dataset(pool)).timeline(pool.store) as timeline:
        assert all(piece.summary is None for piece in timeline.pieces(timeline.runs))
    streams = [put_together(pool, pair) for pair in left]
    sum_up(pool, dataset(pool))
    assert not set(before) & set(names(pool)), "what sums up nothing goes"
    assert [put_together(pool, pair) for pair in left] == streams


def test_a_rollback_leaves_none_of_what_went(pool: Pool) -> None:
    remove(pool, *range(1, HISTORY.last + 1))
    receive(pool, io.BytesIO(HISTORY.stream((0, 1))), "v/x@s1", ReceiveOptions(force=True))
    runs = own_runs(pool, dataset(pool))
    assert len(runs) == 2
    assert len(matching(names(pool), runs)) == len(names(pool)) == 1


def test_p7_a_look_for_what_to_sum_up_reads_the_names_once(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    summaries.forget(pool, dataset(pool))
    asked: list[str] = []
    matched = summaries.matching

    def counted(texts: list[str], *rest: Any) -> list[tuple[int, int, SummaryName]]:
        asked.append("names")
        return matched(texts, *rest)

    monkeypatch.setattr(summaries, "matching", counted)
    sum_up(pool, dataset(pool))
    assert len(names(pool)) > 1, "several are written"
    assert asked == ["names"]


@pytest.mark.parametrize("harm", ["flip", "cut", "gone", "empty"])
def test_damaged_ones_are_passed_over_found_and_removed(pool: Pool, harm: str) -> None:
    streams, dice = everything(pool, HISTORY), random.Random(harm)
    hurt = names(pool)
    for name in hurt:
        path = pool.path / name
        content = bytearray(path.read_bytes())
        if harm == "flip":
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        path.unlink()
        if harm != "gone":
            path.write_bytes({"flip": content, "cut": content[:-7], "empty": b""}[harm])
    assert everything(pool, HISTORY) == streams
    report = scrub(pool)
    assert len(report.errors) == (0 if harm == "gone" else len(hurt))
    assert all(not finding.snapshots for finding in report.errors), "nothing is lost"
    assert scrub(pool).clean
    assert not names(pool)


def test_a_full_disk_costs_no_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with new_pool(tmp_path) as pool:
        put = pool.store.put

        def full(name: str, content: bytes) -> None:
            if name.startswith(FOLDER):
                raise OSError(28, "No space left on device")
            put(name, content)

        monkeypatch.setattr(pool.store, "put", full)
        take_chain(pool, HISTORY)
        assert not names(pool)
        assert len(pool.snapshots(dataset(pool))) == HISTORY.last + 1


def test_destroying_the_dataset_takes_them_along(pool: Pool) -> None:
    plan = destroy.plan_dataset(View(pool), DatasetName.parse("v/x"), destroy.DestroyOptions(recursive=True))
    assert names(pool)
    destroy.execute(pool, plan)
    assert not names(pool)


def test_compaction_gives_them_up_where_they_are_too_much(pool: Pool) -> None:
    compact(pool)
    assert names(pool), "2 MiB more do not matter"
    summary = names(pool)[0]
    (pool.path / summary).write_bytes(bytes(8 << 20))
    compact(pool)
    assert not names(pool)


def test_compaction_keeps_none_that_sums_up_nothing(pool: Pool) -> None:
    before = names(pool)
    remove(pool, *range(1, HISTORY.last))
    compact(pool)
    assert before
    assert not names(pool), "two runs are left, and nobody wrote their summary"


# Which there should be


def run(txg: int, records: int = 10) -> Run:
    return Run(txg, (f"{txg:x}-0",), {"records": records})


def grow(runs: list[Run]) -> list[tuple[int, int, SummaryName]]:
    """What is there when all that was missing was written."""
    have: list[tuple[int, int, SummaryName]] = []
    while (unit := next(missing(runs, have), None)) is not None:
        some = runs[unit.start : unit.end]
        have.append((unit.start, unit.count, SummaryName.of("x", unit.level, some)))
    return have


def pieces(runs: list[Run], have: list[tuple[int, int, SummaryName]]) -> int:
    timeline = Timeline(cast(Store, None), runs, [str(name) for _, _, name in have])
    timeline._summary = lambda name, runs: SimpleNamespace(name=name)  # type: ignore[method-assign,assignment,return-value]
    return len(timeline.pieces(runs))


def test_pieces_grow_with_the_logarithm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "FAN", 16)
    for count, most in ((1, 1), (15, 15), (16, 1), (17, 2), (255, 30), (256, 1), (1000, 25), (5000, 29)):
        runs = [run(i + 1) for i in range(count)]
        assert pieces(runs, grow(runs)) <= most


def test_each_is_written_once_while_runs_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "FAN", 4)
    runs: list[Run] = []
    have: list[tuple[int, int, SummaryName]] = []
    for txg in range(1, 257):
        runs.append(run(txg))
        while (unit := next(missing(runs, have), None)) is not None:
            have.append((unit.start, unit.count, SummaryName.of("x", unit.level, runs[unit.start : unit.end])))
    assert len(have) == 64 + 16 + 4 + 1
    assert pieces(runs, have) == 1


def test_a_hole_in_the_middle_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "FAN", 4)
    runs = [run(i + 1) for i in range(64)]
    have = grow(runs)
    del runs[21]
    have = matching([str(name) for _, _, name in have], runs)
    unit = next(missing(runs, have))
    assert unit == Unit(20, 3, 1, 30)
    rest = grow_on(runs, have)
    assert [(u.start, u.count, u.level) for u in rest] == [(20, 3, 1), (16, 15, 2), (0, 63, 3)]


def grow_on(runs: list[Run], have: list[tuple[int, int, SummaryName]]) -> list[Unit]:
    written = []
    while (unit := next(missing(runs, have), None)) is not None:
        written.append(unit)
        have = [*have, (unit.start, unit.count, SummaryName.of("x", unit.level, runs[unit.start : unit.end]))]
    return written


@pytest.mark.parametrize("seed", range(20))
def test_one_pass_finds_what_is_missing_in_the_order_in_which_it_can_be_written(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(seed)
    monkeypatch.setattr(summaries, "FAN", dice.choice([2, 3, 4, 16]))
    runs = [run(i + 1, dice.choice([10, 10, 10, 200_000])) for i in range(dice.randrange(1, 300))]
    have = [place for place in grow(runs) if dice.random() < 0.7]
    assert list(missing(runs, have)) == grow_on(runs, have)


def test_large_runs_are_left_alone() -> None:
    runs = [run(1, 10**7), run(2), run(3), run(4, 10**6), run(5, 200_000), run(6, 200_000)]
    assert [(s, c) for s, c, _ in grow(runs)] == [(1, 2)]


def test_names() -> None:
    runs = [run(16), run(255)]
    name = SummaryName.of("000000000002", 1, runs)
    assert str(name).startswith("summaries/000000000002/1-10-ff-")
    assert SummaryName.parse(str(name)) == name
    for text in ("summaries/x", "segments/00/1-2-3-4", "summaries/1/x-1-2-3", "summaries/1/1-1-2", ""):
        assert SummaryName.parse(text) is None
    assert matching([str(name)], runs) == [(0, 2, name)]
    assert matching([str(name)], [*runs[:1], run(200), runs[1]]) == []


def test_state_is_the_same_slice_by_slice(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    history = history_of(pool, dataset(pool))
    with history.timeline(pool.store) as one, Timeline(pool.store, history.runs) as other:
        for low, high in [((0, 0), LAST), *other.slices(history.runs, 40)]:
            mine, theirs = one.state(one.runs, low, high), other.state(other.runs, low, high)
            for name in ("objects", "blocks", "spills", "ranges"):
                a, b = getattr(mine, name), getattr(theirs, name)
                places = [[t.segment_id(int(n)) for n in rows["segment"]] for t, rows in ((one, a), (other, b))]
                assert places[0] == places[1]
                for field in (a.dtype.names or ())[:]:
                    if field not in ("segment", "pad"):
                        assert np.array_equal(a[field], b[field])
