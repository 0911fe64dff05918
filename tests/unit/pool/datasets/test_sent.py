"""The source's record of what it sent: its order is that of the notes, whatever the clock says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from zkeep.backup.record import Record
from zkeep.names import DatasetName
from zkeep.pool.datasets import sent
from zkeep.pool.datasets.model import Pool, Snapshot

PLACE = "ssh://box/vault/me"


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.create(tmp_path / "pool", "p") as made:
        with made.transaction() as t:
            made.create_dataset(t, DatasetName.parse("p/a"))
        yield made


def note(pool: Pool, guid: int) -> None:
    doc = {"guid": guid, "name": f"backup-{guid}", "ivset_guid": 0, "txg": guid}
    with pool.transaction() as t:
        sent.note(pool, t, Snapshot(pool.dataset(DatasetName.parse("p/a")), doc), PLACE)


@pytest.mark.parametrize("clock", [(1000, 1000, 1000), (1000, 900, 900), (9000, 1000, 1001), (1000, 1001, 1002)])
@pytest.mark.parametrize("guids", [(1, 2, 3), (3, 2, 1), (2, 3, 1)])
def test_what_was_noted_last_is_the_newest(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, clock: tuple[int, ...], guids: tuple[int, ...]
) -> None:
    for now, guid in zip(clock, guids, strict=True):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        note(pool, guid)
    assert [found.guid for found in sent.of_dataset(pool, pool.dataset(DatasetName.parse("p/a")))] == list(guids)
    record = Record()
    record.add(pool, PLACE, [])
    assert record.newest is not None
    assert record.newest.guid == guids[-1]


@pytest.mark.parametrize("clock", [(9000, 1000, 1001), (1000, 1000, 1000), (1000, 900, 2000)])
def test_a_clock_that_was_ahead_counts_for_its_own_note_only(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, clock: tuple[int, ...]
) -> None:
    for guid, now in enumerate(clock, 1):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        note(pool, guid)
        last = sent.last_arrived(pool, pool.dataset(DatasetName.parse("p/a")), PLACE)
        assert last is not None
        assert (last.guid, last.noted_at) == (guid, now)


def test_what_is_noted_again_keeps_its_place(pool: Pool) -> None:
    for guid in (1, 2, 1):
        note(pool, guid)
    assert [found.guid for found in sent.of_dataset(pool, pool.dataset(DatasetName.parse("p/a")))] == [1, 2]
