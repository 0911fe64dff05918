"""zkeep backup of a folder: the first time, later, and whenever something breaks off."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from backupkit import Laptop


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Laptop:
    return Laptop(tmp_path, monkeypatch, capfd)


def test_the_first_backup_makes_all_and_the_next_sends_what_changed(laptop: Laptop) -> None:
    first = laptop.backup()
    assert (first.status, first.err) == (0, "")
    assert [line.split()[2] for line in first.out.splitlines()] == ["key", "pool", "dataset"]
    assert stat.S_IMODE(laptop.key.stat().st_mode) == 0o600
    assert len(laptop.key.read_bytes()) == 32
    assert laptop.files() == {"a": b"first"}
    (laptop.source / "b").write_bytes(os.urandom(200_000))
    assert laptop.backup().status == 0
    assert laptop.files()["b"] == (laptop.source / "b").read_bytes()
    third = laptop.backup("-j")
    (sent,) = third.events("sent")
    assert int(str(sent["bytes"])) < 20_000
    assert len(laptop.snapshots()) == 3
    # Of its own, only the last is kept here, without contents.
    own = laptop.run("list", "-H", "-p", "-o", "guid,contents", "-t", "snapshot", "-r", "local").out.split()
    assert own == [laptop.snapshots()[-1], "metadata"]
