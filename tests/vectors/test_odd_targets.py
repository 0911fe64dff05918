"""What a target cannot take of one file costs that file or attribute: all others are extracted, and a call repeated."""

from __future__ import annotations

import errno
import os
import resource
import stat
from pathlib import Path
from typing import Any

import pytest
from oddkit import CHAR, FILE, FOLDER, LINK, PIPE, ROOT, SOCKET, folder, node
from sealing import Thing
from targetkit import F, extracted, failed, made, refusing

from zkeep.restore.files import extract

# One file


@pytest.mark.parametrize(
    ("name", "thing", "why"),
    [
        ("huge", node(F, content=b"s", size=1 << 62), "File too large"),
        ("long", node(F, stat.S_IFLNK | 0o777, size=5000, target=b"ab/" * 1666 + b"ab"), "File name too long"),
        ("zero", node(F, stat.S_IFLNK | 0o777, size=3, target=b"a\0b"), "a zero byte"),
        ("n" * 255 + "n", node(F, content=b"x"), "File name too long"),
        ("odd", node(F, 0o644, content=b"x"), "no kind of file"),
    ],
    ids=["size", "target", "zero", "name", "kind"],
)
def test_what_cannot_be_made_is_named_and_all_else_is_there(name: str, thing: Thing, why: str, tmp_path: Path) -> None:
    with made(tmp_path, [(name.encode(), F, FILE)], thing) as filesystem:
        work = extracted(filesystem, tmp_path / "out")
    assert list(failed(work)) == [name.encode()]
    assert why in failed(work)[name.encode()]
    assert os.listdir(tmp_path / "out") == ["zz-last"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG])
