"""What cannot be looked at stays as the last snapshot has it, and every file has as many names as it says."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from capturekit import extracted
from historykit import KEY, check_objects

from zkeep.capture import ahead, contents, previous
from zkeep.capture.scan import Folders, Node, Scanner, Seen
from zkeep.names import SnapshotName
from zkeep.pool.datasets.model import Pool
from zkeep.snapshot.open import OpenSnapshot
from zkeep.tree.filesystem import Filesystem

Zkeep = Callable[..., int]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """`a/one` and `d/two` are one file, and so are `d/three` and `d/four`."""
    path = tmp_path / "source"
    for name in ("a", "d/sub"):
        (path / name).mkdir(parents=True)
    (path / "a" / "one").write_bytes(b"linked")
    os.link(path / "a" / "one", path / "d" / "two")
    (path / "d" / "three").write_bytes(b"both here")
    os.link(path / "d" / "three", path / "d" / "four")
    os.link(path / "d" / "three", path / "d" / "sub" / "five")
    return path


def hide(monkeypatch: pytest.MonkeyPatch, *paths: bytes) -> None:
    """The status of these entries cannot be had, and folders among them cannot be listed."""
    genuine = Scanner._entries

    def entries(self: Scanner, node: Node) -> list[Seen]:
        prefix = node.path + b"/" if node.parent else b""
        return [
            Seen(e.name, e.kind, None, e.stat.st_ino, "I/O error") if e.stat and prefix + e.name in paths else e
            for e in genuine(self, node)
        ]

    monkeypatch.setattr(Scanner, "_entries", entries)
    monkeypatch.setattr(previous, "_listing", None)  # it would look past this


def unlisted(monkeypatch: pytest.MonkeyPatch, *paths: bytes) -> None:
    """These folders cannot be listed."""
    genuine = Scanner._entries

    def entries(self: Scanner, node: Node) -> list[Seen]:
        if node.path in paths:
            raise OSError(errno.EACCES, "Permission denied")
        return genuine(self, node)

    monkeypatch.setattr(Scanner, "_entries", entries)
    monkeypatch.setattr(previous, "_listing", None)  # it would look past this


def take(zkeep: Zkeep, source: Path, name: str, status: int, *words: str) -> None:
    assert zkeep("snapshot", "--from", str(source), *words, f"v/home@{name}") == status


ALL = {".", "a", "a/one", "d", "d/sub", "d/two", "d/three", "d/four", "d/sub/five"}


@pytest.mark.parametrize("how", [hide, unlisted])
@pytest.mark.parametrize("gone", ["a/one", None])
def test_a_folder_that_cannot_be_looked_at_keeps_its_links(
    zkeep: Zkeep, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, how: Any, gone: str | None
) -> None:
    take(zkeep, source, "1", 0)
    if gone:
        (source / gone).unlink()
    with monkeypatch.context() as patch:
        how(patch, b"d")
        for turn in ("2", "3"):
            take(zkeep, source, turn, 3)
            check_objects(tmp_path / "pool", f"v/home@{turn}")
            assert set(extracted(zkeep, tmp_path, f"v/home@{turn}")) == ALL - {gone}
            assert (tmp_path / f"out-v-home@{turn}" / "d" / "two").read_bytes() == b"linked"
    take(zkeep, source, "4", 0)
    check_objects(tmp_path / "pool", "v/home@4")


def test_names_whose_status_cannot_be_had_stay_whichever_folder_the_file_is_known_in(
    zkeep: Zkeep, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(zkeep, source, "1", 0)
    for turn, paths in (("2", (b"d/two",)), ("3", (b"a/one",)), ("4", (b"a/one", b"d/two", b"d/sub/five"))):
        with monkeypatch.context() as patch:
            hide(patch, *paths)
            os.utime(source / "d")
            take(zkeep, source, turn, 3)
        check_objects(tmp_path / "pool", f"v/home@{turn}")
        assert set(extracted(zkeep, tmp_path, f"v/home@{turn}")) == ALL
    (source / "d" / "three").unlink()
    with monkeypatch.context() as patch:
        hide(patch, b"d/four", b"d/sub/five")
        take(zkeep, source, "5", 3)
    check_objects(tmp_path / "pool", "v/home@5")
    assert set(extracted(zkeep, tmp_path, "v/home@5")) == ALL - {"d/three"}


EXCLUDED = [
    ("/d/four", "/d/three", {"d/three"}),
    ("/d/four", "/d/two", {"d/two"}),
    ("/d/two", "/a/one", {"a/one"}),
    ("/d/sub/five", "/d/four", {"d/four"}),
    ("/d/two", "/d/sub", {"d/sub", "d/sub/five"}),
]


@pytest.mark.parametrize(("before", "now", "gone"), EXCLUDED)
def test_as_many_names_count_as_are_not_left_out(
    zkeep: Zkeep, tmp_path: Path, source: Path, before: str, now: str, gone: set[str]
) -> None:
    """Another name is left out than last time: as many as before, and the folder did not change."""
    os.utime(source / "d")
    for turn in ("0", "1"):
        take(zkeep, source, turn, 0, "--exclude", before)
    for turn in ("2", "3"):
        take(zkeep, source, turn, 0, "--exclude", now)
        check_objects(tmp_path / "pool", f"v/home@{turn}")
        assert set(extracted(zkeep, tmp_path, f"v/home@{turn}")) == ALL - gone


def test_the_other_name_of_a_file_below_an_unreadable_folder_is_left_out(
    zkeep: Zkeep, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(zkeep, source, "1", 0)
    with monkeypatch.context() as patch:
        unlisted(patch, b"d")
        for turn in ("2", "3"):
            take(zkeep, source, turn, 3, "--exclude", "/a/one")
            check_objects(tmp_path / "pool", f"v/home@{turn}")
            assert set(extracted(zkeep, tmp_path, f"v/home@{turn}")) == ALL - {"a/one"}
    take(zkeep, source, "4", 0)
    check_objects(tmp_path / "pool", "v/home@4")
    assert set(extracted(zkeep, tmp_path, "v/home@4")) == ALL


def test_names_that_came_back_under_their_folder_are_counted_again(
    zkeep: Zkeep, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A correction of the count must reach the cache: renaming a folder changes no file in it."""
    take(zkeep, source, "1", 0)
    (source / "d").rename(tmp_path / "aside")
    take(zkeep, source, "2", 0)
    check_objects(tmp_path / "pool", "v/home@2")
    (tmp_path / "aside").rename(source / "d")
    take(zkeep, source, "3", 0)
    check_objects(tmp_path / "pool", "v/home@3")
    shutil.rmtree(source / "a")
    take(zkeep, source, "4", 0)
    check_objects(tmp_path / "pool", "v/home@4")


