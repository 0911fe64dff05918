"""receive -c: damaged records are replaced by those of a stream, and by nothing that is not what was stored."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from badinput.badkit import forged
from vectors.histories import DATA, forget_originals, histories, new_pool, put_together, snapshot, take_chain
from zkeep.errors import Refused
from zkeep.format.reader import read_events
from zkeep.format.records import HEADER
from zkeep.names import DatasetName
from zkeep.pool.datasets import destroy
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance.compact import compact
from zkeep.pool.maintenance.heal import Healing, heal
from zkeep.pool.maintenance.scrub import scrub
from zkeep.pool.store.port import segment_name
from zkeep.pool.timeline.segment import Segment

HISTORY = next(h for h in histories(DATA / "histories") if h.name == "rs512b")
LAST = HISTORY.last


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with new_pool(tmp_path) as pool:
        take_chain(pool, HISTORY)
        yield pool


def healed(pool: Pool, content: bytes, number: int | None, *, dry_run: bool = False) -> Healing:
    wanted = snapshot(pool, number) if number is not None else None
    return heal(pool, pool.dataset(DatasetName.parse("v/x")), wanted, read_events(io.BytesIO(content)), dry_run=dry_run)


def name_of(pool: Pool, number: int) -> str:
    run = pool.catalog.get("run", snapshot(pool, number).key)
    assert run is not None
    return segment_name(run["segments"][0])


def flip(pool: Pool, name: str, at: int) -> None:
    path = pool.store.path(name)
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)


def places(pool: Pool, name: str, table: str, least: int = 0) -> list[int]:
    """Where the records of a table lie that are longer than `least`."""
    with pool.store.open(name) as blob:
        rows = Segment(lambda: blob, name).rows(table)
        return np.sort(rows["pos"][rows["size"] > least]).tolist()


@pytest.mark.parametrize("table", ["ranges", "objects", "blocks", "spills"])
@pytest.mark.parametrize("inside", [0, 9, 290, HEADER + 1])
def test_a_damaged_record_of_each_kind_comes_back(pool: Pool, table: str, inside: int) -> None:
    hurt = [n for n in range(LAST + 1) if places(pool, name_of(pool, n), table, inside)]
    if not hurt:
        pytest.skip(f"no {table} of this size in this history")
    number = hurt[0]
    pair = HISTORY.chain[number]
    name = name_of(pool, number)
    for place in places(pool, name, table, inside)[::3]:
        flip(pool, name, place + inside)
    assert not scrub(pool).clean
    assert healed(pool, HISTORY.stream(pair), number, dry_run=True).healed
    assert not scrub(pool).clean
    report = healed(pool, HISTORY.stream(pair), number)
    assert report.left == []
    assert report.healed == report.damaged > 0
    assert scrub(pool).clean
    assert put_together(pool, pair) == HISTORY.stream(pair)
    assert not pool.store.exists(name)
    assert healed(pool, HISTORY.stream(pair), number).damaged == 0


def test_a_full_stream_of_a_later_snapshot_heals_what_lives_on(pool: Pool) -> None:
    name = name_of(pool, 0)
    full = HISTORY.stream((None, LAST))
    alive = 0
    for place in places(pool, name, "blocks")[:40]:
        original = pool.store.path(name).read_bytes()
        flip(pool, name, place + HEADER + 1)
        if not healed(pool, full, LAST).left:
            alive += 1
            assert scrub(pool).clean
            name = name_of(pool, 0)
        else:
            pool.store.path(name).write_bytes(original)
    assert alive
    assert put_together(pool, (None, 0)) == HISTORY.stream((None, 0))


def test_what_was_compacted_heals(pool: Pool) -> None:
    view = View(pool)
    names = ",".join(f"s{n}" for n in range(1, LAST))
    destroy.execute(pool, destroy.plan_snapshots(view, DatasetName.parse("v/x"), names, destroy.DestroyOptions()))
    compact(pool)
    name = name_of(pool, LAST)
    for place in places(pool, name, "blocks")[::5]:
        flip(pool, name, place + HEADER + 1)
    report = healed(pool, HISTORY.stream((None, LAST)), LAST)
    assert report.left == []
    assert scrub(pool).clean
    forget_originals(pool)
    assert put_together(pool, (None, LAST)) == HISTORY.stream((None, LAST))


def test_a_record_that_no_row_stands_for_is_named(pool: Pool) -> None:
    """A FREE: nothing but the running checksum vouches for it."""
    name = name_of(pool, 1)
    content = pool.store.path(name).read_bytes()
    rows = {place for table in ("ranges", "objects", "blocks", "spills") for place in places(pool, name, table)}
    at = next(i for i in range(64, len(content), 4) if content[i : i + 4] == b"\4\0\0\0" and i not in rows)
    flip(pool, name, at + 9)
    report = healed(pool, HISTORY.stream((0, 1)), 1)
    assert report.healed == 0
    assert len(report.left) == 1


def test_nothing_else_is_taken(pool: Pool) -> None:
    name = name_of(pool, 0)
    place = places(pool, name, "blocks")[0]
    flip(pool, name, place + HEADER + 1)

    def change(records: list) -> None:  # type: ignore[type-arg]
        for record in records:
            if record.rtype.name == "WRITE":
                record.payload = bytes(len(record.payload))

    before = pool.store.names("segments")
    report = healed(pool, forged(HISTORY.stream((None, 0)), change), 0)
    assert report.healed == 0
    assert "are not in the stream" in report.left[0]
    assert pool.store.names("segments") == before
    with pytest.raises(Refused, match="of another snapshot"):
        healed(pool, HISTORY.stream((0, 1)), 0)
    with pytest.raises(Refused):
        healed(pool, HISTORY.stream((None, 0))[:-400], 0)
    assert pool.store.names("segments") == before
    assert healed(pool, HISTORY.stream((None, 0)), None).healed == 1


def test_tables_and_files_that_are_missing_are_named(pool: Pool) -> None:
    name = name_of(pool, 0)
    with pool.store.open(name) as blob:
        at = Segment(lambda: blob, name).body[1]
    flip(pool, name, at + 8)
    assert "which no stream heals" in healed(pool, HISTORY.stream((None, 0)), 0).left[0]
    pool.store.delete(name)
    assert "the segment is missing" in healed(pool, HISTORY.stream((None, 0)), 0).left[0]


def test_p3_a_write_that_fails_leaves_the_old_segment(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    name = name_of(pool, 0)
    flip(pool, name, places(pool, name, "blocks")[0] + HEADER + 1)

    def fail(*_: object) -> None:
        raise OSError(28, "the disk is full")

    monkeypatch.setattr("zkeep.pool.maintenance.heal._swap", fail)
    with pytest.raises(OSError, match="full"):
        healed(pool, HISTORY.stream((None, 0)), 0)
    assert pool.store.names("segments") == sorted({name_of(pool, n) for n in range(LAST + 1)})
    assert pool.catalog.keys("compact") == []
    monkeypatch.undo()
    assert healed(pool, HISTORY.stream((None, 0)), 0).healed == 1
