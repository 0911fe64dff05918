"""Targets of ordinary users, and of others who change them meanwhile: nothing is lost, nothing is given away."""

from __future__ import annotations

import errno
import os
import signal
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from oddkit import CHAR, FILE, FOLDER, LINK, PIPE, ROOT, SOCKET, as_user, folder, node
from sealedkit import Entries
from sealing import Thing
from targetkit import F, extracted, failed, made

from zkeep.restore.files import extract
from zkeep.restore.files.extract import Extraction, ExtractOptions
from zkeep.tree.filesystem import Filesystem


def read_only_tree() -> tuple[Entries, list[Thing]]:
    inside = [(b"x", F + 1, FILE), (b"y", F + 2, FILE), (b"sub", F + 3, FOLDER)]
    things = [
        folder(F, ROOT, inside, mode=0o555),
        node(F + 1, 0o100444, content=b"X", parent=F),
        node(F + 2, 0o100400, content=b"Y", parent=F),
        folder(F + 3, F, [(b"z", F + 4, FILE)], mode=0o000),
        node(F + 4, 0o100000, content=b"Z", parent=F + 3),
    ]
    return [(b"d", F, FOLDER)], things


def test_a_users_read_only_folders_keep_no_call_out() -> None:
    def work(home: Path) -> None:
        entries, things = read_only_tree()
        with made(home, entries, *things) as filesystem:
            for paths in ([b"d/x"], [b"d/y"], [], [b"d/sub/z"], []):
                assert not failed(extracted(filesystem, home / "out", *paths)), paths
                assert stat.S_IMODE((home / "out" / "d").stat().st_mode) == 0o555
            assert extracted(filesystem, home / "out").progress.kept == 4
            (home / "out" / "d").chmod(0o700)
            assert stat.S_IMODE((home / "out" / "d" / "sub").stat().st_mode) == 0
            (home / "out").chmod(0o555)
            extracted(filesystem, home / "out", b"d")
            assert stat.S_IMODE((home / "out").stat().st_mode) == 0o555

    as_user(work)


def test_a_users_devices_of_two_names_cost_nothing_else() -> None:
    def work(home: Path) -> None:
        entries = [(b"c1", F, CHAR), (b"c2", F, CHAR), (b"h1", F + 1, FILE), (b"h2", F + 1, FILE)]
        things = node(F, 0o020600, rdev=1 << 20 | 3, links=2), node(F + 1, content=b"precious", links=2)
        with made(home, entries, *things) as filesystem:
            found = extracted(filesystem, home / "out")
        assert not found.failed
        assert found.report.counts == {"devices": 2}
        assert (home / "out" / "h1").stat().st_nlink == 2

    as_user(work)


def test_a_folder_of_the_users_below_one_that_is_not() -> None:
    """Where nothing can be made at the top, files are made aside further down."""

    def work(home: Path) -> None:
        (home / "out" / "d").mkdir(parents=True)
        things = folder(F, ROOT, [(b"x", F + 1, FILE)]), node(F + 1, content=b"X", parent=F)
        with made(home, [(b"d", F, FOLDER)], *things) as filesystem:
            (home / "out").chmod(0o555)
            within = extract.Staging.within
            top = os.stat(home / "out")

            def not_at_the_top(parent: int) -> extract.Staging:
                if os.path.samestat(os.fstat(parent), top):
                    raise PermissionError(errno.EACCES, "root's")
                return within(parent)

            extract.Staging.within = not_at_the_top  # type: ignore[method-assign, assignment]
            assert not failed(extracted(filesystem, home / "out", b"d"))
        assert os.listdir(home / "out" / "d") == ["x"]

    as_user(work)


# Where others can write

EVERY_KIND: Entries = [
    (b"f", F, FILE),
    (b"p", F + 1, PIPE),
    (b"l", F + 2, LINK),
    (b"s", F + 3, SOCKET),
    (b"h", F, FILE),
]


def every_kind() -> list[Thing]:
    link = node(F + 2, 0o120777, size=2, target=b"to")
    return [node(F, content=b"x", links=2), node(F + 1, 0o010666), link, node(F + 3, 0o140666)]


