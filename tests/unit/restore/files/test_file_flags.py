"""Flags of files (chattr) are set last, where the target takes them; else they are counted."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from commandkit import create_encrypted, own_state
from zkeep.cli.main import run
from zkeep.format.znode import APPEND_ONLY, IMMUTABLE, NO_DUMP, Znode
from zkeep.restore.files import attributes
from zkeep.restore.files.attributes import TargetFile, set_flags
from zkeep.restore.files.report import RestoreReport

Zkeep = Callable[..., int]


def node(flags: int) -> Znode:
    names = ("uid", "gid", "size", "atime", "mtime", "ctime", "crtime", "parent", "generation", "rdev", "xattr_folder")
    return Znode(number=5, mode=0o100644, links=1, project=0, flags=flags, **dict.fromkeys(names, 0))


@pytest.mark.parametrize(
    ("flags", "linux"),
    [(IMMUTABLE, 0x10), (APPEND_ONLY, 0x20), (NO_DUMP, 0x40), (IMMUTABLE | NO_DUMP, 0x50), (1 << 35, None), (0, None)],
)
def test_flags_are_added_to_those_of_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: int, linux: int | None
) -> None:
    calls = []

    def ioctl(fd: int, request: int, buffer: bytes) -> bytes:
        calls.append((request & 0xFF, int.from_bytes(buffer[:4], "little")))
        return (0x80000).to_bytes(8, "little")

    monkeypatch.setattr("fcntl.ioctl", ioctl)
    fd = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    report = RestoreReport()
    set_flags(TargetFile(b"file", fd), node(flags), report)
    os.close(fd)
    assert calls == ([] if linux is None else [(1, 0), (2, 0x80000 | linux)])
    assert not report.counts


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTTY, errno.EOPNOTSUPP])
def test_flags_that_the_target_does_not_take_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def ioctl(fd: int, request: int, buffer: bytes) -> bytes:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.ioctl", ioctl)
    fd = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    report = RestoreReport(notes=[])
    set_flags(TargetFile(b"file", fd), node(IMMUTABLE), report)
    set_flags(TargetFile(b"link", None), node(NO_DUMP), report)
    os.close(fd)
    assert report.notes == [(b"file", "file flags"), (b"link", "file flags")]


@pytest.fixture
def zkeep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Zkeep]:
    """A dataset v/home, and the command."""
    own_state(tmp_path, monkeypatch)
    create_encrypted(tmp_path, "v/home")
    yield lambda *words: run(list(words))
    run(["unload-key", "-a"])


FLAGGED = {"file": "i", "log": "a", "folder": "i", "folder/below": "di", "linked": "i", "plain": "d"}


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    """Files with flags; `linked` has a name in another folder as well."""
    top = tmp_path / "source"
    (top / "folder").mkdir(parents=True)
    for name in ("file", "log", "folder/below", "linked", "plain"):
        (top / name).write_bytes(name.encode())
    os.link(top / "linked", top / "folder" / "second name")
    try:
        for name, flags in FLAGGED.items():
            command = ["chattr", f"+{flags}", top / name]
            if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
                pytest.skip("this user, or the file system, sets no flags")
        yield top
    finally:
        subprocess.run(["chattr", "-R", "-f", "-i", "-a", tmp_path], capture_output=True, check=False)


def flags_below(top: Path) -> dict[str, str]:
    found = subprocess.run(["lsattr", "-R", "-d", *top.rglob("*")], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=1) for line in found.splitlines()]
    return {str(Path(path).relative_to(top)): "".join(c for c in flags if c in "iad") for flags, path in rows}


def test_flags_come_back(zkeep: Zkeep, tmp_path: Path, source: Path) -> None:
    assert zkeep("snapshot", "--from", str(source), "v/home@1") == 0
    assert zkeep("extract", "-C", str(tmp_path / "out"), "v/home@1") == 0
    got, want = flags_below(tmp_path / "out"), flags_below(source)
    assert got == want
    assert sorted(want["folder/below"]) == ["d", "i"]
    assert (tmp_path / "out" / "linked").stat().st_nlink == 2
    assert (tmp_path / "out" / "log").read_bytes() == b"log"
    assert not list((tmp_path / "out").glob(".zkeep*")), "no staging folder is left"
    assert zkeep("extract", "-C", str(tmp_path / "out"), "v/home@1") == 0, "what is there stays"


def test_verbose_names_what_has_not_its_flags(
    zkeep: Zkeep, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zkeep("snapshot", "--from", str(source), "v/home@1") == 0
    monkeypatch.setattr(attributes, "_SET_FLAGS", 0x4004BEEF)
    capsys.readouterr()
    assert zkeep("extract", "-v", "-C", str(tmp_path / "out"), "v/home@1") == 0
    told = capsys.readouterr().err
    assert "6 file flags" in told
    assert "folder/below" in told
