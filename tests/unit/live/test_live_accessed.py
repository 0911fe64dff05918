"""Times of access wait for a while, and are lost by nothing but a crash."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from livekit import OWNER, ByPath, live

from zkeep.live import dataset as live_dataset
from zkeep.live.files import LiveFiles
from zkeep.live.inode import Inode
from zkeep.live.settings import Settings

Zkeep = Callable[..., int]
OLD = 1_000_000_000


@pytest.fixture
def files(zkeep: Zkeep, tmp_path: Path) -> Iterator[ByPath]:
    with live(tmp_path) as files:
        for name in (b"read", b"other"):
            inode = files.make(name, stat.S_IFREG | 0o644, OWNER)
            files.write(inode, b"content", 0)
            files.utimens(inode, OLD, None)
        files.dataset.commit()
        yield files


def access(files: ByPath, name: bytes = b"read") -> Inode:
    inode = files.lookup(name)
    LiveFiles(files.dataset, Settings(atime=True)).read(inode, 0, 10)
    assert inode.fields.atime > OLD
    return inode


def is_committed(files: ByPath) -> bool:
    """Whether all was committed that waited."""
    before = files.dataset.state.guid
    files.dataset.commit_if_due()
    return files.dataset.state.guid != before and not files.dataset.is_dirty


def test_they_are_committed_after_a_while(files: ByPath, monkeypatch: pytest.MonkeyPatch) -> None:
    inode = access(files)
    assert not is_committed(files)
    monkeypatch.setattr(live_dataset, "ACCESSED", 0.0)
    assert is_committed(files)
    assert files.dataset.tree.znode(inode.number).atime == inode.fields.atime
    access(files, b"other")
    monkeypatch.setattr(live_dataset, "ACCESSED", 60.0)
    assert not is_committed(files)


def test_any_other_change_takes_them_along(files: ByPath) -> None:
    inode = access(files)
    files.chmod(files.lookup(b"other"), 0o600)
    assert is_committed(files)
    assert files.dataset.tree.znode(inode.number).atime == inode.fields.atime


def test_a_file_without_a_name_does_not_wait_for_them(files: ByPath) -> None:
    access(files)
    files.unlink(b"other")
    assert is_committed(files)


def test_many_of_them_do_not_wait(files: ByPath, monkeypatch: pytest.MonkeyPatch) -> None:
    access(files)
    monkeypatch.setattr(live_dataset, "MAX_CHANGED", 2)
    assert not is_committed(files)
    access(files, b"other")
    assert is_committed(files)


def test_they_are_committed_at_the_end(zkeep: Zkeep, tmp_path: Path) -> None:
    with live(tmp_path) as files:
        inode = files.make(b"read", stat.S_IFREG | 0o644, OWNER)
        files.utimens(inode, OLD, None)
        files.dataset.commit()
        noted = access(files).fields.atime
    with live(tmp_path) as files:
        assert files.lookup(b"read").fields.atime == noted