@pytest.mark.parametrize("force", [False, True], ids=["new", "forced"])
def test_files_are_made_where_nobody_else_can_write(
    force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And get their owners, attributes, times and modes there: what has a name in the target is finished."""
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o777)
    calls: list[str] = []

    def watched(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            folder = named.get("dir_fd") or named.get("dst_dir_fd")
            writes = name != "open" or arguments[1] & os.O_CREAT
            if folder is not None and writes and os.fstat(folder).st_ino == out.stat().st_ino:
                calls.append(name)
            return real(*arguments, **named)

        monkeypatch.setattr(os, name, call)

    with made(tmp_path, EVERY_KIND, *every_kind()) as filesystem:
        if force:
            extracted(filesystem, out)
        for name in ("open", "mknod", "symlink", "chown", "utime", "chmod", "unlink", "link", "rename"):
            watched(name)
        assert not failed(extracted(filesystem, out, force=force))
    assert calls == ["rename" if force else "link"] * 6


def test_a_folder_that_others_put_in_the_place_of_ours_gets_nothing(tmp_path: Path) -> None:
    """Not what is stored of it, and none of its files."""
    out, other = tmp_path / "out", tmp_path / "out" / "other"
    other.mkdir(parents=True)
    out.chmod(0o777)
    other.chmod(0o700)

    class Raced(Extraction):
        def _do(self, *arguments: Any) -> None:
            (out / "d").rename(out / "moved")
            other.rename(out / "d")
            super()._do(*arguments)

    things = folder(F, ROOT, [(b"x", F + 1, FILE)], mode=0o777), node(F + 1, content=b"X", parent=F)
    with made(tmp_path, [(b"d", F, FOLDER)], *things) as filesystem:
        work = Raced(filesystem, ExtractOptions())
        work.extract_all(str(out))
    assert (out / "moved" / "x").exists() != bool(failed(work))  # ours, if it was still open; else it is reported
    assert all("replaced by another one" in why for why in failed(work).values())
    assert stat.S_IMODE((out / "d").stat().st_mode) == 0o700
    assert not os.listdir(out / "d")
    assert (out / "zz-last").exists()


def test_pipes_that_are_replaced_by_links_open_no_file_of_roots(tmp_path: Path) -> None:
    """Another process puts links to a secret in the place of pipes as soon as it sees them."""
    out, secret = tmp_path / "out", tmp_path / "secret"
    out.mkdir()
    out.chmod(0o777)
    secret.touch(0o600)
    names = [(b"%03d" % i, F + i, PIPE) for i in range(90)]
    child = os.fork()
    if not child:
        swap_pipes(out, secret)
    try:
        with made(tmp_path, names, *(node(F + i, 0o010666) for i in range(90))) as filesystem:
            for _ in range(3):
                extracted(filesystem, out)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def swap_pipes(out: Path, secret: Path) -> None:
    for turn in range(100_000):
        for path in out.glob("*"):
            with suppress(OSError):
                if path.is_fifo():
                    path.rename(out / f"moved-{turn}-{path.name}")
                    path.symlink_to(secret)
    os._exit(0)


# Replacing


def test_what_cannot_be_read_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "f").write_text("the only good copy")

    class Torn(Filesystem):
        def extents(self, node: Any) -> Any:
            yield from super().extents(node)
            raise OSError(errno.EIO, "the disk is dying")

    with made(tmp_path, [(b"f", F, FILE)], node(F, content=b"new")) as filesystem:
        work = extracted(Torn(filesystem.objects), tmp_path / "out", b"f", force=True)
    assert failed(work) == {b"f": "the disk is dying"}
    assert (tmp_path / "out" / "f").read_text() == "the only good copy"
    assert os.listdir(tmp_path / "out") == ["f"]


@pytest.mark.parametrize("mode", [0o1644, 0o1600, 0o1200])
def test_a_users_file_with_the_sticky_bit_is_the_users(mode: int, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    mine = tmp_path / "out" / "f"
    mine.write_text("mine, sticky")
    mine.chmod(mode)
    with made(tmp_path, [(b"f", F, FILE)], node(F, content=b"new")) as filesystem:
        assert list(failed(extracted(filesystem, tmp_path / "out", b"f"))) == [b"f"]
        assert stat.S_IMODE(mine.stat().st_mode) == mode
    mine.chmod(0o600)
    assert mine.read_text() == "mine, sticky"
