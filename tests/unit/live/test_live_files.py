"""What a live dataset keeps beside names and contents, and what it refuses."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from livekit import OWNER, RECORD, ByPath, live

from zkeep.format.posix_acl import ACCESS, DEFAULT
from zkeep.live import dataset as dataset_module
from zkeep.live.files import KEEP_SIZE, PUNCH_HOLE, SEEK_DATA, SEEK_HOLE
from zkeep.live.settings import Settings

Zkeep = Callable[..., int]
FILE = stat.S_IFREG | 0o644


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NONE = 0xFFFFFFFF
WITH_A_USER = acl((1, 7, NONE), (2, 6, 1000), (4, 5, NONE), (0x10, 7, NONE), (0x20, 0, NONE))


def error_of(action: Callable[[], object]) -> str:
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "no error"


def test_extended_attributes_of_every_size_are_kept_and_replaced(zkeep: Zkeep, tmp_path: Path) -> None:
    values = {b"user.small": b"x", b"user.spilled": b"s" * 5000, b"user.large": bytes(range(256)) * 200}
    with live(tmp_path) as files:
        inode = files.make(b"file", FILE, OWNER)
        for name, value in values.items():
            files.xattrs.set(inode, name, value)
        files.dataset.commit()
        files.xattrs.set(inode, b"user.large", b"L" * 40_000)
        files.xattrs.remove(inode, b"user.spilled")
        files.dataset.commit()
        assert error_of(lambda: files.xattrs.get(inode, b"user.spilled")) == "ENODATA"
        assert error_of(lambda: files.xattrs.set(inode, b"user.small", b"", 1)) == "EEXIST"
        assert error_of(lambda: files.xattrs.set(inode, b"user.none", b"", 2)) == "ENODATA"
        assert error_of(lambda: files.xattrs.set(inode, b"system.other", b"")) == "ENOTSUP"
    with live(tmp_path) as files:
        inode = files.lookup(b"file")
        assert files.dataset.xattrs(inode) == {b"user.small": b"x", b"user.large": b"L" * 40_000}
        files.chmod(inode, 0o600)
        files.dataset.commit()
        assert files.xattrs.get(inode, b"user.large") == b"L" * 40_000
        files.unlink(b"file")
        files.dataset.commit()
        assert len(files.dataset.numbers._free) >= 3, "the objects of its attributes are free again"
    assert zkeep("snapshot", "v/home@s") == 0
    assert zkeep("verify", "-L", f"file://{tmp_path / 'key'}", "v/home@s") == 0


def test_acls_follow_the_mode_and_are_inherited(zkeep: Zkeep, tmp_path: Path) -> None:
    with live(tmp_path) as plain:
        files = ByPath(plain.dataset, Settings(acls=True))
        folder = files.make(b"folder", stat.S_IFDIR | 0o755, OWNER)
        files.xattrs.set(folder, DEFAULT, WITH_A_USER)
        inode = files.make(b"folder/file", stat.S_IFREG | 0o640, OWNER, umask=0o077)
        assert inode.fields.mode & 0o777 == 0o640
        access = acl((1, 6, NONE), (2, 6, 1000), (4, 5, NONE), (0x10, 4, NONE), (0x20, 0, NONE))
        assert files.xattrs.get(inode, ACCESS) == access
        files.chmod(inode, 0o770)
        assert files.xattrs.get(inode, ACCESS)[28:36] == struct.pack("<HHI", 0x10, 7, NONE)
        below = files.make(b"folder/below", stat.S_IFDIR | 0o777, OWNER)
        assert files.xattrs.get(below, DEFAULT) == WITH_A_USER
        files.xattrs.set(inode, ACCESS, acl((1, 6, NONE), (4, 4, NONE), (0x20, 4, NONE)))
        assert inode.fields.mode & 0o777 == 0o644
        assert files.xattrs.names(inode) == []
        assert error_of(lambda: files.xattrs.set(inode, DEFAULT, WITH_A_USER)) == "EACCES"
        assert error_of(lambda: files.xattrs.set(inode, ACCESS, WITH_A_USER[:-3])) == "EINVAL"
        assert error_of(lambda: files.xattrs.set(inode, ACCESS, WITH_A_USER[:4])) == "EINVAL"


def test_what_was_read_stays_whatever_is_written(zkeep: Zkeep, tmp_path: Path) -> None:
    """An answer is not copied: it is on its way to the kernel when the next request changes the file."""
    first, second = os.urandom(5 * RECORD), os.urandom(5 * RECORD)
    with live(tmp_path) as files:
        inode = files.make(b"file", FILE, OWNER)
        files.write(inode, first, 0)
        waiting = files.view(inode, 0, len(first))
        files.dataset.commit()
        stored = files.view(inode, 0, len(first))
        parts = [files.view(inode, at, 1000) for at in range(0, len(first), 1000)]
        assert all(memoryview(part).readonly for part in (stored, *parts))
        files.write(inode, second, 0)
        assert files.read(inode, 0, len(second)) == second
        files.dataset.commit()
        files.truncate(inode, 0)
        files.dataset.commit()
        assert waiting == stored == first
        assert b"".join(parts) == first


def test_holes_are_told_and_made(zkeep: Zkeep, tmp_path: Path) -> None:
    with live(tmp_path) as files:
        inode = files.make(b"file", FILE, OWNER)
        files.write(inode, b"x" * 4 * RECORD, 0)
        files.write(inode, b"end", 10 * RECORD)
        for _ in range(2):
            assert files.seek(inode, 5, SEEK_DATA) == 5
            assert files.seek(inode, 5, SEEK_HOLE) == 4 * RECORD
            assert files.seek(inode, 5 * RECORD, SEEK_DATA) == 10 * RECORD
            assert files.seek(inode, 10 * RECORD, SEEK_HOLE) == 10 * RECORD + 3
            files.dataset.commit()
        files.allocate(inode, PUNCH_HOLE | KEEP_SIZE, RECORD, RECORD)
        for _ in range(2):
            assert files.seek(inode, 0, SEEK_HOLE) == RECORD
            assert files.seek(inode, RECORD, SEEK_DATA) == 2 * RECORD
            files.dataset.commit()
        assert error_of(lambda: files.seek(inode, 11 * RECORD, SEEK_DATA)) == "ENXIO"
        assert error_of(lambda: files.allocate(inode, 0x40, 0, 1)) == "ENOTSUP"


def test_files_without_a_name_are_in_the_delete_queue_until_the_next_mount(zkeep: Zkeep, tmp_path: Path) -> None:
    with live(tmp_path) as files:
        inode = files.make(b"file", FILE, OWNER)
        files.write(inode, b"open", 0)
        files.open(inode)
        files.unlink(b"file")
        files.dataset.commit()
        assert files.read(inode, 0, 10) == b"open"
        assert [value for _, value in files.dataset.tree.zap(3).numbers()] == [inode.number]
    with live(tmp_path) as files:
        files.dataset.commit()
        assert list(files.dataset.tree.zap(3).numbers()) == []


def test_a_quota_refuses_what_is_written_and_not_the_commit(zkeep: Zkeep, tmp_path: Path) -> None:
    assert zkeep("set", "quota=4M", "v/home") == 0
    with live(tmp_path) as files:
        inode = files.make(b"file", FILE, OWNER)
        wrote = 0

        def fill() -> None:
            nonlocal wrote
            while True:
                wrote += files.write(inode, os.urandom(64 << 10), wrote)

        assert error_of(fill) == "EDQUOT"
        assert 2 << 20 < wrote < 4 << 20
        files.dataset.commit()
        files.unlink(b"file")
        files.dataset.commit()
        inode = files.make(b"other", FILE, OWNER)
        files.write(inode, b"there is room again", 0)


def test_inodes_that_are_in_use_are_not_forgotten(
    zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_module, "MAX_CACHED", 3)
    with live(tmp_path) as files:
        for number in range(6):
            files.make(b"%d" % number, FILE, OWNER)
        held = files.make(b"held", FILE, OWNER)
        files.write(held, b"no name", 0)
        files.open(held)
        files.unlink(b"held")
        files.dataset.commit()
        files.make(b"new", FILE, OWNER)
        files.dataset.forget_unused()
        files.write(files.lookup(b"0"), b"content", 0)
        assert files.dataset.inode(held.number) is held
        assert files.read(held, 0, 100) == b"no name"
        names = sorted(files.dataset.folders.entries(files.dataset.root))
        assert names == [*(b"%d" % number for number in range(6)), b"new"]
        files.release(held)
    with live(tmp_path) as files:
        assert files.read(files.lookup(b"0"), 0, 100) == b"content"
        assert files.lookup(b"new").fields.links == 1


@pytest.mark.parametrize("name", [b"user.", b"trusted.", b"security."])
def test_an_extended_attribute_has_a_name(zkeep: Zkeep, tmp_path: Path, name: bytes) -> None:
    with live(tmp_path) as files:
        inode = files.make(b"file", stat.S_IFREG | 0o644, OWNER)
        for call in (lambda: files.xattrs.set(inode, name, b"x"), lambda: files.xattrs.get(inode, name)):
            with pytest.raises(OSError) as error:  # noqa: PT011 (which error is looked at below)
                call()
            assert error.value.errno == errno.EINVAL
