"""P4: between the resolving of a folder's path and the snapshot of its file system, its owner may put a link there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from commandkit import create_encrypted, own_state
from zkeep.capture.snapshot import _opened
from zkeep.cli.main import run


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """What a snapshot of a file system has: a folder, and beside it what its owner made of it in between."""
    (tmp_path / "secret" / "docs").mkdir(parents=True)
    top = tmp_path / "snapshot"
    (top / "home" / "docs").mkdir(parents=True)
    (top / "up").symlink_to("../secret")
    (top / "away").symlink_to(tmp_path / "secret" / "docs")
    (top / "loop").symlink_to("loop")
    (top / "file").write_text("")
    os.mkfifo(top / "fifo")
    return top


@pytest.mark.parametrize("path", ["away", "up", "up/docs", "loop", "file", "fifo", "gone"])
def test_p4_nothing_leads_out_of_a_snapshot(snapshot: Path, path: str) -> None:
    with pytest.raises(OSError, match=path.rpartition("/")[2] if path != "up/docs" else "up"):
        os.close(_opened(f"{snapshot}/{path}"))


@pytest.mark.parametrize("path", ["", "home", "home/docs", "home//docs", "./home/docs/"])
def test_a_folder_in_it_is_opened(snapshot: Path, path: str) -> None:
    fd = _opened(f"{snapshot}/{path}")
    assert os.path.samestat(os.fstat(fd), os.stat(snapshot / path))
    assert len(os.listdir(fd)) == len(os.listdir(snapshot / path))  # it can be read
    os.close(fd)


@pytest.mark.parametrize(("kind", "name"), [("none", "away"), ("auto", "up/docs"), ("none", "home")])
def test_a_folder_may_be_named_by_links(
    snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    own_state(tmp_path, monkeypatch)
    create_encrypted(tmp_path, "v/docs")
    monkeypatch.chdir(snapshot)
    assert run(["snapshot", "--fs-snapshot", kind, "--from", name, "v/docs@1"]) == 0
