"""System calls on a mounted dataset have the results and errors that they have in a folder of this system."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import sqlite3
import stat
import subprocess
from collections.abc import Callable
from ctypes import CDLL, get_errno
from pathlib import Path

import pytest
from livekit import ZKEEP, mounted, renameat2

from mountkit import needs_fuse

Zkeep = Callable[..., int]
PUNCH, KEEP = 0x2, 0x1
SIZE = 300_000
OPERATIONS = int(os.environ.get("ZKEEP_FSX", "150"))


# One file, changed in every way


def _write(fd: int, chance: random.Random) -> None:
    os.pwrite(fd, chance.randbytes(chance.randrange(1, 70_000)), chance.randrange(SIZE))


def _truncate(fd: int, chance: random.Random) -> None:
    os.ftruncate(fd, chance.randrange(SIZE))


def _punch(fd: int, chance: random.Random) -> None:
    at, size = chance.randrange(SIZE), chance.randrange(1, 100_000)
    if CDLL(None, use_errno=True).fallocate(fd, PUNCH | KEEP, _long(at), _long(size)):
        raise OSError(get_errno(), "fallocate")


def _grow(fd: int, chance: random.Random) -> None:
    os.posix_fallocate(fd, chance.randrange(SIZE), chance.randrange(1, 50_000))


def _map(fd: int, chance: random.Random) -> None:
    size = os.fstat(fd).st_size
    if size:
        with mmap.mmap(fd, size) as mapped:
            at = chance.randrange(size)
            data = chance.randbytes(min(chance.randrange(1, 30_000), size - at))
            mapped[at : at + len(data)] = data


def _append(fd: int, chance: random.Random) -> None:
    end = os.fstat(fd).st_size
    os.pwrite(fd, chance.randbytes(chance.randrange(1, 5_000)), end)


def _sync(fd: int, chance: random.Random) -> None:
    if chance.random() < 0.2:
        os.fsync(fd)


def _long(number: int) -> object:
    from ctypes import c_long

    return c_long(number)


STEPS = (_write, _write, _write, _truncate, _punch, _grow, _map, _append, _sync)


@needs_fuse
def test_a_file_that_is_changed_in_every_way_is_like_one_of_this_system(zkeep: Zkeep, tmp_path: Path) -> None:
    with mounted(tmp_path) as (top, _):
        fds = [os.open(path / "fsx", os.O_RDWR | os.O_CREAT, 0o600) for path in (top, tmp_path)]
        names = random.Random(7)
        for number in range(OPERATIONS):
            step = names.choice(STEPS)
            for fd in fds:
                step(fd, random.Random(number))
            at, size = names.randrange(SIZE), names.randrange(1, 90_000)
            mine, theirs = (os.pread(fd, size, at) for fd in fds)
            assert mine == theirs, f"operation {number}, {step.__name__}: at {at}"
            assert os.fstat(fds[0]).st_size == os.fstat(fds[1]).st_size
        for fd in fds:
            os.close(fd)
        assert (top / "fsx").read_bytes() == (tmp_path / "fsx").read_bytes()
    with mounted(tmp_path) as (top, _):
        assert (top / "fsx").read_bytes() == (tmp_path / "fsx").read_bytes()


# Errors


def _calls(top: Path) -> dict[str, Callable[[], object]]:
    """Calls that fail, or have a result worth a look; in a folder with `file`, `folder` (full), `empty`, `link`."""
    at = lambda name: os.fsencode(top / name)  # noqa: E731

    def opened(name: str, flags: int, then: Callable[[int], object] = lambda fd: None) -> object:
        fd = os.open(top / name, flags, 0o600)
        try:
            return then(fd)
        finally:
            os.close(fd)

    return {
        "open what is not there": lambda: opened("none", os.O_RDONLY),
        "open below a file": lambda: opened("file/none", os.O_RDONLY),
        "create below a file": lambda: opened("file/none", os.O_CREAT | os.O_WRONLY),
        "create what is there": lambda: opened("file", os.O_CREAT | os.O_EXCL | os.O_WRONLY),
        "create over a link": lambda: opened("dangling", os.O_CREAT | os.O_EXCL | os.O_WRONLY),
        "open a folder to write": lambda: opened("folder", os.O_WRONLY),
        "open a file as a folder": lambda: opened("file", os.O_RDONLY | os.O_DIRECTORY),
        "open a link, not following": lambda: opened("link", os.O_RDONLY | os.O_NOFOLLOW),
        "a loop": lambda: opened("loop", os.O_RDONLY),
        "a long name": lambda: opened("x" * 256, os.O_RDONLY),
        "create a long name": lambda: opened("x" * 256, os.O_CREAT | os.O_WRONLY),
        "the longest name": lambda: opened("x" * 255, os.O_CREAT | os.O_WRONLY),
        "mkdir what is there": lambda: os.mkdir(top / "folder"),
        "mkdir below what is not there": lambda: os.mkdir(top / "none" / "more"),
        "mkdir below a file": lambda: os.mkdir(top / "file" / "more"),
        "rmdir a full one": lambda: os.rmdir(top / "folder"),
        "rmdir a file": lambda: os.rmdir(top / "file"),
        "rmdir what is not there": lambda: os.rmdir(top / "none"),
        "rmdir .": lambda: os.rmdir(f"{top}/folder/."),
        "rmdir ..": lambda: os.rmdir(f"{top}/folder/.."),
        "unlink a folder": lambda: os.unlink(top / "empty"),
        "unlink what is not there": lambda: os.unlink(top / "none"),
        "link a folder": lambda: os.link(top / "folder", top / "folder2"),
        "link to what is there": lambda: os.link(top / "file", top / "other"),
        "link what is not there": lambda: os.link(top / "none", top / "file9"),
        "symlink to what is there": lambda: os.symlink("x", top / "file"),
        "symlink without target": lambda: os.symlink("", top / "nothing"),
        "symlink to a long path": lambda: os.symlink("x" * 5000, top / "nothing"),
        "readlink of a file": lambda: os.readlink(top / "file"),
        "readlink": lambda: os.readlink(top / "link"),
        "rename what is not there": lambda: os.rename(top / "none", top / "file"),
        "rename over a full folder": lambda: os.rename(top / "empty", top / "folder"),
        "rename a folder over a file": lambda: os.rename(top / "empty", top / "file"),
        "rename a file over a folder": lambda: os.rename(top / "file", top / "empty"),
        "rename below itself": lambda: os.rename(top / "folder", top / "folder" / "inside" / "new"),
        "rename over the folder above": lambda: os.rename(top / "folder" / "inside", top / "folder"),
        "rename to itself": lambda: os.rename(top / "file", top / "file"),
        "rename of two links": lambda: os.rename(top / "hard", top / "file"),
        "rename, not replacing": lambda: renameat2(at("file"), at("other"), 1),
        "exchange with nothing": lambda: renameat2(at("file"), at("none"), 2),
        "exchange": lambda: renameat2(at("file"), at("folder"), 2),
        "exchange back": lambda: renameat2(at("file"), at("folder"), 2),
        "rename with both flags": lambda: renameat2(at("file"), at("other"), 3),
        "truncate a folder": lambda: os.truncate(top / "folder", 0),
        "truncate below zero": lambda: os.truncate(top / "file", -1),
        "truncate": lambda: os.truncate(top / "file", 10),
        "write to what is read only": lambda: opened("file", os.O_RDONLY, lambda fd: os.write(fd, b"x")),
        "read what is written only": lambda: opened("file", os.O_WRONLY, lambda fd: os.read(fd, 1)),
        "read a folder": lambda: opened("folder", os.O_RDONLY, lambda fd: os.read(fd, 1)),
        "fsync of a folder": lambda: opened("folder", os.O_RDONLY, os.fsync),
        "no such attribute": lambda: os.getxattr(top / "file", "user.none"),
        "remove no such attribute": lambda: os.removexattr(top / "file", "user.none"),
        "an attribute": lambda: os.setxattr(top / "file", "user.one", b"1"),
        "the same again": lambda: os.setxattr(top / "file", "user.one", b"1", os.XATTR_CREATE),
        "replace none": lambda: os.setxattr(top / "file", "user.two", b"1", os.XATTR_REPLACE),
        "its names": lambda: os.listxattr(top / "file"),
        "an attribute of an unknown kind": lambda: os.setxattr(top / "file", "unknown.one", b"1"),
        "an attribute of a link": lambda: os.setxattr(top / "dangling", "user.one", b"1", follow_symlinks=False),
        "no data behind the end": lambda: opened("file", os.O_RDONLY, lambda fd: os.lseek(fd, 99, os.SEEK_DATA)),
        "a hole at the end": lambda: opened("file", os.O_RDONLY, lambda fd: os.lseek(fd, 0, os.SEEK_HOLE)),
        "two locks": lambda: _two_locks(top / "file"),
        "a socket is no file": lambda: opened("socket", os.O_RDONLY),
        "mode of a fifo": lambda: oct(os.lstat(top / "fifo").st_mode),
        "links": lambda: [os.stat(top / name).st_nlink for name in ("file", "hard", "folder", "empty")],
        "a file without a name": lambda: _nameless(top),
        "a folder that was removed": lambda: _removed_folder(top),
        "set-user-ID after a write": lambda: _set_user_id(top / "program", write=True),
        "set-user-ID after chown": lambda: _set_user_id(top / "program2", write=False),
        "sticky and more": lambda: (os.chmod(top / "empty", 0o3777), oct(os.stat(top / "empty").st_mode))[1],
        "all names": lambda: sorted(os.listdir(top)),
    }


def _two_locks(path: Path) -> object:
    with path.open("r+b") as one, path.open("r+b") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _nameless(top: Path) -> object:
    """It is made without a name, gets one, loses it again, and is there as long as it is open."""
    fd = os.open(top, os.O_TMPFILE | os.O_RDWR, 0o600)
    try:
        os.write(fd, b"content")
        seen = [os.fstat(fd).st_nlink]
        os.link(f"/proc/self/fd/{fd}", top / "named", follow_symlinks=True)
        seen.append(os.fstat(fd).st_nlink)
        os.unlink(top / "named")
        return [*seen, os.fstat(fd).st_nlink, os.pread(fd, 99, 0), (top / "named").exists()]
    finally:
        os.close(fd)


def _removed_folder(top: Path) -> object:
    os.mkdir(top / "gone")
    fd = os.open(top / "gone", os.O_RDONLY)
    try:
        os.rmdir(top / "gone")
        os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    finally:
        os.close(fd)


def _set_user_id(path: Path, *, write: bool) -> object:
    path.write_bytes(b"program")
    path.chmod(0o6755)
    if write:
        with path.open("ab") as file:
            file.write(b"more")
    else:
        os.chown(path, os.getuid(), os.getgid())
    return oct(path.stat().st_mode)


def _outcome(call: Callable[[], object]) -> object:
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _fill(top: Path) -> None:
    for name in ("folder", "empty", "folder/inside"):
        (top / name).mkdir()
    for name in ("file", "other"):
        (top / name).write_bytes(name.encode() * 3)
    os.link(top / "file", top / "hard")
    for name, target in (("link", "file"), ("dangling", "none-such"), ("loop", "loop")):
        os.symlink(target, top / name)
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "socket", stat.S_IFSOCK | 0o600)


@needs_fuse
def test_errors_are_those_of_this_system(zkeep: Zkeep, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    with mounted(tmp_path) as (top, _):
        for folder in (top, own):
            _fill(folder)
        theirs = _calls(own)
        different = {
            name: (mine, expected)
            for name, call in _calls(top).items()
            if (mine := _outcome(call)) != (expected := _outcome(theirs[name]))
        }
        assert not different


@needs_fuse
def test_a_database_survives_a_killed_mount(zkeep: Zkeep, tmp_path: Path) -> None:
    with mounted(tmp_path) as (top, process):
        base = sqlite3.connect(top / "db", isolation_level=None)
        base.execute("pragma journal_mode=wal")
        base.execute("pragma synchronous=full")
        base.execute("create table numbers(number integer primary key, more blob)")
        for number in range(6):
            base.execute("insert into numbers values(?, randomblob(3000))", (number,))
        process.kill()
        process.wait()
        with pytest.raises(sqlite3.Error):
            base.execute("insert into numbers values(99, 'lost')")
        with pytest.raises(OSError, match="not connected"):
            os.listdir(top)
        subprocess.run([*ZKEEP, "mount", "v/home", str(top)], check=True)  # it takes away what was left mounted
        assert zkeep("unmount", str(top)) == 0
        assert not os.path.ismount(top)
    with mounted(tmp_path) as (top, _):
        base = sqlite3.connect(top / "db")
        assert base.execute("pragma integrity_check").fetchone() == ("ok",)
        assert base.execute("select count(*) from numbers").fetchone() == (6,)
        base.close()
