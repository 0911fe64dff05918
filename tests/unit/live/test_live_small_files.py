"""Small files that are read in a row are read together: as they are, and none is given for another."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from livekit import OWNER, RECORD, ByPath, live

from zkeep.errors import ZkeepError
from zkeep.live import protocol as p
from zkeep.live.fuse import Operations
from zkeep.live.protocol import Op, Request
from zkeep.tree.filesystem import OBJECT_BITS

Zkeep = Callable[..., int]
FILES = 100


def content_of(number: int) -> bytes:
    return b"%d:" % number * (1 + number * 7)


def name_of(number: int) -> bytes:
    return b"file %02d" % number


def make(files: ByPath) -> None:
    for number in range(FILES):
        inode = files.make(name_of(number), stat.S_IFREG | 0o644, OWNER)
        files.write(inode, content_of(number), 0)


def is_known(files: ByPath, name: bytes) -> bool:
    return files.dataset.base.known_block(files.lookup(name).number, 0) is not None


def read(files: ByPath, name: bytes) -> bytes:
    return files.read(files.lookup(name), 0, 1 << 20)


def place_of(files: ByPath, name: bytes) -> tuple[Path, int]:
    """The file of the pool in which a file's only record lies, and where."""
    base = files.dataset.base
    (leaves,) = base.blocks.leaves(base.object(files.lookup(name).number), 0, 1)
    _, owner = base.state.timeline.owner(int(leaves[0]["segment"]))
    return files.dataset.pool.path / owner.name, int(leaves[0]["pos"])


def test_who_reads_two_of_them_has_those_beside_them_read_too(zkeep: Zkeep, tmp_path: Path) -> None:
    with live(tmp_path) as files:
        make(files)
    with live(tmp_path) as files:
        assert read(files, name_of(40)) == content_of(40)
        assert not is_known(files, name_of(42))  # one alone may be all that is read
        assert read(files, name_of(41)) == content_of(41)
        assert is_known(files, name_of(42))
        for number in range(FILES):
            assert read(files, name_of(number)) == content_of(number)


def test_those_that_follow_are_read_together_across_commits(zkeep: Zkeep, tmp_path: Path) -> None:
    with live(tmp_path) as files:
        make(files)
    with live(tmp_path) as files:
        for number in range(FILES):
            files.chmod(files.lookup(name_of(number)), 0o600)
            if not number % 10:
                files.dataset.commit()  # from here on, where their blocks lie is not known
            assert read(files, name_of(number)) == content_of(number)
        assert is_known(files, name_of(FILES - 1))


def test_what_is_written_meanwhile_is_read(zkeep: Zkeep, tmp_path: Path) -> None:
    with live(tmp_path) as files:
        make(files)
    with live(tmp_path) as files:
        read(files, name_of(1))
        read(files, name_of(2))
        for number in (3, 4, 5):
            files.truncate(files.lookup(name_of(number)), 0)
            files.write(files.lookup(name_of(number)), b"new", 0)
        files.dataset.commit()
        files.write(files.lookup(name_of(4)), b"newer", 0)
        assert [read(files, name_of(number)) for number in (3, 4, 5)] == [b"new", b"newer", b"new"]
        files.unlink(name_of(6))
        again = files.make(b"has its number", stat.S_IFREG | 0o644, OWNER)
        files.dataset.commit()
        assert files.read(again, 0, 100) == b""


def test_one_that_is_damaged_harms_no_other(zkeep: Zkeep, tmp_path: Path) -> None:
    with live(tmp_path) as files:
        make(files)
    with live(tmp_path) as files:
        path, at = place_of(files, name_of(50))
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.seek(at + 320)
            file.write(os.urandom(64))
        for number in range(FILES):
            if number != 50:
                assert read(files, name_of(number)) == content_of(number)
        assert not is_known(files, name_of(50))
        with pytest.raises(ZkeepError):
            read(files, name_of(50))


def test_files_of_other_kinds_beside_them_are_read_as_they_are(zkeep: Zkeep, tmp_path: Path) -> None:
    with live(tmp_path) as files:
        make(files)
        for name, size, offset in ((b"large", RECORD * 5, 0), (b"sparse", 10, RECORD * 900), (b"hole", 0, 0)):
            inode = files.make(name, stat.S_IFREG | 0o644, OWNER)
            files.write(inode, b"z" * size, offset)
        files.truncate(files.lookup(b"hole"), 3000)
        files.make(b"link", stat.S_IFLNK | 0o777, OWNER, target=name_of(1))
        files.make(b"folder", stat.S_IFDIR | 0o755, OWNER)
    with live(tmp_path) as files:
        for number in range(FILES):
            assert read(files, name_of(number)) == content_of(number)
        assert read(files, b"hole") == bytes(3000)
        assert read(files, b"large") == b"z" * RECORD * 5
        assert files.read(files.lookup(b"sparse"), RECORD * 900 - 5, 100) == bytes(5) + b"z" * 10
        assert files.lookup(b"link").fields.target == name_of(1)


def test_a_folder_lists_its_files_as_they_lie(zkeep: Zkeep, tmp_path: Path) -> None:
    with live(tmp_path) as files:
        make(files)
        for number in range(0, FILES, 3):  # their numbers are given out again, to names that come last
            files.unlink(name_of(number))
        for number in range(0, FILES, 3):
            files.make(b"new %d" % number, stat.S_IFREG | 0o644, OWNER)
        files.dataset.commit()
        operations = Operations(files, print, lambda: None, acls=False)
        body = memoryview(p.READ_IN.pack(1, 0, 1 << 20, 0, 0, 0, 0))
        found = operations.answer(Request(Op.READDIR, 1, p.ROOT, 0, 0, body))
        assert found is not None
        page, at, numbers = bytes(found[1]), 0, []
        while at < len(page):
            inode, _, length, _ = p.DIRENT.unpack_from(page, at)
            numbers.append(inode & OBJECT_BITS)
            at += len(p.dirent(0, 0, b"x" * length, 0))
        assert numbers[2:] == sorted(numbers[2:])
        assert len(numbers) == FILES + 2
