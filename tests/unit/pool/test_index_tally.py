"""An index that lost rows is told from a whole one, even where each row that is left is sound."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from zkeep.errors import Damaged
from zkeep.pool.datasets.model import Pool
from zkeep.pool.store.catalog import INDEX


def _edit(path: Path, statement: str) -> None:
    db = sqlite3.connect(path / INDEX, isolation_level=None)
    db.execute(statement)
    db.close()


def test_a_row_that_is_gone_is_missed(tmp_path: Path) -> None:
    Pool.create(tmp_path / "p", "p").close()
    _edit(tmp_path / "p", "DROP TRIGGER doc_goes")
    _edit(tmp_path / "p", "DELETE FROM doc WHERE kind = 'dataset'")
    _edit(tmp_path / "p", "CREATE TRIGGER doc_goes AFTER DELETE ON doc BEGIN SELECT 1; END")
    with pytest.raises(Damaged, match="documents are missing"):
        Pool.open(tmp_path / "p")


def test_a_row_under_a_wrong_key_is_missed(tmp_path: Path) -> None:
    """Nobody who looks for it would find it, nor see that it is damaged."""
    Pool.create(tmp_path / "p", "p").close()
    _edit(tmp_path / "p", "UPDATE doc SET key = '900000000001' WHERE kind = 'dataset'")
    with pytest.raises(Damaged, match="documents are missing or not what was stored"):
        Pool.open(tmp_path / "p")


def test_an_index_with_an_older_tally_gets_a_new_one(tmp_path: Path) -> None:
    Pool.create(tmp_path / "p", "p").close()
    for statement in ("DROP TRIGGER doc_goes", "DROP TRIGGER doc_comes", "ALTER TABLE tally DROP COLUMN places"):
        _edit(tmp_path / "p", statement)
    with Pool.open(tmp_path / "p") as pool:
        assert pool.catalog.verify() == []
    _edit(tmp_path / "p", "UPDATE doc SET kind = 'datases' WHERE kind = 'dataset'")
    with pytest.raises(Damaged, match="documents are missing or not what was stored"):
        Pool.open(tmp_path / "p")


def test_an_index_without_a_tally_gets_one(tmp_path: Path) -> None:
    """Indexes that were made before there was one."""
    Pool.create(tmp_path / "p", "p").close()
    for statement in ("DROP TRIGGER doc_goes", "DROP TRIGGER doc_comes", "DROP TABLE tally"):
        _edit(tmp_path / "p", statement)
    with Pool.open(tmp_path / "p") as pool:
        assert pool.catalog.verify() == []
