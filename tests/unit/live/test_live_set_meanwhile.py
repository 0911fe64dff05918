"""Properties that are set while a dataset is mounted hold at once, as with zfs."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from livekit import OWNER, answering, live, mounted

from mountkit import needs_fuse
from zkeep.cli.mount.live import settings_of
from zkeep.errors import Refused
from zkeep.format.posix_acl import ACCESS
from zkeep.format.records import Feature
from zkeep.live import mount_flags
from zkeep.live.dataset import LiveDataset
from zkeep.live.files import LiveFiles
from zkeep.live.mount_flags import MountFlags
from zkeep.live.settings import Settings
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool

Zkeep = Callable[..., int]
MIB = 1 << 20
OLD = 1_000_000_000
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes what a mount forbids")


@pytest.fixture
def folder(zkeep: Zkeep, tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path) as (folder, _):
        yield folder


def refused(action: Callable[[], object]) -> str | None:
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return None


def options(folder: Path) -> set[str]:
    """Options of the mount, of those that root can change."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return {*next(line.split()[3] for line in lines if line.split()[1] == str(folder)).split(",")} & {
        *("nosuid", "nodev", "noexec")
    }


# Quotas


@needs_fuse
@pytest.mark.parametrize(("setting", "name"), [("quota", "v"), ("quota", "v/home"), ("refquota", "v/home")])
def test_a_quota_holds_at_once_and_ends_at_once(zkeep: Zkeep, folder: Path, setting: str, name: str) -> None:
    (folder / "before").write_bytes(os.urandom(2 * MIB))
    os.sync()
    assert zkeep("set", f"{setting}=4M", name) == 0
    assert os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize < 4 * MIB
    assert refused(lambda: (folder / "much").write_bytes(os.urandom(4 * MIB))) == "EDQUOT"
    assert (folder / "before").stat().st_size == 2 * MIB
    (folder / "much").unlink()
    assert zkeep("set", f"{setting}=none", name) == 0
    (folder / "much").write_bytes(os.urandom(4 * MIB))


