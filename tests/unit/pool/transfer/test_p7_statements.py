"""P7: a package of many snapshots costs each of them few statements and calls, however many came before."""

from __future__ import annotations

import io
import os
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from properties.treekit import FULL, INCREMENTS, made, take
from zkeep.pool.datasets.model import Pool
from zkeep.pool.store.index import Index
from zkeep.pool.transfer.receive import ReceiveOptions, receive

MOST = 64
"Statements for a snapshot of its own; 68 where rows that are new were deleted first."


def test_p7_each_further_snapshot_costs_as_few_statements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    run = Index._run

    def counted(self: Index, query: str, *values: object) -> list[object]:
        asked.append(query)
        return run(self, query, *values)

    counts = []
    with Pool.create(tmp_path / "v", "v") as pool:
        take(pool, made(FULL, 100), "v/t@s0")
        monkeypatch.setattr(Index, "_run", counted)
        for number in range(1, 25):
            data = made(INCREMENTS[number % 6], 100 + number, 99 + number)
            asked.clear()
            receive(pool, io.BytesIO(data), f"v/t@s{number}", ReceiveOptions())
            counts.append(len(asked))
    assert median(counts) <= MOST
    assert median(counts[12:]) <= median(counts[:12]) + 1


OPENED = 66
"Files and folders opened for a snapshot that has some records; 79 where each step walked to the journal again."


def test_p7_each_further_snapshot_opens_as_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, opened, really = [], 0, os.open

    def counted(*arguments: Any, **named: Any) -> int:
        nonlocal opened
        opened += 1
        return really(*arguments, **named)

    with Pool.create(tmp_path / "v", "v") as pool:
        take(pool, made(FULL, 100), "v/t@s0")
        monkeypatch.setattr(os, "open", counted)
        for number in range(1, 25):
            opened = 0
            take(pool, made(INCREMENTS[number % 6], 100 + number, 99 + number), f"v/t@s{number}")
            counts.append(opened)
    assert median(counts) <= OPENED