def test_a_disk_that_is_full_for_one_file_takes_the_next(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made(tmp_path, [(b"big", F, FILE)], node(F, content=b"x" * 5000)) as filesystem:
        with monkeypatch.context() as patched:
            refusing(patched, "pwrite", code, lambda fd, content, at: len(content) == 5000)
            work = extracted(filesystem, tmp_path / "out")
        assert failed(work) == {b"big": os.strerror(code)}
        assert os.listdir(tmp_path / "out") == ["zz-last"]
        assert not failed(extracted(filesystem, tmp_path / "out"))
    assert (tmp_path / "out" / "big").read_bytes() == b"x" * 5000


def test_a_limit_of_file_sizes_costs_what_is_larger(tmp_path: Path) -> None:
    with made(tmp_path, [(b"big", F, FILE)], node(F, content=b"x" * 5000)) as filesystem:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
        try:
            work = extracted(filesystem, tmp_path / "out")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert failed(work) == {b"big": "File too large"}
    assert os.listdir(tmp_path / "out") == ["zz-last"]


@pytest.mark.parametrize(("kind", "call"), [(LINK, "symlink"), (PIPE, "mknod"), (SOCKET, "mknod")])
def test_a_target_without_a_kind_of_file(kind: int, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link is data; what is a pipe or a socket holds none and is counted."""
    refusing(monkeypatch, call, errno.EPERM, lambda *_: True)
    target = b"to" if kind == LINK else None
    thing = node(F, kind << 12 | 0o644, size=2 if target else 0, target=target)
    with made(tmp_path, [(b"odd", F, kind)], thing) as filesystem:
        work = extracted(filesystem, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["zz-last"]
    assert list(failed(work)) == ([b"odd"] if kind == LINK else [])
    assert sum(work.report.counts.values()) == (0 if kind == LINK else 1)


def test_a_file_in_the_place_of_a_folder_costs_that_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "d").write_text("mine")
    entries = [(b"d", F, FOLDER), (b"e", F + 2, FOLDER)]
    things = folder(F, ROOT, [(b"x", F + 1, FILE)]), node(F + 1, parent=F), folder(F + 2, ROOT, [])
    with made(tmp_path, entries, *things) as filesystem:
        work = extracted(filesystem, tmp_path / "out")
    assert failed(work) == {b"d": "something else is there"}
    assert sorted(os.listdir(tmp_path / "out")) == ["d", "e", "zz-last"]
    assert (tmp_path / "out" / "d").read_text() == "mine"


@pytest.mark.parametrize("several", [False, True], ids=["alone", "shared"])
def test_what_is_in_the_way_is_named_and_all_else_is_extracted(
    several: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by other processes."""
    monkeypatch.setattr(extract, "PORTION", 2 if several else 32)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "f3").write_text("mine")
    names = [(b"f%d" % i, F + i, FILE) for i in range(9)]
    with made(tmp_path, names, *(node(F + i, content=b"%d" % i) for i in range(9))) as filesystem:
        work = extracted(filesystem, tmp_path / "out")
        assert failed(work) == {b"f3": "it is there already; --force overwrites"}
        assert (tmp_path / "out" / "f3").read_text() == "mine"
        assert sorted(os.listdir(tmp_path / "out")) == [*(f"f{i}" for i in range(9)), "zz-last"]
        assert not failed(extracted(filesystem, tmp_path / "out", force=True))
    assert (tmp_path / "out" / "f3").read_text() == "3"


@pytest.mark.parametrize("force", [False, True], ids=["new", "forced"])
def test_a_target_that_does_not_tell_a_from_capital_a_loses_neither_unseen(
    force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it takes for the same is named; nothing of the same call is replaced."""

    def folded(name: Any) -> Any:
        inside = isinstance(name, bytes) and not name.startswith(b".")
        return name.lower() if inside else name

    for call in ("stat", "open", "mkdir", "unlink"):
        real = getattr(os, call)
        monkeypatch.setattr(os, call, lambda name, *more, real=real, **named: real(folded(name), *more, **named))
    for call in ("link", "rename"):
        both = getattr(os, call)
        monkeypatch.setattr(os, call, lambda a, b, real=both, **named: real(folded(a), folded(b), **named))
    entries = [(b"A", F, FILE), (b"a", F + 1, FILE), (b"D", F + 2, FOLDER), (b"d", F + 3, FOLDER)]
    things = [
        node(F, content=b"first"),
        node(F + 1, content=b"other"),
        folder(F + 2, ROOT, []),
        folder(F + 3, ROOT, []),
    ]
    with made(tmp_path, entries, *things) as filesystem:
        for _ in range(2):
            work = extracted(filesystem, tmp_path / "out", force=force)
            assert failed(work) == {b"a": extract.ALIKE, b"d": extract.ALIKE}
    assert (tmp_path / "out" / "a").read_bytes() == b"first"


# Attributes


def test_a_users_attribute_that_does_not_fit_is_a_loss_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, "setxattr", errno.ENOSPC, lambda *_: True)
    xattrs = {b"user.note": b"precious", b"security.odd": b"label"}
    with made(tmp_path, [(b"f", F, FILE)], node(F, content=b"text", xattrs=xattrs)) as filesystem:
        work = extracted(filesystem, tmp_path / "out")
    assert (tmp_path / "out" / "f").read_bytes() == b"text"
    assert not work.failed
    assert [(path, str(error)) for path, error in work.report.lost] == [
        (b"f", "extended attribute user.note: No space left on device")
    ]
    assert work.report.counts == {"extended attributes": 1}


def beside(*attributes: Thing) -> list[Thing]:
    names = [b"com.apple.ResourceFork", b"user.a/b"]
    entries = [(name, thing.number, FILE) for name, thing in zip(names, attributes, strict=False)]
    return [folder(F + 1, F, entries, mode=0o700, flags=1), *attributes]


def test_an_attribute_that_cannot_be_read_costs_no_other_and_not_the_content(tmp_path: Path) -> None:
    """One of 17 MiB, beside one whose name has a slash in it."""
    fork = node(F + 2, content=b"R" * 512, size=17 << 20, parent=F + 1, flags=1)
    other = node(F + 3, content=b"kept", parent=F + 1, flags=1)
    photo = node(F, content=b"photo", xattr_folder=F + 1)
    with made(tmp_path, [(b"photo", F, FILE)], photo, *beside(fork, other)) as filesystem:
        work = extracted(filesystem, tmp_path / "out")
    assert (tmp_path / "out" / "photo").read_bytes() == b"photo"
    assert [path for path, _ in work.report.lost] == [b"photo"]
    assert os.listxattr(tmp_path / "out" / "photo") == ["user.a/b"]


def test_owner_times_and_mode_that_cannot_be_set_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for call in ("fchown", "utime", "fchmod"):
        refusing(monkeypatch, call, errno.EROFS, lambda *_: True)
    with made(tmp_path, []) as filesystem:
        work = extracted(filesystem, tmp_path / "out")
    assert not work.failed
    assert work.report.counts == {"owners": 2, "times": 2, "modes": 2}


@pytest.mark.parametrize("rdev", [(1 << 64) - 1, 1 << 52, 5000 << 20])
def test_a_device_of_a_number_that_no_system_has_is_counted(rdev: int, tmp_path: Path) -> None:
    with made(tmp_path, [(b"c", F, CHAR)], node(F, stat.S_IFCHR | 0o600, rdev=rdev)) as filesystem:
        work = extracted(filesystem, tmp_path / "out")
    assert not work.failed
    assert work.report.counts == {"devices": 1}
    assert os.listdir(tmp_path / "out") == ["zz-last"]
