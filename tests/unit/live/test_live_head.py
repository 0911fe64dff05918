"""What was written since the newest snapshot is the dataset's head: it stays, whatever becomes of snapshots."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from livekit import OWNER, live

from zkeep.pool.datasets.head import unnamed
from zkeep.pool.datasets.model import Pool

Zkeep = Callable[..., int]


def write(tmp_path: Path, name: bytes) -> None:
    with live(tmp_path) as files:
        files.write(files.make(name, stat.S_IFREG | 0o644, OWNER), b"content of " + name, 0)


def names(tmp_path: Path) -> list[bytes]:
    with live(tmp_path) as files:
        return sorted(files.dataset.folders.entries(files.dataset.root))


def test_destroying_the_newest_snapshot_leaves_what_was_written(zkeep: Zkeep, tmp_path: Path) -> None:
    write(tmp_path, b"one")
    assert zkeep("snapshot", "v/home@a") == 0
    assert zkeep("snapshot", "v/home@b") == 0
    assert zkeep("destroy", "v/home@a%b") == 0
    assert names(tmp_path) == [b"one"]
    assert zkeep("snapshot", "v/home@c") == 0
    assert zkeep("pool", "compact", "v") == 0
    assert zkeep("pool", "scrub", "v") == 0
    assert zkeep("verify", "-L", f"file://{tmp_path / 'key'}", "v/home@c") == 0


def test_rollback_drops_what_was_written_since(zkeep: Zkeep, tmp_path: Path) -> None:
    write(tmp_path, b"one")
    assert zkeep("snapshot", "v/home@a") == 0
    write(tmp_path, b"two")
    assert names(tmp_path) == [b"one", b"two"]
    assert zkeep("rollback", "v/home@a") == 0
    assert names(tmp_path) == [b"one"]
    assert zkeep("pool", "scrub", "v") == 0


def test_nothing_else_changes_a_dataset_that_is_mounted(
    zkeep: Zkeep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, b"one")
    assert zkeep("snapshot", "v/home@a") == 0
    with live(tmp_path):
        assert zkeep("rollback", "v/home@a") == 5
        assert zkeep("destroy", "-r", "v/home") == 5
        assert zkeep("snapshot", "v/home@b") == 5, "its mount does not answer: there is no process"
    assert "it is mounted" in capsys.readouterr().err
    assert zkeep("destroy", "-r", "v/home") == 0


def test_a_folder_is_not_stored_over_what_was_written(
    zkeep: Zkeep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, b"one")
    source = tmp_path / "source"
    source.mkdir()
    assert zkeep("snapshot", "--from", str(source), "v/home@a") == 1
    assert "was written to since its newest snapshot" in capsys.readouterr().err
    assert names(tmp_path) == [b"one"]


def test_the_catalog_is_rebuilt_with_the_head(zkeep: Zkeep, tmp_path: Path) -> None:
    write(tmp_path, b"one")
    assert zkeep("pool", "scrub", "--rebuild-catalog", "v") == 0
    with Pool.open(tmp_path / "pool") as pool:
        (dataset,) = [each for each in pool.tree().by_id.values() if each.name.text == "v/home"]
        assert unnamed(pool, dataset) is not None
    assert names(tmp_path) == [b"one"]


def test_the_runs_of_many_commits_are_few(zkeep: Zkeep, tmp_path: Path) -> None:
    with live(tmp_path) as files:
        inode = files.make(b"log", stat.S_IFREG | 0o644, OWNER)
        for number in range(80):
            files.write(inode, b"x" * 100, number * 100)
            files.dataset.commit()
        assert files.dataset.pool.runs.count(files.dataset.pool.dataset(files.dataset.name).key) < 50
        assert files.read(inode, 0, 10_000) == b"x" * 8000
    assert len(list((tmp_path / "pool").rglob("*.seg"))) < 50
    assert zkeep("pool", "scrub", "v") == 0


def test_a_sent_increment_holds_all_commits_between(zkeep: Zkeep, tmp_path: Path) -> None:
    """And what is received elsewhere is the same."""
    write(tmp_path, b"one")
    assert zkeep("snapshot", "v/home@a") == 0
    for name in (b"two", b"three"):
        write(tmp_path, name)
    assert zkeep("snapshot", "v/home@b") == 0
    write(tmp_path, b"four")
    out = tmp_path / "stream"
    with out.open("wb") as sink:
        import os

        saved = os.dup(1)
        os.dup2(sink.fileno(), 1)
        try:
            assert zkeep("send", "-w", "-R", "v/home@b") == 0
        finally:
            os.dup2(saved, 1)
            os.close(saved)
    assert zkeep("verify", "-L", f"file://{tmp_path / 'key'}", str(out), "@b") == 0
