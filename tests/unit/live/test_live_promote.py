"""Clones and origins are promoted while they are mounted, and both go on."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from livekit import OWNER, ByPath, answering, live
from test_live_clones import get, names, write

Zkeep = Callable[..., int]


def put(files: ByPath, name: bytes) -> None:
    with files.dataset.lock:
        files.write(files.make(name, stat.S_IFREG | 0o644, OWNER), b"content of " + name, 0)


def listed(files: ByPath) -> list[bytes]:
    with files.dataset.lock:
        return sorted(files.dataset.folders.entries(files.dataset.root))


@pytest.mark.parametrize("written", [True, False], ids=["written to", "as they began"])
def test_both_are_mounted(zkeep: Zkeep, tmp_path: Path, written: bool) -> None:
    places = {"runtime": str(tmp_path / "run" / "zkeep")}
    (tmp_path / "run" / "zkeep").mkdir(mode=0o700, exist_ok=True)
    write(tmp_path, b"one")
    assert zkeep("snapshot", "v/home@a") == 0
    assert zkeep("clone", "v/home@a", "v/try") == 0
    with answering(tmp_path, "v/home", **places) as home, answering(tmp_path, "v/try", **places) as other:
        if written:
            put(home, b"two")
            put(other, b"three")
        assert zkeep("promote", "v/try") == 0
        assert get(tmp_path, "v/home", "origin") == "v/try@a"
        assert get(tmp_path, "v/home", "encryptionroot") == "v/try"
        put(home, b"four")
        put(other, b"five")
        for files in (home, other):
            with files.dataset.lock:
                files.dataset.commit()
        put(home, b"six")
        assert zkeep("snapshot", "v/home@b") == 0
        assert zkeep("snapshot", "v/try@b") == 0
        assert zkeep("promote", "v/home") == 0
        put(other, b"seven")
    more = [b"two"] if written else []
    assert names(tmp_path) == sorted([b"four", b"one", b"six", *more])
    more = [b"three"] if written else []
    assert names(tmp_path, "v/try") == sorted([b"five", b"one", b"seven", *more])
    assert zkeep("pool", "compact", "v") == 0
    assert zkeep("pool", "scrub", "v") == 0
    for name in ("v/home@a", "v/home@b", "v/try@b"):
        assert zkeep("verify", "-L", f"file://{tmp_path / 'key'}", name) == 0


def test_a_base_that_could_not_be_opened_is_found_in_the_other(zkeep: Zkeep, tmp_path: Path) -> None:
    write(tmp_path, b"one")
    assert zkeep("snapshot", "v/home@a") == 0
    assert zkeep("clone", "v/home@a", "v/try") == 0
    places = {"runtime": str(tmp_path / "run" / "zkeep")}
    (tmp_path / "run" / "zkeep").mkdir(mode=0o700, exist_ok=True)
    with answering(tmp_path, "v/try", **places) as files:
        with files.dataset.lock:
            files.dataset._base.close()
        assert zkeep("promote", "v/try") == 0
        assert listed(files) == [b"one"]
        put(files, b"two")
    assert names(tmp_path, "v/try") == [b"one", b"two"]


def test_a_mount_that_does_not_answer(zkeep: Zkeep, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, b"one")
    assert zkeep("snapshot", "v/home@a") == 0
    assert zkeep("clone", "v/home@a", "v/try") == 0
    with live(tmp_path, "v/try"):
        assert zkeep("promote", "v/try") == 5
    assert "its mount does not answer" in capsys.readouterr().err
    assert zkeep("promote", "v/home") == 1, "it is no clone"
    assert zkeep("promote", "v/try") == 0
