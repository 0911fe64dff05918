"""Files that a caller names may be anything: what is no file is neither read without end nor replaced."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from zkeep.capture import previous
from zkeep.capture.previous import Previous, Rows
from zkeep.cli.common import named_files
from zkeep.cli.common.named_files import read_small, replace_file
from zkeep.cli.main import run
from zkeep.errors import Refused

Make = Callable[[Path], object]


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket has 107 bytes at most
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


SPECIAL: dict[str, Make] = {
    "folder": lambda path: path.mkdir(),
    "socket": _socket,
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a folder": lambda path: path.symlink_to("."),
}
NO_FILE: dict[str, Make] = {
    **SPECIAL,
    "nothing": lambda path: None,
    "link to nothing": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("kind", NO_FILE)
def test_what_is_no_file_is_not_read(kind: str, tmp_path: Path) -> None:
    NO_FILE[kind](tmp_path / "x")
    with pytest.raises(Refused, match="cannot read"):
        read_small(str(tmp_path / "x"))


def test_a_file_is_read_as_far_as_one_of_its_kind_may_be_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_files, "MOST", 10)
    (tmp_path / "x").write_bytes(b"0123456789")
    assert read_small(str(tmp_path / "x")) == b"0123456789"
    (tmp_path / "x").write_bytes(b"0123456789a")
    with pytest.raises(Refused, match="more than 10 bytes"):
        read_small(str(tmp_path / "x"))


def test_a_pipe_is_read() -> None:
    """A pipe, as `--exclude-from <(...)` is one."""
    reads, writes = os.pipe()
    os.write(writes, b"*.o\n")
    os.close(writes)
    assert read_small(f"/dev/fd/{reads}") == b"*.o\n"
    os.close(reads)


REPLACED: dict[str, Make] = {**SPECIAL, "pipe": os.mkfifo}


@pytest.mark.parametrize("kind", REPLACED)
def test_what_is_no_file_is_not_replaced(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    REPLACED[kind](path)
    before = os.lstat(path)
    with pytest.raises(Refused, match="cannot write"):
        replace_file(path, b"new")
    assert os.path.samestat(before, os.lstat(path))
    assert os.listdir(tmp_path) == ["x"]


def test_a_file_is_replaced_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("there/file")
    replace_file(tmp_path / "link", b"new", 0o640)
    assert (tmp_path / "there/file").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "there/file").stat().st_mode) == 0o640
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "there") == ["file"]


@pytest.mark.skipif(os.geteuid() != 0, reason="makes links of another user")
@pytest.mark.parametrize("through", [[], ["ours"], ["ours", "ours too"]], ids=len)
def test_what_a_link_of_another_user_leads_to_is_not_replaced(through: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "theirs").symlink_to("file")
    os.lchown(tmp_path / "theirs", 65534, 65534)
    last = "theirs"
    for name in through:
        (tmp_path / name).symlink_to(last)
        last = name
    with pytest.raises(Refused, match="a link of another user"):
        replace_file(tmp_path / last, b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.skipif(os.geteuid() != 0, reason="makes links of another user")
@pytest.mark.parametrize("name", ["zkeep.1", "zkeep-send.1", "x.prom"])
def test_no_verb_writes_where_another_users_link_leads(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / name).symlink_to("file")
    os.lchown(tmp_path / name, 65534, 65534)
    words = ["metrics", "-o", str(tmp_path / name)] if name == "x.prom" else ["help", "--man-pages", str(tmp_path)]
    assert run(words) == 1
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_shim_is_written_under_a_name_that_was_not_there(tmp_path: Path) -> None:
    """Also where somebody put links under all names that can be guessed."""
    (tmp_path / "file").write_bytes(b"old")
    folder = tmp_path / "bin"
    folder.mkdir()
    guessed = {f".{name}.{os.getpid()}.new" for name in ("zfs", "zpool")}
    for name in guessed:
        (folder / name).symlink_to(tmp_path / "file")
    assert run(["shim", str(folder)]) == 0
    assert (tmp_path / "file").read_bytes() == b"old"
    assert set(os.listdir(folder)) == {"zfs", "zpool", *guessed}
    assert stat.S_IMODE((folder / "zfs").stat().st_mode) == 0o755


def test_verbs_that_write_files_replace_no_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    os.mkfifo(tmp_path / "x")
    os.mkfifo(tmp_path / "zkeep.1")
    os.mkfifo(tmp_path / "zfs")
    assert run(["metrics", "-o", str(tmp_path / "x")]) == 1
    assert run(["help", "--man-pages", str(tmp_path)]) == 1
    assert run(["shim", str(tmp_path)]) == 1
    assert all(stat.S_ISFIFO((tmp_path / name).stat().st_mode) for name in ("x", "zkeep.1", "zfs"))


def test_keys_are_read_from_files_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["server", "--root", "v/a", "--print-authorized-keys", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


# The state of files between two snapshots of a folder

MARK = {"snapshot": 1}


def _cache(path: Path) -> None:
    rows = Rows()
    rows.add(*range(1, len(previous.ROW.names or ()) + 1))
    previous.save(path, Previous(rows.array(), np.zeros(0, previous.EXTRA), 34), MARK)


def _lying(head: bytes) -> Make:
    return lambda path: path.write_bytes(previous.MAGIC + head + b"\n")


BROKEN: dict[str, Make] = {
    **SPECIAL,
    "pipe": os.mkfifo,
    "no such magic": lambda path: path.write_bytes(b"x" * (1 << 20)),
    "more rows than there are": _lying(b'{"snapshot": 1, "root": 34, "rows": 99999999999999, "extras": 0}'),
    "less than no rows": _lying(b'{"snapshot": 1, "root": 34, "rows": -1, "extras": 0}'),
    "rows without a number": _lying(b'{"snapshot": 1, "root": 34, "rows": Infinity, "extras": 0}'),
    "no object": _lying(b"[]"),
    "deep": _lying(b"[" * 60000),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_cache_is_none_and_is_replaced(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.capture"
    BROKEN[kind](path)
    assert previous.load(path, MARK) is None
    if stat.S_ISDIR(os.lstat(path).st_mode):
        return
    os.mkfifo(path.with_suffix(".new"))
    _cache(path)
    found = previous.load(path, MARK)
    assert found is not None
    assert (found.root, len(found.rows)) == (34, 1)


def test_a_pipe_to_which_nobody_writes_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setattr(named_files, "WRITER_SECONDS", 0.1)
    (tmp_path / "docs").mkdir()
    for words in (
        ("backup", "--exclude-from", str(pipe), str(tmp_path / "docs"), "ssh://box/vault/a"),
        ("server", "--root", "vault/a", "--print-authorized-keys", str(pipe)),
        ("key", "restore", "-o", str(tmp_path / "key"), str(pipe)),
        ("key", "check", "-i", str(pipe)),
    ):
        status = run(list(words))
        out, err = capfd.readouterr()
        assert (status, out, err.count("\n")) == (1, "", 1), err
        assert "a pipe to which nobody wrote for 0.1 seconds" in err


@pytest.mark.parametrize("pause", [0, 0.15])
def test_a_pipe_is_read_to_its_end_however_slow_its_writer_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    """Who has opened it may take as long as a search through a disk does."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setattr(named_files, "WRITER_SECONDS", 5 if pause == 0 else 0.1)
    writer = os.open(pipe, os.O_RDWR) if pause else -1

    def write() -> None:
        with pipe.open("wb", buffering=0) as file:
            for piece in (b"a\n", b"b\n" * 40_000):
                time.sleep(pause)
                file.write(piece)
        if pause:
            os.close(writer)

    thread = Thread(target=write)
    thread.start()
    assert read_small(str(pipe)) == b"a\n" + b"b\n" * 40_000
    thread.join()


def test_a_pipe_of_the_shell_may_be_empty(tmp_path: Path) -> None:
    """`<(true)` is one: it is not waited for."""
    reads, writes = os.pipe()
    os.write(writes, b"*.o\n")
    os.close(writes)
    assert read_small(f"/dev/fd/{reads}") == b"*.o\n"
    assert read_small(f"/dev/fd/{reads}") == b""
    os.close(reads)
