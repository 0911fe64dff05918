"""What is known of the past in memory gives the same tables, and the same dead bytes, as a search of all runs."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vectors.histories import DATA, History, histories
from zkeep.format.events import SubBegin
from zkeep.format.nvlist import NvList
from zkeep.format.reader import read_events
from zkeep.format.records import HEADER, Begin, HeaderType
from zkeep.format.writer import Writer
from zkeep.names import DatasetName
from zkeep.pool.datasets import destroy
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance.compact import compact
from zkeep.pool.timeline import living as module
from zkeep.pool.timeline.ingest import SegmentWriter
from zkeep.pool.timeline.living import Living
from zkeep.pool.timeline.resolve import resolve
from zkeep.pool.timeline.table import DTYPES, Table
from zkeep.pool.transfer.receive import ReceiveOptions, receive

sys.path.insert(0, str(Path(__file__).parents[4] / "bench"))
import makestream
import scaling

Resolved = tuple[Table, dict[int, list[int]]]
HISTORIES = {h.name: h for h in histories(DATA / "histories")}
NAMES = ("birth", "rs1k", "rs512", "rs512b")
SMALL = ("birth", "rs512b")
"Histories whose steps are small, and change no large files."


class Compared:
    """How many tables were resolved beside what is known, and how many of them were resolved otherwise."""

    def __init__(self) -> None:
        self.known = 0
        self.searched = 0


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Compared:
    """Each table of a run is resolved both ways, and must be the same."""
    counts, really, beside = Compared(), SegmentWriter._resolved, Living.resolve

    def counted(self: Living, *arguments: object) -> Resolved | None:
        found: Resolved | None = beside(self, *arguments)  # type: ignore[arg-type]
        counts.known += found is not None
        counts.searched += found is None
        return found

    def both(self: SegmentWriter) -> Resolved:
        new = self._rows.table()
        made, dead = really(self)
        other, dies = resolve(new, self._timeline, self._past, self._source.kind)
        for name in DTYPES:
            assert getattr(made, name).tobytes() == getattr(other, name).tobytes(), (self._txg, name)
        assert {txg: each for txg, each in dead.items() if any(each)} == {t: e for t, e in dies.items() if any(e)}
        return made, dead

    monkeypatch.setattr(Living, "resolve", counted)
    monkeypatch.setattr(SegmentWriter, "_resolved", both)
    return counts


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.create(tmp_path / "pool", "v", {"blind": "off"}) as made:
        yield made


def take(pool: Pool, data: bytes) -> None:
    receive(pool, io.BytesIO(data), "v/x", ReceiveOptions())


def package(history: History, first: int, last: int) -> bytes:
    """The increments to some of its snapshots, as send -I has them."""
    streams = [history.stream((number - 1, number)) for number in range(first, last + 1)]
    begin = next(event for event in read_events(io.BytesIO(streams[-1])) if isinstance(event, SubBegin))
    writer = Writer()
    header = Begin(versioninfo=HeaderType.COMPOUND, toname=begin.begin.name)
    return b"".join([writer.package(header, NvList()), *streams, writer.package_end()])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("most", [1, module.MOST_BLOCKS])
def test_real_histories(name: str, most: int, pool: Pool, compared: Compared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where most objects are too large for it."""
    monkeypatch.setattr(module, "MOST_BLOCKS", most)
    history = HISTORIES[name]
    take(pool, history.stream((None, 0)))
    take(pool, package(history, 1, history.last))
    assert compared.known + compared.searched >= history.last - 1
    assert most == 1 or name not in SMALL or compared.known > compared.searched


@pytest.mark.parametrize("most", [200, module.MOST_ROWS])
def test_more_rows_than_are_kept(most: int, pool: Pool, compared: Compared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", most)
    shape = makestream.Shape(80, 512, 1)
    take(pool, scaling.stream(0, shape))
    streams = [scaling.stream(number, shape, 1) for number in range(1, 11)]
    header = Begin(versioninfo=HeaderType.COMPOUND, toname=b"bench/data@s10")
    take(pool, b"".join([Writer().package(header, NvList()), *streams, scaling.many_increments(1)[-HEADER:]]))
    assert compared.known + compared.searched == 10
    assert compared.known > 5


@pytest.mark.parametrize("between", ["nothing", "another process", "destroyed and merged"])
def test_what_happens_between_two_packages(between: str, pool: Pool, compared: Compared, tmp_path: Path) -> None:
    history = HISTORIES["rs512b"]
    take(pool, history.stream((None, 0)))
    half = history.last // 2
    take(pool, package(history, 1, half))
    if between == "another process":
        with Pool.open(tmp_path / "pool") as other:
            compact(other)
    elif between == "destroyed and merged":
        plan = destroy.plan_snapshots(View(pool), DatasetName.parse("v/x"), f"s1%s{half - 1}", destroy.DestroyOptions())
        destroy.execute(pool, plan)
        compact(pool, pool.dataset(DatasetName.parse("v/x")))
    take(pool, package(history, half + 1, history.last))
    assert compared.known >= history.last - 2