def test_what_waits_stays_where_a_quota_that_was_set_later_has_no_room(
    zkeep: Zkeep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(tmp_path) as files:
        content = os.urandom(3 * MIB)
        files.write(files.make(b"file", stat.S_IFREG | 0o644, OWNER), content, 0)
        assert zkeep("set", "quota=2M", "v/home") == 0
        assert "v/home: quota is changed: its mount says: " in (told := capsys.readouterr().err)
        assert "the quota is used up" in told
        with pytest.raises(Refused):
            files.write(files.lookup(b"file"), b"more", 0)
        assert files.read(files.lookup(b"file"), 0, 4 * MIB) == content
        assert zkeep("set", "quota=8M", "v/home") == 0
        assert not files.dataset.is_dirty
        files.write(files.lookup(b"file"), b"more", 0)


# Times of access


@needs_fuse
def test_times_of_access_end_and_begin_at_once(zkeep: Zkeep, folder: Path) -> None:
    def is_noted() -> bool:
        with path.open("rb") as file:
            os.utime(path, ns=(OLD, path.stat().st_mtime_ns))
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # else the kernel asks for nothing
            assert file.read() == b"content"
        return path.stat().st_atime_ns != OLD

    path = folder / "file"
    path.write_bytes(b"content")
    assert is_noted()
    assert zkeep("set", "atime=off", "v/home") == 0
    assert not is_noted()
    assert zkeep("inherit", "atime", "v/home") == 0
    assert is_noted()


def test_without_relatime_each_reading_is_noted(zkeep: Zkeep, tmp_path: Path) -> None:
    with live(tmp_path) as files:
        inode = files.make(b"file", stat.S_IFREG | 0o644, OWNER)
        for relatime, expected in ((True, False), (False, True)):
            inode.fields.atime = soon = time.time_ns() - 1
            LiveFiles(files.dataset, Settings(atime=True, relatime=relatime)).read(inode, 0, 1)
            assert (inode.fields.atime != soon) == expected


# How blocks are stored


def stored(files: LiveFiles, name: bytes) -> int:
    """Bytes that a commit takes for a file of compressible content."""
    before = files.dataset.room.used()
    inode = files.make(files.dataset.root, name, stat.S_IFREG | 0o644, OWNER)
    files.write(inode, b"text" * 100_000, 0)
    files.dataset.commit()
    return files.dataset.room.used() - before


def test_compression_of_what_is_written_from_now_on(zkeep: Zkeep, tmp_path: Path) -> None:
    with answering(tmp_path) as files:
        looking = LiveFiles(files.dataset, look=lambda: settings_of(files.dataset.pool, files.dataset.dataset))
        assert stored(looking, b"lz4") < 100_000
        assert zkeep("set", "compression=off", "v/home") == 0
        looking.look_at_properties()
        assert stored(looking, b"off") > 400_000
        assert zkeep("set", "compression=zstd", "v") == 0
        assert zkeep("inherit", "compression", "v/home") == 0
        looking.look_at_properties()
        assert stored(looking, b"zstd") < 100_000
        assert zkeep("set", "compression=lzjb", "v/home") == 0  # nobody writes that any more: it stays
        looking.look_at_properties()
        assert stored(looking, b"same") < 100_000
        assert Feature.ZSTD in Feature(files.dataset.state.doc["features"]), "a stream says what its blocks need"
    assert_all_is_whole(zkeep)


def test_recordsize_of_files_that_begin_or_have_one_block(zkeep: Zkeep, tmp_path: Path) -> None:
    with answering(tmp_path) as files:
        looking = LiveFiles(files.dataset, look=lambda: settings_of(files.dataset.pool, files.dataset.dataset))
        for name, size in ((b"small", 100), (b"large", 100_000), (b"dirty", 10)):
            files.write(files.make(name, stat.S_IFREG | 0o644, OWNER), os.urandom(size), 0)
            if name == b"large":
                files.dataset.commit()
        looking.look_at_properties()
        assert zkeep("set", "recordsize=1M", "v/home") == 0
        looking.look_at_properties()
        files.write(files.make(b"new", stat.S_IFREG | 0o644, OWNER), os.urandom(3 * MIB), 0)
        for name in (b"small", b"large", b"dirty"):
            files.write(files.lookup(name), os.urandom(3 * MIB), 0)
        files.dataset.commit()
        widths = {n: files.dataset.base.dnode(files.lookup(n).number).blksz for n in (b"small", b"large", b"new")}
        assert widths == {b"small": MIB, b"large": 16 << 10, b"new": MIB}
        assert Feature.LARGE_BLOCKS in Feature(files.dataset.state.doc["features"])
        assert zkeep("set", "recordsize=4k", "v/home") == 0
        looking.look_at_properties()
        files.write(files.lookup(b"new"), b"x" * MIB, 5 * MIB)
        files.write(files.make(b"newer", stat.S_IFREG | 0o644, OWNER), os.urandom(MIB), 0)
        files.dataset.commit()
        assert files.dataset.base.dnode(files.lookup(b"newer").number).blksz == 4 << 10
        assert files.read(files.lookup(b"new"), 5 * MIB, 2 * MIB) == b"x" * MIB
    assert_all_is_whole(zkeep)


def assert_all_is_whole(zkeep: Zkeep) -> None:
    assert zkeep("snapshot", "v/home@end") == 0
    assert zkeep("verify", "v/home@end") == 0


# Attributes, and .zfs


@needs_fuse
def test_attributes_of_users_are_there_as_xattr_says(zkeep: Zkeep, folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(b"")
    os.setxattr(path, "user.a", b"1")
    assert zkeep("set", "xattr=off", "v/home") == 0
    assert os.listxattr(path) == []
    assert refused(lambda: os.getxattr(path, "user.a")) == "ENOTSUP"
    assert refused(lambda: os.setxattr(path, "user.b", b"1")) == "ENOTSUP"
    assert refused(lambda: os.removexattr(path, "user.a")) == "ENOTSUP"
    assert zkeep("set", "xattr=sa", "v/home") == 0
    assert os.getxattr(path, "user.a") == b"1"


NOBODY = 0xFFFFFFFF
ACL = b"\2\0\0\0" + b"".join(
    tag.to_bytes(2, "little") + bits.to_bytes(2, "little") + who.to_bytes(4, "little")
    for tag, bits, who in [(1, 6, NOBODY), (2, 6, 65534), (4, 0, NOBODY), (16, 6, NOBODY), (32, 0, NOBODY)]
)


@needs_fuse
@needs_root
def test_acls_end_at_once_and_begin_again(zkeep: Zkeep, tmp_path: Path) -> None:
    """What the kernel keeps of them is dropped: who may read by an ACL alone may not while there are none."""

    def may_read() -> bool:
        top = os.open(folder, os.O_PATH)  # the folders above are nobody's but ours
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", f"/proc/self/fd/{top}/file"]
        done = subprocess.run(command, check=False, capture_output=True, pass_fds=[top])
        os.close(top)
        return done.returncode == 0

    assert zkeep("set", "acltype=posix", "v/home") == 0
    with mounted(tmp_path, "-o", "allow_other") as (folder, _):
        folder.chmod(0o755)
        (folder / "file").write_bytes(b"content")
        os.setxattr(folder / "file", ACCESS, ACL)
        assert may_read()
        assert zkeep("set", "acltype=off", "v/home") == 0
        assert not may_read()
        assert (folder / "file").read_bytes() == b"content"
        assert refused(lambda: os.setxattr(folder / "file", ACCESS, ACL)) == "ENOTSUP"
        assert os.listxattr(folder / "file") == []
        assert zkeep("set", "acltype=posix", "v/home") == 0
        assert may_read()


@needs_fuse
def test_acls_that_begin_with_the_next_mount_are_said_to(
    zkeep: Zkeep, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "file").write_bytes(b"")
    assert zkeep("set", "acltype=posix", "v/home") == 0
    assert "v/home: acltype is changed" in (told := capsys.readouterr().err)
    assert "will hold from the next mount on" in told
    assert refused(lambda: os.setxattr(folder / "file", ACCESS, ACL)) == "ENOTSUP"


@needs_fuse
def test_the_folder_of_snapshots_is_hidden_visible_or_gone(zkeep: Zkeep, folder: Path) -> None:
    (folder / "file").write_bytes(b"content")
    assert zkeep("set", "snapdir=visible", "v/home") == 0
    assert os.listdir(folder) == ["file"], "there is no snapshot yet"
    assert zkeep("snapshot", "v/home@one") == 0
    assert sorted(os.listdir(folder)) == [".zfs", "file"]
    assert [entry.is_dir() for entry in os.scandir(folder) if entry.name == ".zfs"] == [True]
    assert zkeep("set", "snapdir=disabled", "v") == 0
    assert zkeep("inherit", "snapdir", "v/home") == 0
    assert os.listdir(folder) == ["file"]
    time.sleep(1.1)  # the kernel may keep the name for a second
    assert refused(lambda: os.listdir(folder / ".zfs" / "snapshot")) == "ENOENT"
    assert zkeep("set", "snapdir=hidden", "v/home") == 0
    assert os.listdir(folder) == ["file"]
    assert os.listdir(folder / ".zfs" / "snapshot") == ["one"]


# What the mount itself forbids


@needs_fuse
@needs_root
def test_root_changes_what_a_mount_forbids_while_it_stands(zkeep: Zkeep, folder: Path) -> None:
    program = folder / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    run = lambda: subprocess.run([program], check=True)  # noqa: E731
    assert options(folder) == set()
    with program.open("rb"):  # it is in use all the time
        assert zkeep("set", "exec=off", "v/home") == 0
        assert refused(run) == "EACCES"
        assert zkeep("set", "setuid=off", "devices=off", "v") == 0
        assert options(folder) == {"nosuid", "nodev", "noexec"}
        assert zkeep("inherit", "exec", "v/home") == 0
        assert options(folder) == {"nosuid", "nodev"}
        run()


def test_what_cannot_be_changed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "36 35 0:7777777 / /mnt/a rw,nosuid,nodev,relatime - fuse.zkeep v/x rw\n"
    monkeypatch.setattr(mount_flags, "MOUNTS", tmp_path / "mountinfo")
    (tmp_path / "mountinfo").write_text(line)
    flags = MountFlags("/mnt/a")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    flags.set(frozenset())
    flags.set(frozenset({"nosuid"}))
    with pytest.raises(Refused, match="exec will hold from the next mount on: only root"):
        flags.set(frozenset({"noexec"}))
    # Something else was mounted over it: that is left alone.
    (tmp_path / "mountinfo").write_text(line + "37 36 0:8888888 / /mnt/a rw,relatime - tmpfs none rw\n")
    flags.set(frozenset({"noexec"}))


# What fails


def test_properties_hold_also_where_the_commit_before_fails(
    zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(self: LiveDataset, *, even_if_clean: bool = False) -> None:
        raise Refused("the disk is full")

    with answering(tmp_path) as files:
        files.dataset.room.left()
        with monkeypatch.context() as patch:
            patch.setattr(LiveDataset, "commit", fails)
            assert zkeep("set", "quota=1M", "v/home") == 0
        assert "v/home: quota is changed: its mount says: 'the disk is full'" in capsys.readouterr().err
        assert files.dataset.room.left() <= MIB


def test_datasets_that_are_not_mounted_are_not_asked(zkeep: Zkeep, tmp_path: Path) -> None:
    assert zkeep("create", "v/home/other") == 0
    with Pool.open(tmp_path / "pool") as pool:
        assert settings_of(pool, pool.dataset(DatasetName("v/home/other"))).snapdir == "hidden"
    assert zkeep("set", "quota=1M", "recordsize=4k", "v/home") == 0
