"""A live dataset through FUSE: what programs do with files, snapshots meanwhile, and a process that is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from livekit import mounted

from mountkit import needs_fuse
from zkeep.cli import destroy
from zkeep.errors import TryAgain
from zkeep.names import DatasetName
from zkeep.pool.datasets.destroy import lock_name
from zkeep.pool.datasets.model import Pool

Zkeep = Callable[..., int]


@needs_fuse
def test_programs_write_and_snapshots_are_taken_meanwhile(zkeep: Zkeep, tmp_path: Path) -> None:
    with mounted(tmp_path) as (top, _):
        (top / "folder").mkdir()
        (top / "folder" / "file").write_bytes(b"first")
        assert zkeep("snapshot", "v/home@one") == 0
        with (top / "folder" / "file").open("r+b") as file:
            os.unlink(top / "folder" / "file")
            file.write(b"it has no name")
            file.seek(0)
            assert file.read() == b"it has no name"
            os.fchmod(file.fileno(), 0o600)
            os.utime(file.fileno(), ns=(1, 2))
            assert os.fstat(file.fileno()).st_mtime_ns == 2
        assert os.listdir(top / "folder") == []
        assert os.listdir(top) == ["folder"]
        old = top / ".zfs" / "snapshot" / "one"
        assert (old / "folder" / "file").read_bytes() == b"first"
        assert os.listdir(old.parent) == ["one"]
        with pytest.raises(OSError, match="Read-only"):
            (old / "folder" / "more").mkdir()
        with pytest.raises(OSError, match="Read-only"):
            os.rename(top / "folder", old / "folder2")
        (top / "new").write_bytes(b"second")
    assert zkeep("snapshot", "v/home@two") == 0
    for snapshot, path in (("one", "folder/file"), ("two", "new")):
        assert zkeep("cat", "-L", f"file://{tmp_path / 'key'}", f"v/home@{snapshot}", path) == 0
    assert zkeep("pool", "scrub", "v") == 0


@needs_fuse
def test_all_that_have_a_mountpoint_are_mounted(zkeep: Zkeep, tmp_path: Path) -> None:
    assert zkeep("set", f"mountpoint={tmp_path / 'home'}", "v/home") == 0
    assert zkeep("create", "v/home/child") == 0
    assert zkeep("unload-key", "v/home") == 0
    try:
        assert zkeep("mount", "v/home") == 1
        assert zkeep("mount", "-a", "-l") == 0
        (tmp_path / "home" / "child" / "file").write_bytes(b"below")
        assert zkeep("unload-key", "v/home") == 5
    finally:
        assert zkeep("unmount", str(tmp_path / "home" / "child"), str(tmp_path / "home")) == 0
    assert zkeep("snapshot", "-r", "v/home@a") == 0
    assert zkeep("cat", "v/home/child@a", "file") == 0


@needs_fuse
def test_what_was_synced_survives_a_killed_process(zkeep: Zkeep, tmp_path: Path) -> None:
    with mounted(tmp_path) as (top, process):
        with (top / "synced").open("wb") as file:
            file.write(b"x" * 300_000)
            os.fsync(file.fileno())
        (top / "lost").write_bytes(b"perhaps")
        process.send_signal(signal.SIGKILL)
        process.wait()
    with mounted(tmp_path) as (top, _):
        assert (top / "synced").read_bytes() == b"x" * 300_000
    assert zkeep("pool", "scrub", "v") == 0


@needs_fuse
def test_what_cannot_be_committed_stays_mounted_and_what_is_lost_is_told(zkeep: Zkeep, tmp_path: Path) -> None:
    folder = tmp_path / "mnt"
    with mounted(tmp_path) as (top, process):
        (top / "file").write_bytes(os.urandom(3 << 20))
        assert zkeep("set", "quota=1M", "v/home") == 0
        assert zkeep("unmount", str(folder)) == 5
        assert os.path.ismount(folder)
        assert zkeep("unmount", "-f", str(folder)) == 1, "what was written last is lost"
        assert process.wait() == 1


@needs_fuse
def test_a_refused_destroy_loses_nothing_of_what_waits(
    zkeep: Zkeep, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = os.urandom(3 << 20)
    with mounted(tmp_path) as (top, _), Pool.open(tmp_path / "pool") as pool:
        (top / "file").write_bytes(content)
        assert zkeep("set", "quota=1M", "v/home") == 0
        # It cannot be committed: then it is not unmounted, unless it is wanted so.
        assert zkeep("destroy", "v/home") == 5
        assert "with -f it goes" in capfd.readouterr().err
        assert (top / "file").read_bytes() == content
        # It can be, and then it cannot be destroyed: somebody receives into it.
        assert zkeep("set", "quota=none", "v/home") == 0
        with pool.store.lock(lock_name(pool.dataset(DatasetName.parse("v/home")))):
            (top / "more").write_bytes(content)
            assert zkeep("destroy", "v/home") == 5
    with mounted(tmp_path) as (top, _):
        assert (top / "file").read_bytes() == content


@needs_fuse
def test_what_a_refused_destroy_lost_after_all_is_told(
    zkeep: Zkeep, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise TryAgain("dataset is busy")

    with mounted(tmp_path) as (top, process):
        (top / "file").write_bytes(os.urandom(3 << 20))
        assert zkeep("set", "quota=1M", "v/home") == 0
        with monkeypatch.context() as patched:
            patched.setattr(destroy, "_execute", refuse)
            assert zkeep("destroy", "-f", "v/home") == 5
        assert "what was written to it last is lost" in capfd.readouterr().err
        process.wait()
        assert zkeep("destroy", "-f", "v/home") == 0
