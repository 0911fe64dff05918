"""A pool on a disk that nothing can be written to: all that reads works, all that writes says why it does not."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zkeep.cli.main import run
from zkeep.pool.store.catalog import INDEX
from zkeep.pool.store.disk import Disk, DiskEntry

STREAMS = Path(__file__).parent.parent / "data" / "streams"
READS = [
    "list -r -t all vault",
    "get -r all vault",
    "holds -r vault/jambon/blanc@2018",
    "pool list",
    "pool status -v vault",
    "pool get all vault",
    "pool scrub vault",
    "send -Rw vault/jambon/blanc@2019",
    "send -w vault/jambon/blanc@2018",
    "send -nvw vault/jambon/blanc@2018",
    "destroy -nv vault/jambon/blanc@2018",
]
WRITES = [
    "set x:y=z vault",
    "hold keep vault/jambon/blanc@2018",
    "destroy -r vault/jambon",
    "rename vault/jambon vault/other",
    "bookmark vault/jambon/blanc@2018 #b",
    "create vault/new",
    "pool compact vault",
    "pool destroy -f vault",
]


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZKEEP_WAIT", "0.05")
    assert run(["pool", "create", "vault", str(tmp_path / "vault")]) == 0
    stream = (STREAMS / "full-Rw.zfs").read_bytes()
    subprocess.run([sys.executable, "-m", "zkeep", "receive", "vault/jambon"], input=stream, check=True)
    return tmp_path / "vault"


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


@pytest.fixture
def read_only(vault: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, as a disk that is mounted read-only shows it."""
    really = Disk.open

    def open_to_read(self: Disk, entry: DiskEntry, flags: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and vault in (entry.path, *entry.path.parents):
            refuse()
        return really(self, entry, flags)

    for name in ("write", "truncate", "sync", "sync_folder", "link", "rename", "unlink", "mkdir"):
        monkeypatch.setattr(Disk, name, refuse)
    monkeypatch.setattr(Disk, "open", open_to_read)
    access = os.access

    def may(path: Path, mode: int) -> bool:
        return not (mode & os.W_OK and Path(path).is_relative_to(vault)) and access(path, mode)

    monkeypatch.setattr(os, "access", may)
    return vault


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("lacks", ["nothing", "locks", "index", "journal"])
def test_all_that_reads_works_and_writes_nothing(
    vault: Path, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str], lacks: str
) -> None:
    if lacks == "locks":
        for path in (vault / "lock").iterdir():
            path.unlink()
        (vault / "lock").rmdir()
    if lacks == "index":
        (vault / INDEX).unlink()
    if lacks == "journal":  # a rescued disk: what it can still read of it is not enough
        log = next((vault / "journal").glob("*.log"))
        log.write_bytes(log.read_bytes().replace(b"snapshot", b"snapshoe", 1))
    request.getfixturevalue("read_only")
    before = files(vault)
    for line in READS:
        assert run(line.split()) == 0, (line, capfd.readouterr())
    assert files(vault) == before


def test_all_that_writes_is_refused_in_one_line(read_only: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = files(read_only)
    capfd.readouterr()
    for line in WRITES:
        assert run(line.split()) == 1, line
        error = capfd.readouterr().err
        assert error.count("\n") == 1, error
        assert "cannot be written to" in error or "Read-only file system" in error
    assert files(read_only) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_user_who_may_only_read_can_read_all(vault: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folders = [vault, *(p for p in vault.rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    try:
        for line in READS:
            assert run(line.split()) == 0, (line, capfd.readouterr())
    finally:
        for folder in folders:
            folder.chmod(0o700)
