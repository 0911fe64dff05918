"""A timeline of three runs: where it is cut, what a slice has, and which runs a stretch of txgs means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zkeep.errors import Damaged
from zkeep.format.records import RecordType
from zkeep.pool.store.files import LocalStore
from zkeep.pool.store.port import segment_name
from zkeep.pool.timeline import segment as seg
from zkeep.pool.timeline import spans as sp
from zkeep.pool.timeline.segment import Key
from zkeep.pool.timeline.table import BLOCK, DTYPES, NOTHING, OBJECT, Table
from zkeep.pool.timeline.timeline import LAST, Run, Timeline

RUNS = [Run(txg, (f"{txg:x}-0",), {}) for txg in (3, 5, 9)]
LARGE = 40
"The number of an object with many blocks."


def objects(*numbers: int) -> sp.Array:
    rows = np.zeros(len(numbers), OBJECT)
    rows["object"], rows["slots"], rows["blksz"] = numbers, 1, 512
    rows["size"], rows["pos"] = 312, 64
    return rows


def blocks(number: int, first: int, count: int) -> sp.Array:
    rows = np.zeros(count, BLOCK)
    rows["object"], rows["offset"] = number, (first + np.arange(count)) * 512
    rows["length"], rows["size"], rows["kind"], rows["pos"] = 512, 824, RecordType.WRITE, 64
    return rows


TABLES = [
    replace(NOTHING, objects=objects(1, 2, LARGE), blocks=np.concatenate([blocks(1, 0, 2), blocks(LARGE, 0, 600)])),
    replace(NOTHING, objects=objects(2, 70), blocks=blocks(70, 0, 3), holes=np.array([(LARGE, 0, 51200)], sp.SPAN)),
    replace(NOTHING, blocks=blocks(LARGE, 10, 1), freed=sp.lines(np.array([2], np.uint64), np.array([3], np.uint64))),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    made = LocalStore(tmp_path_factory.mktemp("pool"))
    for run, table in zip(RUNS, TABLES, strict=True):
        with made.draft(run.segments[0]) as draft:
            draft.write(seg.head((0, 0, 0, 0), big_endian=False))
            seg.finish(draft, table, (0, 0, 0, 0), 0)
            draft.publish(segment_name(run.segments[0]))
    return made


@pytest.fixture
def timeline(store: LocalStore) -> Iterator[Timeline]:
    with Timeline(store, RUNS) as found:
        yield found


def spots(table: Table) -> list[Key]:
    rows = table.blocks
    return list(zip(rows["object"].tolist(), rows["offset"].tolist(), strict=True))


@pytest.mark.parametrize(
    ("after", "last", "expected"),
    [
        pytest.param(0, 9, [3, 5, 9], id="all"),
        pytest.param(3, 9, [5, 9], id="without the source"),
        pytest.param(3, 8, [5], id="up to a txg that no run has"),
        pytest.param(9, 9, [], id="none"),
    ],
)
def test_a_stretch_of_txgs_is_some_runs(timeline: Timeline, after: int, last: int, expected: list[int]) -> None:
    assert [run.txg for run in timeline.after(after, last)] == expected
    assert [run.txg for run in timeline.upto(after)] == [run.txg for run in RUNS if run.txg <= after]


def test_a_run_is_known_by_the_number_of_its_segment(timeline: Timeline) -> None:
    numbers = [timeline.segments(run)[0].number for run in RUNS]
    assert numbers == [0, 1, 2]
    assert [timeline.owner(number)[0] for number in numbers] == RUNS
    assert [timeline.segment_id(number) for number in numbers] == ["3-0", "5-0", "9-0"]
    assert timeline.newer(5).tolist() == [False, True, True]


@pytest.mark.parametrize("rows", [1, 100, 256, 10_000])
def test_slices_cover_everything_once(timeline: Timeline, rows: int) -> None:
    slices = list(timeline.slices(RUNS, rows))
    assert (slices[0][0], slices[-1][1]) == ((0, 0), LAST)
    assert [low for low, _ in slices[1:]] == [high for _, high in slices[:-1]]
    whole = timeline.state(RUNS, (0, 0), LAST)
    parts = [timeline.state(RUNS, low, high) for low, high in slices]
    assert [spot for part in parts for spot in spots(part)] == spots(whole)
    assert sp.union(*(part.holes for part in parts)).tolist() == whole.holes.tolist()


def test_cuts_lie_between_metadnode_blocks_unless_one_object_is_large(timeline: Timeline) -> None:
    cuts = timeline.cuts(RUNS, 256)
    assert cuts
    assert all(number % 32 == 0 if not offset else number == LARGE for number, offset in cuts)


@pytest.mark.parametrize(
    ("low", "high", "numbers", "offsets"),
    [
        pytest.param((0, 0), (LARGE, 0), [1], [0, 512], id="before the large object; 2 was freed"),
        pytest.param((LARGE, 51200), (LARGE, 52224), [LARGE], [51200, 51712], id="inside of it: its row comes, too"),
        pytest.param((LARGE, 0), (LARGE, 6144), [LARGE], [5120], id="a hole over all but the block that came later"),
        pytest.param((64, 0), LAST, [70], [0, 512, 1024], id="behind it"),
        pytest.param((3, 0), (9, 0), [], [], id="where there is nothing"),
    ],
)
def test_the_state_of_a_slice(timeline: Timeline, low: Key, high: Key, numbers: list[int], offsets: list[int]) -> None:
    found = timeline.state(RUNS, low, high)
    assert found.objects["object"].tolist() == numbers
    assert found.blocks["offset"].tolist() == offsets


def test_spans_are_clipped_to_their_slice(timeline: Timeline) -> None:
    found = timeline.state(RUNS[1:2], (LARGE, 1024), (LARGE, 4096))
    assert found.holes.tolist() == [(LARGE, 1024, 4096)]


def test_rows_near_some_keys_are_found_in_each_run(timeline: Timeline) -> None:
    wanted = dict.fromkeys(DTYPES, np.array([(LARGE, 5120, LARGE, 5632)], seg.WANT))
    found = timeline.near(RUNS, ("blocks", "holes"), wanted)
    assert [(LARGE, 5120) in spots(table) for table in found] == [True, False, True]
    assert [len(table.holes) for table in found] == [0, 1, 0]


def test_without_summaries_each_run_is_a_piece(timeline: Timeline) -> None:
    assert [piece.runs for piece in timeline.pieces(RUNS)] == [[run] for run in RUNS]
    assert timeline.rows(RUNS) == sum(table.rows for table in TABLES)


def test_names_of_other_summaries_are_passed_over(store: LocalStore) -> None:
    with Timeline(store, RUNS, ["summaries/1/1-3-5-0123456789abcdef", "summaries/1/odd", "1-3-5"]) as timeline:
        assert [len(piece.runs) for piece in timeline.pieces(RUNS)] == [1, 1, 1]


def test_a_missing_segment_is_damage(tmp_path: Path) -> None:
    with Timeline(LocalStore(tmp_path), RUNS) as timeline, pytest.raises(Damaged, match=r"3-0\.seg is missing"):
        timeline.state(RUNS, (0, 0), LAST)
