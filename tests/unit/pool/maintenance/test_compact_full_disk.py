"""Compaction where the disk is full: small steps first, what needs more room is told, and nothing is lost."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vectors.histories import DATA, History, histories, new_pool, point, put_together, take_chain
from zkeep.names import DatasetName
from zkeep.pool.datasets import destroy
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance import compact as compaction
from zkeep.pool.maintenance.compact import compact
from zkeep.pool.maintenance.scrub import scrub
from zkeep.pool.maintenance.step import CompactionStep
from zkeep.pool.timeline import tiers

HISTORY: History = {h.name: h for h in histories(DATA / "histories")}["rs512b"]


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """A pool in which compaction has something to do."""
    monkeypatch.setattr(tiers, "SMALLEST", 1)
    monkeypatch.setattr(tiers, "FLOOR", 1 << 29)
    monkeypatch.setattr(tiers, "WASTED", 0.001)
    with new_pool(tmp_path) as made:
        take_chain(made, HISTORY)
        plan = destroy.plan_snapshots(View(made), DatasetName.parse("v/x"), "s1,s3", destroy.DestroyOptions())
        destroy.execute(made, plan)
        yield made


def answers(pool: Pool) -> dict[Any, bytes]:
    left = {number for _, number in HISTORY.pairs if point(pool, number)}
    return {
        pair: put_together(pool, pair)
        for pair in HISTORY.pairs
        if pair[1] in left and (pair[0] is None or pair[0] in left)
    }


def test_what_a_full_disk_has_no_room_for_is_left_and_told(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    before = answers(pool)
    monkeypatch.setattr(compaction, "free_bytes", lambda pool: 0)
    report = compact(pool)
    assert report.merged == 0
    assert report.lacking > 0
    assert answers(pool) == before
    need = report.lacking
    monkeypatch.setattr(compaction, "free_bytes", lambda pool: need)
    report = compact(pool)
    assert (report.lacking, report.skipped) == (0, [])
    assert report.merged > 0
    assert report.freed > 0
    assert answers(pool) == before
    assert not scrub(pool).errors


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_meanwhile_ends_a_step_not_the_compaction(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    before, write, calls = answers(pool), CompactionStep._write, list[int]()

    def fails_once(step: CompactionStep, chosen: list[str], txg: int) -> list[str]:
        calls.append(txg)
        if len(calls) == 1:
            write(step, chosen, txg)
            raise OSError(code, "full")
        return write(step, chosen, txg)

    monkeypatch.setattr(CompactionStep, "_write", fails_once)
    assert compact(pool).lacking > 0
    assert compact(pool).lacking == 0
    assert answers(pool) == before
    assert not scrub(pool).errors


def test_other_errors_of_the_disk_are_not_taken_for_a_full_one(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(step: CompactionStep, chosen: list[str], txg: int) -> list[str]:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(CompactionStep, "_write", fails)
    with pytest.raises(OSError, match="broken"):
        compact(pool)
