"""Backups and restores where a disk has no room: one line that names it, and the next call goes on by itself."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backupkit import ZKEEP, Laptop

NO_SPACE = "No space left on device"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2M", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small tmpfs")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> Path:
    room, filler = os.statvfs(disk), disk / "filler"
    filler.write_bytes(bytes(room.f_bavail * room.f_bsize))
    return filler


def one_line(text: str) -> str:
    assert text.count("\n") == 1, text
    assert text.startswith("zkeep: ")
    return text


@pytest.mark.parametrize("size", [1, 4 << 20], ids=["a little", "more than the disk"])
def test_a_full_disk_here_is_named_and_the_next_backup_goes_on(
    size: int, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    laptop = Laptop(tmp_path, monkeypatch, capfd)
    home = small_disk / "home"
    laptop.home = home
    assert laptop.backup().status == 0
    filler = fill(small_disk) if size == 1 else None
    (laptop.source / "b").write_bytes(os.urandom(size))
    done = laptop.backup()
    assert done.status == 1
    assert one_line(done.err) == f"zkeep: cannot back up {laptop.source}: {home}/local: {NO_SPACE}\n"
    (filler or laptop.source / "b").unlink()
    assert laptop.backup().status == 0
    assert len(laptop.snapshots()) == 2
    assert laptop.files().keys() == ({"a", "b"} if filler else {"a"})


@pytest.mark.parametrize("kind", ["file", "image"])
def test_new_data_takes_its_room_once_while_it_is_stored(
    kind: str, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("zkeep.snapshot.writer.SPOOL", 64 << 10)
    monkeypatch.setattr("zkeep.pool.store.staging.STAGE", 256 << 10)
    laptop = Laptop(tmp_path, monkeypatch, capfd)
    laptop.home = small_disk / "home"
    subprocess.run(["mount", "-o", "remount,size=8M", str(small_disk)], check=True)
    large = laptop.source / "b"
    large.write_bytes(os.urandom(5 << 20))
    if kind == "image":
        laptop.source = large
    done = laptop.backup()
    assert done.status == 0, done.err
    assert len(laptop.snapshots()) == 1


def test_a_full_disk_there_is_told_in_a_few_words_and_the_next_backup_goes_on(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    laptop = Laptop(tmp_path, monkeypatch, capfd)
    assert laptop.serve("pool", "create", "small", str(small_disk / "pool")).status == 0
    assert laptop.serve("create", "small/me").status == 0
    laptop.write_ssh("receive,list", root="small/me")
    (laptop.source / "b").write_bytes(os.urandom(3 << 20))
    done = laptop.backup(to="ssh://box/small/me")
    assert done.status == 5
    assert done.err.endswith(f"zkeep on box says: zkeep: cannot receive new filesystem stream: {NO_SPACE}.\n")
    (laptop.source / "c").write_bytes(b"later")
    subprocess.run(["mount", "-o", "remount,size=12M", str(small_disk)], check=True)
    assert laptop.backup(to="ssh://box/small/me").status == 0
    assert len(laptop.snapshots("small/me")) == 2
    assert laptop.files("small/me").keys() == {"a", "b", "c"}


def test_a_full_folder_of_temporary_files_is_named_with_the_way_out(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    laptop = Laptop(tmp_path, monkeypatch, capfd, "receive,list,send")
    assert laptop.backup().status == 0
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    fill(small_disk)
    key = ("-L", laptop.key.as_uri())
    name = laptop.serve("list", "-H", "-o", "name", "-t", "snapshot", "vault/me").out.strip()
    stream = tmp_path / "stream"
    with stream.open("wb") as out:
        home = {**os.environ, "ZKEEP_HOME": str(laptop.server)}
        subprocess.run([*ZKEEP, "send", "-w", name], stdout=out, check=True, env=home)
    restores = ("restore", *key, "-C", str(tmp_path / "out"), "ssh://box/vault/me")
    for words in (restores, (*restores, "a"), ("ls", *key, str(stream))):
        done = laptop.run(*words)
        assert done.status == 1
        said = one_line(done.err)
        assert f"{small_disk}/zkeep-" in said
        assert f"{NO_SPACE}; TMPDIR=FOLDER before the command takes a folder with more room" in said
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
