"""Rebuilding the catalog keeps each transaction that was acknowledged, or says that it cannot and changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from zkeep.errors import Damaged
from zkeep.pool.store.catalog import INDEX, Catalog
from zkeep.pool.store.files import LocalStore

SUFFIXES = ("", "-wal", "-shm")


class Kept:
    """A catalog of whose index older versions are kept, as a power loss may bring them back."""

    def __init__(self, path: Path) -> None:
        self.path, self.pool = path, path / "pool"
        self.pool.mkdir()
        self.count = 0
        with Catalog(LocalStore(self.pool)).transaction() as t:
            t.put("pool", "", {"next_id": 1, "next_txg": 1})

    def put(self, count: int, *, checkpoints: bool = False) -> None:
        catalog = Catalog(LocalStore(self.pool))
        for _ in range(count):
            with catalog.transaction() as t:
                t.put("thing", f"{self.count:03}", {"n": self.count})
            self.count += 1
        if checkpoints:
            catalog.renew()
        catalog.close()

    def keep_index(self) -> None:
        for suffix in SUFFIXES:
            if (self.pool / (INDEX + suffix)).exists():
                shutil.copy(self.pool / (INDEX + suffix), self.path / (INDEX + suffix))

    def lose_index(self) -> None:
        """Put back the index that was kept."""
        for suffix in SUFFIXES:
            (self.pool / (INDEX + suffix)).unlink(missing_ok=True)
            if (self.path / (INDEX + suffix)).exists():
                shutil.copy(self.path / (INDEX + suffix), self.pool / (INDEX + suffix))

    def newest(self, ending: str) -> Path:
        return max((self.pool / "journal").glob(f"*{ending}"))

    def damage(self, line: int) -> None:
        log = self.newest(".log")
        lines = log.read_bytes().splitlines(keepends=True)
        lines[line] = lines[line].replace(b'"n"', b'"m"')
        log.write_bytes(b"".join(lines))

    def check(self) -> None:
        catalog = Catalog.rebuild(LocalStore(self.pool))
        assert catalog.keys("thing") == [f"{n:03}" for n in range(self.count)]
        assert catalog.verify() == []
        catalog.close()
        for suffix in SUFFIXES:
            (self.pool / (INDEX + suffix)).unlink(missing_ok=True)
        self.put(1)
        catalog = Catalog(LocalStore(self.pool))
        assert catalog.keys("thing") == [f"{n:03}" for n in range(self.count)]
        assert catalog.verify() == []


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def test_what_the_journal_has_behind_an_index_that_lags_stays(kept: Kept) -> None:
    kept.put(5)
    kept.keep_index()
    kept.put(5)
    kept.lose_index()
    kept.damage(2)
    kept.check()


def test_a_checkpoint_is_damaged_and_the_index_lags_behind_its_log(kept: Kept) -> None:
    kept.put(5, checkpoints=True)
    kept.keep_index()
    kept.put(5)
    kept.lose_index()
    kept.newest(".ckpt.gz").write_bytes(b"no checkpoint")
    kept.check()


def test_a_checkpoint_is_gone_and_the_index_lags_behind_its_log(kept: Kept) -> None:
    kept.put(5, checkpoints=True)
    kept.put(1)
    kept.keep_index()
    kept.put(5)
    kept.lose_index()
    kept.newest(".ckpt.gz").unlink()
    kept.check()


def test_a_checkpoint_is_damaged_that_the_index_reached_in_the_log_before(kept: Kept) -> None:
    kept.put(3)
    kept.keep_index()
    kept.put(3)
    log = kept.newest(".log")
    before = log.read_bytes()
    kept.put(0, checkpoints=True)
    kept.put(4)
    # The log that the checkpoint replaces is still there; the index saw a part of it only.
    log.write_bytes(before)
    kept.lose_index()
    kept.newest(".ckpt.gz").write_bytes(b"no checkpoint")
    kept.check()


def test_a_checkpoint_is_damaged_and_nothing_follows_it(kept: Kept) -> None:
    kept.put(5, checkpoints=True)
    kept.newest(".ckpt.gz").write_bytes(b"no checkpoint")
    kept.check()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("line", [7, 8])
def test_damage_behind_the_place_of_the_index_is_said_and_changes_nothing(kept: Kept, line: int) -> None:
    kept.put(5)
    kept.keep_index()
    kept.put(5)
    kept.lose_index()
    kept.damage(2)
    kept.damage(line)
    before = files(kept.pool / "journal")
    with pytest.raises(Damaged, match="is missing or damaged"):
        Catalog.rebuild(LocalStore(kept.pool))
    assert files(kept.pool / "journal") == before


def test_a_damaged_checkpoint_that_the_index_did_not_reach_is_said_and_changes_nothing(kept: Kept) -> None:
    kept.put(3)
    kept.keep_index()
    kept.put(3, checkpoints=True)
    kept.put(3)
    kept.lose_index()
    kept.newest(".ckpt.gz").write_bytes(b"no checkpoint")
    before = files(kept.pool / "journal")
    with pytest.raises(Damaged):
        Catalog.rebuild(LocalStore(kept.pool))
    assert files(kept.pool / "journal") == before


@pytest.mark.parametrize("at", range(5))
def test_a_rebuild_that_is_killed_leaves_everything(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The index may fall back as well, by a power loss: the journal alone must have all."""
    kept.put(5)
    kept.keep_index()
    kept.put(5)
    kept.damage(2)
    left = [at]

    def count_down(name: str) -> None:
        genuine = getattr(LocalStore, name)

        def step(self: LocalStore, *words: object) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            genuine(self, *words)

        patch.setattr(LocalStore, name, step)

    with monkeypatch.context() as patch:
        count_down("put")
        count_down("delete")
        with pytest.raises(KeyboardInterrupt):
            Catalog.rebuild(LocalStore(kept.pool))
    kept.lose_index()
    kept.check()
