"""P7: what a package's snapshots look at again is not read again; what is known is never more than what is there."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zkeep.errors import Damaged
from zkeep.names import DatasetName
from zkeep.pool.datasets.history import history_of
from zkeep.pool.datasets.model import Pool
from zkeep.pool.maintenance.scrub import scrub
from zkeep.pool.store.files import LocalStore
from zkeep.pool.store.port import Blob, segment_name
from zkeep.pool.timeline.segment import RecentContents, Segment
from zkeep.pool.timeline.summary import FOLDER
from zkeep.pool.timeline.timeline import LAST
from zkeep.pool.transfer.receive import ReceiveOptions, receive
from zkeep.pool.transfer.send import SendRequest, send

sys.path.insert(0, str(Path(__file__).parents[4] / "bench"))
import scaling

DATA = DatasetName("b/data")
FIRST, COUNT = 20, 12


def take(pool: Pool, data: bytes) -> None:
    receive(pool, io.BytesIO(data), "b/data", ReceiveOptions())


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filled") / "pool"
    with Pool.create(folder, "b") as pool:
        take(pool, scaling.small(0))
        take(pool, scaling.many_small(1, FIRST))
    return folder


@pytest.fixture
def pool(filled: Path, tmp_path: Path) -> Iterator[Pool]:
    with Pool.open(shutil.copytree(filled, tmp_path / "pool")) as pool:
        yield pool


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The segments and summaries that are opened to be read."""
    names: list[str] = []
    really = LocalStore.open

    def noted(self: LocalStore, name: str) -> Blob:
        if name.startswith(("segments", FOLDER)):
            names.append(name)
        return really(self, name)

    monkeypatch.setattr(LocalStore, "open", noted)
    return names


def test_p7_a_package_opens_hardly_a_file_of_the_past(pool: Pool, opened: list[str]) -> None:
    take(pool, scaling.many_small(FIRST + 1, FIRST + COUNT))
    assert len(opened) <= COUNT  # those that the first looks at; it was five for each snapshot, and more with each


def test_p7_summaries_that_nothing_is_looked_up_in_are_not_opened(pool: Pool, opened: list[str]) -> None:
    assert pool.store.names(FOLDER)
    history = history_of(pool, pool.dataset(DATA))
    with history.timeline(pool.store) as timeline:
        assert any(piece.summary for piece in timeline.pieces(timeline.runs))
        assert opened == []


def test_what_is_known_is_what_is_there(pool: Pool) -> None:
    take(pool, scaling.many_small(FIRST + 1, FIRST + COUNT))
    history = history_of(pool, pool.dataset(DATA))
    with history.timeline(pool.store, pool.runs.recent) as known, history.timeline(pool.store) as read:
        for run in history.runs:
            for one, other in zip(known.segments(run), read.segments(run), strict=True):
                assert one.footer == other.footer
                assert all(one.rows(name).tobytes() == other.rows(name).tobytes() for name in other.parts)
        one, other = known.state(history.runs, (0, 0), LAST), read.state(history.runs, (0, 0), LAST)
        assert one.rows == other.rows > 0
        assert [known.segment_id(int(n)) for n in one.blocks["segment"]] == [
            read.segment_id(int(n)) for n in other.blocks["segment"]
        ]


def test_rows_that_a_reader_changes_are_its_own(pool: Pool) -> None:
    run = history_of(pool, pool.dataset(DATA)).runs[-1]
    name = segment_name(run.segments[0])
    segment = Segment(lambda: pool.store.open(name), name, 7, RecentContents())
    before = segment.rows("objects").tobytes()
    segment.rows("objects")["object"] = 5
    assert segment.rows("objects").tobytes() == before


def test_what_is_gone_is_missed_by_all_others(pool: Pool) -> None:
    """Only a receive uses what is known: a send and a scrub read the disk."""
    take(pool, scaling.small(FIRST + 1))
    name = segment_name(history_of(pool, pool.dataset(DATA)).runs[-1].segments[0])
    assert pool.runs.recent.get(name) is not None
    pool.store.delete(name)
    assert not scrub(pool).clean
    with pytest.raises(Damaged):
        send(pool, SendRequest(f"b/data@s{FIRST + 1}", raw=True), io.BytesIO())


def test_what_is_known_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch, pool: Pool) -> None:
    monkeypatch.setattr("zkeep.pool.timeline.segment.RECENT", 30_000)
    recent = pool.runs.recent = RecentContents()
    take(pool, scaling.many_small(FIRST + 1, FIRST + COUNT))
    segments = [each for run in history_of(pool, pool.dataset(DATA)).runs for each in run.segments]
    assert 1 <= sum(recent.get(segment_name(each)) is not None for each in segments) <= 7