# Extended attributes


def xattrs(tmp_path: Path, name: str, path: bytes) -> dict[bytes, bytes]:
    with Pool.open(tmp_path / "pool", "v") as pool:
        snapshot = pool.snapshot(SnapshotName.parse(f"v/home@{name}"))
        with OpenSnapshot(pool, snapshot, lambda wrapped: KEY) as base:
            tree = Filesystem(base)
            (number,) = [e.number for e in tree.names(tree.root) if e.name == path] if path else [tree.root]
            return dict(tree.xattrs(tree.znode(number)))


class Xattrs:
    """Extended attributes of every file, some of which cannot be read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.values: dict[str, bytes] = {}
        self.errors: dict[str, int] = {}
        self.list_error = 0
        monkeypatch.setattr(ahead, "_read_files", None)
        monkeypatch.setattr(contents.os, "listxattr", self._list)
        monkeypatch.setattr(contents.os, "getxattr", self._get)

    def _list(self, place: object, **_: object) -> list[str]:
        if self.list_error:
            raise OSError(self.list_error, os.strerror(self.list_error))
        return list(self.values)

    def _get(self, place: object, name: str, **_: object) -> bytes:
        if name in self.errors:
            raise OSError(self.errors[name], os.strerror(self.errors[name]))
        return self.values[name]


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_a_value_that_cannot_be_read_is_reported_and_the_last_one_stays(
    zkeep: Zkeep,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    source, path = tmp_path / "flat", b"" if kind == "folder" else b"it"
    source.mkdir()
    make = {"file": lambda: (source / "it").write_bytes(os.urandom(9)), "link": lambda: (source / "it").symlink_to("x")}
    make.get(kind, lambda: None)()
    fake = Xattrs(monkeypatch)
    fake.values = {"user.a": b"1", "user.large": os.urandom(40_000), "user.b": b"2"}
    take(zkeep, source, "1", 0)
    before = {os.fsencode(name): value for name, value in fake.values.items()}
    assert xattrs(tmp_path, "1", path) == before

    fake.values |= {"user.b": b"3", "user.new": b"4"}
    fake.errors = {"user.a": errno.EIO, "user.new": errno.EACCES, "user.large": errno.EIO}
    os.utime(source / os.fsdecode(path), follow_symlinks=False)
    capsys.readouterr()
    take(zkeep, source, "2", 3)
    assert "cannot be read" in capsys.readouterr().err
    assert xattrs(tmp_path, "2", path) == before | {b"user.b": b"3"}
    fake.errors, fake.list_error = {}, errno.EIO
    take(zkeep, source, "3", 3)
    assert xattrs(tmp_path, "3", path) == before | {b"user.b": b"3"}
    fake.list_error = 0
    take(zkeep, source, "4", 0)
    assert xattrs(tmp_path, "4", path) == {os.fsencode(name): value for name, value in fake.values.items()}
    check_objects(tmp_path / "pool", "v/home@4")


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.ENODATA])
def test_where_there_are_none_or_they_went_nothing_is_reported(
    zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (tmp_path / "flat").mkdir()
    fake = Xattrs(monkeypatch)
    if code == errno.ENOTSUP:
        fake.list_error = code
    else:
        fake.values, fake.errors = {"user.a": b"1"}, {"user.a": code}
    take(zkeep, tmp_path / "flat", "1", 0)
    assert xattrs(tmp_path, "1", b"") == {}


def unopened(monkeypatch: pytest.MonkeyPatch, *paths: bytes) -> None:
    """These folders cannot even be opened."""
    genuine = Folders.fd

    def fd(self: Folders, node: Node) -> int:
        if node.path in paths:
            raise OSError(errno.EACCES, "Permission denied")
        return genuine(self, node)

    monkeypatch.setattr(Folders, "fd", fd)


@pytest.mark.parametrize("how", [hide, unlisted, unopened])
@pytest.mark.parametrize("long", [False, True])
def test_what_was_moved_out_of_a_folder_that_cannot_be_read_has_its_new_name_only(
    zkeep: Zkeep, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, how: Any, long: bool
) -> None:
    """Else a folder would lie in two folders. `long`: a name that only a fat ZAP can hold."""
    stays = {"n" * 60} if long else set()
    for name in ("d/alone", *(f"d/{name}" for name in stays)):
        (source / name).write_bytes(b"one name")
    (source / "d" / "sub" / "deep").mkdir()
    (source / "d" / "other").mkdir()
    take(zkeep, source, "1", 0)
    for name in ("d/alone", "d/other", "d/sub/deep"):
        (source / name).rename(source / "a" / name.rpartition("/")[2])
    with monkeypatch.context() as patch:
        how(patch, b"d")
        for turn in ("2", "3"):
            take(zkeep, source, turn, 3)
            check_objects(tmp_path / "pool", f"v/home@{turn}")
            found = set(extracted(zkeep, tmp_path, f"v/home@{turn}"))
            assert found == ALL | {"a/alone", "a/other", "a/deep"} | {f"d/{name}" for name in stays}
    take(zkeep, source, "4", 0)
    check_objects(tmp_path / "pool", "v/home@4")
