"""What a target cannot take of one file costs that file or attribute: all others are extracted, and a call repeated."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from oddkit import CHAR, FILE, FIRST, FOLDER, LINK, PIPE, ROOT, SOCKET, TIME, as_user, folder, node, tree
from sealedkit import Entries, opened
from sealing import Thing

from zkeep.restore.files import extract
from zkeep.restore.files.extract import Extraction, ExtractOptions
from zkeep.tree.filesystem import Filesystem

LAST = (b"zz-last", FIRST + 99, FILE)
F = FIRST


@contextmanager
def made(where: Path, entries: Entries, *things: Thing) -> Iterator[Filesystem]:
    """A filesystem with these files and, behind them, a last one."""
    where.mkdir(exist_ok=True)
    with opened(where, tree([*entries, LAST], *things, node(LAST[1], content=b"last"))) as found:
        yield Filesystem(found)


def extracted(filesystem: Filesystem, target: Path, *paths: bytes, force: bool = False) -> Extraction:
    work = Extraction(filesystem, ExtractOptions(force=force))
    if paths:
        work.extract(str(target), paths)
    else:
        work.extract_all(str(target))
    return work


def failed(work: Extraction) -> dict[bytes, str]:
    return {path: str(error) for path, error in work.failed}


def refusing(monkeypatch: pytest.MonkeyPatch, name: str, code: int, applies: Callable[..., bool]) -> None:
    """A target whose system calls say so."""
    real = getattr(os, name)

    def asked(*arguments: Any, **named: Any) -> Any:
        if applies(*arguments):
            raise OSError(code, os.strerror(code))
        return real(*arguments, **named)

    monkeypatch.setattr(os, name, asked)


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


# Files of several names


def hard_links(count: int) -> tuple[Entries, list[Thing]]:
    return [(b"h%d" % i, F, FILE) for i in range(count)], [node(F, content=b"same", links=count)]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_hard_links_each_name_is_a_copy(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, "link", code, lambda *_: True)
    entries, things = hard_links(3)
    with made(tmp_path, entries, *things) as filesystem:
        work = extracted(filesystem, tmp_path / "out")
        assert not work.failed
        assert work.report.counts == {"hard links": 2}
        assert not extracted(filesystem, tmp_path / "out").failed
    assert {(tmp_path / "out" / f"h{i}").read_bytes() for i in range(3)} == {b"same"}
    assert (tmp_path / "out" / "h0").stat().st_nlink == 1


def test_more_names_than_a_file_can_have_are_shared_by_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Any, *_: object) -> bool:
        return os.fsencode(source).startswith(b"link-") and next(counts) % 3 == 2

    counts = iter(range(100))
    refusing(monkeypatch, "link", errno.EMLINK, full)
    entries, things = hard_links(8)
    with made(tmp_path, entries, *things) as filesystem:
        work = extracted(filesystem, tmp_path / "out")
    assert not work.failed
    found = [(tmp_path / "out" / f"h{i}").stat() for i in range(8)]
    assert len({status.st_ino for status in found}) == 1 + work.report.counts["hard links"] == 3
    assert sorted(os.listdir(tmp_path / "out")) == [*(f"h{i}" for i in range(8)), "zz-last"]


def test_names_that_were_extracted_one_by_one_are_kept(tmp_path: Path) -> None:
    entries = [(b"a", F, FOLDER), (b"b", F + 1, FOLDER)]
    folders = [folder(F + i, ROOT, [(b"x", F + 3, FILE)]) for i in range(2)]
    with made(tmp_path, entries, *folders, node(F + 3, content=b"H", links=2, parent=F)) as filesystem:
        for paths in ([b"a"], [b"b"], [], []):
            work = extracted(filesystem, tmp_path / "out", *paths)
            assert not work.failed
        assert work.report.counts == {"hard links": 1}
        assert not extracted(filesystem, tmp_path / "out", force=True).report.counts
    assert (tmp_path / "out" / "a" / "x").stat().st_nlink == 2


def test_a_link_in_the_way_to_a_first_name_is_not_followed(tmp_path: Path) -> None:
    """Other names are made of the file itself, not of what its first name leads to."""
    entries = [(b"a", F, FOLDER), (b"b", F + 1, FOLDER)]
    folders = [folder(F + i, ROOT, [(b"x", F + 3, FILE)]) for i in range(2)]
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x").write_text("secret")
    before = (tmp_path / "outside").stat().st_mtime_ns

    class Raced(Extraction):
        def _put(self, *arguments: Any) -> None:
            super()._put(*arguments)
            if arguments[1].path == b"a":
                (tmp_path / "out" / "a").rename(tmp_path / "away")
                (tmp_path / "out" / "a").symlink_to(tmp_path / "outside")

    with made(tmp_path, entries, *folders, node(F + 3, content=b"H", links=2, parent=F)) as filesystem:
        work = Raced(filesystem, ExtractOptions())
        work.extract_all(str(tmp_path / "out"))
    assert (tmp_path / "out" / "b" / "x").read_text() == "H"
    assert failed(work).keys() <= {b"a"}  # its attributes are set if it is still open, or not at all
    assert (tmp_path / "outside").stat().st_mtime_ns == before
    assert os.listdir(tmp_path / "outside") == ["x"]


# Repeated calls


@pytest.mark.parametrize("grain", [100, 10_000_000, 1_000_000_000, 2_000_000_000], ids=str)
def test_a_target_that_keeps_times_coarsely(grain: int, tmp_path: Path) -> None:
    with made(tmp_path, [(b"f", F, FILE)], node(F, content=b"text")) as filesystem:
        extracted(filesystem, tmp_path / "out")
        kept = TIME // grain * grain
        os.utime(tmp_path / "out" / "f", ns=(kept, kept))
        work = extracted(filesystem, tmp_path / "out")
    assert not work.failed
    assert work.progress.kept == 2


@pytest.mark.parametrize("same", [True, False], ids=["same", "changed"])
def test_a_target_that_keeps_no_times_is_asked_for_the_content(same: bool, tmp_path: Path) -> None:
    size = 300_000
    with made(tmp_path, [(b"f", F, FILE)], node(F, content=b"text", size=size)) as filesystem:
        extracted(filesystem, tmp_path / "out")
        with (tmp_path / "out" / "f").open("r+b") as file:
            file.seek(size - 1)
            file.write(b"\0" if same else b"x")
        os.utime(tmp_path / "out" / "f", ns=(12345, 12345))
        work = extracted(filesystem, tmp_path / "out")
    assert list(failed(work)) == ([] if same else [b"f"])


def test_pipes_links_and_devices_are_kept_when_a_call_is_repeated(tmp_path: Path) -> None:
    entries = [(b"p", F, PIPE), (b"l", F + 1, LINK), (b"s", F + 2, SOCKET)]
    things = node(F, 0o010644), node(F + 1, 0o120777, size=2, target=b"to"), node(F + 2, 0o140644)
    with made(tmp_path, entries, *things) as filesystem:
        extracted(filesystem, tmp_path / "out")
        os.utime(tmp_path / "out" / "l", ns=(5, 5), follow_symlinks=False)
        work = extracted(filesystem, tmp_path / "out")
        assert not work.failed
        assert work.progress.kept == 4
        (tmp_path / "out" / "l").unlink()
        (tmp_path / "out" / "l").symlink_to("elsewhere")
        assert list(failed(extracted(filesystem, tmp_path / "out"))) == [b"l"]


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
