"""An index that lost rows is told from a whole one, even where each row that is left is sound."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from zkeep.errors import Damaged
from zkeep.pool.datasets.model import Pool
from zkeep.pool.store import index
from zkeep.pool.store.catalog import INDEX


def _edit(path: Path, statement: str) -> None:
    db = sqlite3.connect(path / INDEX, isolation_level=None)
    db.execute(statement)
    db.close()


def test_a_row_that_is_gone_is_missed(tmp_path: Path) -> None:
    Pool.create(tmp_path / "p", "p").close()
    _edit(tmp_path / "p", "DELETE FROM doc WHERE kind = 'dataset'")
    with pytest.raises(Damaged, match="documents are missing"):
        Pool.open(tmp_path / "p")


def test_a_row_under_a_wrong_key_is_missed(tmp_path: Path) -> None:
    """Nobody who looks for it would find it, nor see that it is damaged."""
    Pool.create(tmp_path / "p", "p").close()
    _edit(tmp_path / "p", "UPDATE doc SET key = '900000000001' WHERE kind = 'dataset'")
    with pytest.raises(Damaged, match="documents are missing or not what was stored"):
        Pool.open(tmp_path / "p")


def test_an_index_of_an_older_version_whose_triggers_kept_the_tally_goes_on(tmp_path: Path) -> None:
    Pool.create(tmp_path / "p", "p").close()
    for statement in ("DROP TRIGGER doc_goes", "DROP TRIGGER doc_comes", *index._FORMER_TRIGGERS):
        _edit(tmp_path / "p", statement)
    number = (tmp_path / "p" / INDEX).stat().st_ino
    with Pool.open(tmp_path / "p") as pool:
        assert pool.catalog.verify() == []
    assert _triggers(tmp_path / "p") == sorted(index._TRIGGERS)
    assert (tmp_path / "p" / INDEX).stat().st_ino == number
    _edit(tmp_path / "p", "UPDATE doc SET kind = 'datases' WHERE kind = 'dataset'")
    with pytest.raises(Damaged, match="documents are missing or not what was stored"):
        Pool.open(tmp_path / "p")


def test_an_index_without_a_tally_is_made_anew(tmp_path: Path) -> None:
    """Indexes that were made before there was one."""
    Pool.create(tmp_path / "p", "p").close()
    for statement in ("DROP TRIGGER doc_goes", "DROP TRIGGER doc_comes", "DROP TABLE tally"):
        _edit(tmp_path / "p", statement)
    with Pool.open(tmp_path / "p") as pool:
        assert pool.catalog.verify() == []
        assert [d.name.text for d in pool.tree().by_id.values()] == ["p"]


def _triggers(path: Path) -> list[str]:
    db = sqlite3.connect(path / INDEX)
    try:
        return sorted(sql for (sql,) in db.execute("SELECT sql FROM sqlite_master WHERE type = 'trigger'"))
    finally:
        db.close()
