"""P7: snapshots of a package in which nothing changed are made many in one transaction; what they promise stays."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zkeep.errors import BadStream, Refused, ZkeepError
from zkeep.format.records import HEADER
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool
from zkeep.pool.store.journal import Journal
from zkeep.pool.timeline.segment import Segment
from zkeep.pool.timeline.table import Table
from zkeep.pool.timeline.timeline import Piece, Timeline
from zkeep.pool.transfer import at_once
from zkeep.pool.transfer.receive import ReceiveOptions, receive

sys.path.insert(0, str(Path(__file__).parents[4] / "bench"))
import scaling

DATA = DatasetName("b/data")
COUNT = 6


def take(pool: Pool, data: bytes, *, resumable: bool = True) -> None:
    receive(pool, io.BytesIO(data), "b/data", ReceiveOptions(resumable=resumable))


def names(pool: Pool) -> list[str]:
    return [str(s.doc["name"]) for s in pool.snapshots(pool.dataset(DATA))]


def parts(pool: Pool) -> list[str]:
    """The snapshots that partial receives keep, and the keys of what is reserved."""
    kept = [str(doc["snapshot"]) for _, doc in pool.catalog.scan("receive")]
    return kept + [key for key, _ in pool.catalog.scan("reserve")]


def without_conclusion(data: bytes) -> bytes:
    return data[:-HEADER]


@pytest.mark.parametrize("resumable", [True, False])
def test_p7_many_take_one_transaction(resumable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_once, "LONG", 60.0)
    with scaling.new_pool(tmp_path / "home", tmp_path / "pool") as pool:
        before = Journal(pool.store).end().number
        take(pool, scaling.many_increments(COUNT), resumable=resumable)
        assert Journal(pool.store).end().number == before + 1
        assert names(pool) == ["s0", *(f"n{n}" for n in range(1, COUNT + 1))]
        assert parts(pool) == []


def test_each_is_durable_when_the_next_one_begins(tmp_path: Path) -> None:
    """The journal alone, without the index, has every snapshot before the line broke."""
    with scaling.new_pool(tmp_path / "home", tmp_path / "pool") as pool, pytest.raises(BadStream):
        take(pool, without_conclusion(scaling.many_increments(COUNT)))
    for file in (tmp_path / "pool").glob("catalog.sqlite*"):
        file.unlink()
    with Pool.open(tmp_path / "pool") as pool:
        assert len(names(pool)) == COUNT + 1
        take(pool, scaling.many_increments(COUNT + 2))
        assert len(names(pool)) == COUNT + 3


def test_one_whose_end_is_damaged_is_kept_as_a_part(tmp_path: Path) -> None:
    data = bytearray(without_conclusion(scaling.many_increments(COUNT)))
    data[-1] ^= 1
    with scaling.new_pool(tmp_path / "home", tmp_path / "pool") as pool:
        with pytest.raises(ZkeepError):
            take(pool, bytes(data))
        assert names(pool)[-1] == f"n{COUNT - 1}"
        take(pool, scaling.many_increments(COUNT))
        assert names(pool)[-1] == f"n{COUNT}"
        assert parts(pool) == []


def test_one_that_a_quota_has_no_room_for_is_refused(tmp_path: Path) -> None:
    with scaling.new_pool(tmp_path / "home", tmp_path / "pool") as pool:
        with pool.transaction() as t:
            pool.update_dataset(t, pool.dataset(DATA), local={"quota": "1"})
        with pytest.raises(Refused, match="the quota is used up"):
            take(pool, scaling.many_increments(COUNT))
        assert names(pool) == ["s0"]


def test_one_after_a_partial_receive_replaces_that(tmp_path: Path) -> None:
    with scaling.new_pool(tmp_path / "home", tmp_path / "pool") as pool:
        with pytest.raises(ZkeepError):
            take(pool, scaling.stream(1)[:-HEADER])
        assert parts(pool)
        take(pool, scaling.many_increments(COUNT))
        assert names(pool)[-1] == f"n{COUNT}"
        assert parts(pool) == []


def test_one_whose_name_is_taken_or_source_is_gone_is_refused(tmp_path: Path) -> None:
    with scaling.new_pool(tmp_path / "home", tmp_path / "pool") as pool:
        data = pool.dataset(DATA)
        with pool.transaction() as t:
            pool.update_snapshot(t, pool.snapshots(data)[0], guid=5)
        with pytest.raises(Refused, match="incremental source guid"):
            take(pool, scaling.many_increments(COUNT))
        with pool.transaction() as t:
            pool.update_snapshot(t, pool.snapshots(data)[0], guid=scaling.guid(0), name="n1")
        with pytest.raises(Refused, match="n1 exists already"):
            take(pool, scaling.many_increments(COUNT))
        assert names(pool) == ["n1"]


def test_p7_those_in_which_nothing_changed_are_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    really = Timeline.ask

    def ask(self: Timeline, piece: Piece, look: Callable[[Segment], Table]) -> list[Table]:
        asked.append(piece)
        return really(self, piece, look)

    monkeypatch.setattr(Timeline, "ask", ask)
    with scaling.new_pool(tmp_path / "home", tmp_path / "pool") as pool:
        scaling.add_snapshots(pool, 48)  # with which no summaries are due
        asked.clear()
        take(pool, scaling.stream(49))
        assert len(names(pool)) == 50
    assert 1 <= len(asked) <= 4
