"""One call looks at all that did not change in a folder; it finds what looking at each entry finds."""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from capturekit import extracted, listing

from zkeep.capture import previous
from zkeep.capture.exclude import ExcludeOptions, Exclusions
from zkeep.capture.previous import ROW, UNKNOWN, Previous, check_of, rows_of
from zkeep.capture.scan import Node, Scan, Scanner, Seen

Zkeep = Callable[..., int]
Found = tuple[object, ...]
HOUR = 3600 * 10**9
NOTHING = ExcludeOptions()

pytestmark = pytest.mark.skipif(previous._listing is None, reason="it is not compiled here")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    top = tmp_path / "source"
    for folder in ("a", "a/deep", "b", "c"):
        (top / folder).mkdir(parents=True)
        for number in range(3):
            (top / folder / f"{number}").write_bytes(b"%d" % number)
    (top / "c" / os.fsdecode(b"\xff")).symlink_to("nowhere")
    (top / "empty").mkdir()
    return top


@pytest.fixture
def before(source: Path) -> Previous:
    """What a snapshot would have of it."""
    numbers = count(34)
    rows: list[tuple[int, ...]] = []

    def add(path: bytes, parent: int) -> None:
        number, status = next(numbers), os.lstat(path)
        names = [entry.name for entry in os.scandir(path)] if stat.S_ISDIR(status.st_mode) else []
        check = check_of(names) if stat.S_ISDIR(status.st_mode) else UNKNOWN
        times = status.st_mtime_ns, status.st_ctime_ns
        place = status.st_dev, status.st_ino, status.st_size
        rows.append((*place, *times, number, parent or number, 1, check, stat.S_IFMT(status.st_mode) >> 12))
        for name in names:
            add(path + b"/" + name, number)

    add(os.fsencode(source), 0)
    return Previous(rows_of(rows), root=34)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """For each folder that was asked about in one call, whether that was all."""
    answers: list[bool] = []
    genuine = Scanner._compared

    def compared(self: Scanner, node: Node, found: Scan, visited: set[tuple[int, int]]) -> list[Node] | None:
        below = genuine(self, node, found, visited)
        if node.parent is not None:
            answers.append(below is not None)
        return below

    monkeypatch.setattr(Scanner, "_compared", compared)
    return answers


def scanned(top: Path, before: Previous, *, in_one: bool, options: ExcludeOptions = NOTHING) -> Found:
    """All that a scan finds."""
    fd = os.open(top, os.O_RDONLY)
    exclusions = Exclusions(options)
    scanner = Scanner(fd, before, exclusions.choose)
    if in_one:
        scanner = Scanner(fd, before, exclusions.choose, keeps_all=exclusions.keeps_all)
    try:
        return _found(scanner.scan(0))
    finally:
        scanner.folders.close()
        os.close(fd)


def _found(scan: Scan) -> Found:
    written = sorted((n.path, n.number, [c.name for c in n.children or []], n.single) for n in scan.written)
    links = {inode: [node.path for node in names] for inode, names in scan.links.items()}
    return written, scan.seen, scan.problems, links, scan.kept, scan.files, scan.folders, scan.bytes


def _swap_names(top: Path) -> None:
    (top / "b" / "0").rename(top / "x")
    (top / "b" / "1").rename(top / "b" / "0")
    (top / "x").rename(top / "b" / "1")


def _same_time(top: Path) -> None:
    """Its size and mtime stay as they were."""
    status = (top / "b" / "1").stat()
    (top / "b" / "1").write_bytes(b"X")
    os.utime(top / "b" / "1", ns=(status.st_atime_ns, status.st_mtime_ns))


def _written_again(path: Path) -> None:
    """Replace a file, as editors do when they save it."""
    path.with_suffix(".new").write_bytes(b"other")
    path.with_suffix(".new").rename(path)


def _swap_folders(top: Path) -> None:
    (top / "a").rename(top / "x")
    (top / "b").rename(top / "a")
    (top / "x").rename(top / "b")


def _other_kind(top: Path) -> None:
    (top / "b" / "1").unlink()
    (top / "b" / "1").mkdir()


CHANGES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda top: None,
    "contents": lambda top: (top / "a/deep/1").write_bytes(b"longer"),
    "contents, and times put back": _same_time,
    "mode": lambda top: (top / "a/1").chmod(0o600),
    "mode of a folder": lambda top: (top / "a/deep").chmod(0o700),
    "new": lambda top: (top / "b/new").write_bytes(b"new"),
    "new folder": lambda top: (top / "empty/new").mkdir(),
    "gone": lambda top: (top / "a/deep/2").unlink(),
    "folder gone": lambda top: shutil.rmtree(top / "a/deep"),
    "renamed": lambda top: (top / "b/2").rename(top / "b/3"),
    "names swapped": _swap_names,
    "moved": lambda top: (top / "a/deep/0").rename(top / "empty/0"),
    "folder moved": lambda top: (top / "a/deep").rename(top / "empty/deep"),
    "folder renamed": lambda top: (top / "a").rename(top / "d"),
    "second name": lambda top: os.link(top / "a/0", top / "a/second"),
    "second name elsewhere": lambda top: os.link(top / "a/0", top / "empty/second"),
    "other kind": _other_kind,
    "patterns": lambda top: (top / "a/.zkeepignore").write_text("1\n"),
    "written again": lambda top: _written_again(top / "b" / "0"),
    "made and removed": lambda top: [(top / "b/3").touch(), (top / "b/3").unlink()],
    "two names of a new one": lambda top: [(top / "b/3").touch(), os.link(top / "b/3", top / "b/4")],
    "two names of an old one": lambda top: os.link(top / "b/0", top / "b/4"),
    "folder in place of a file": lambda top: [(top / "b/0").unlink(), (top / "a/deep").rename(top / "b/0")],
    "folders swapped": _swap_folders,
    "fifo": lambda top: os.mkfifo(top / "b/fifo"),
}
WITHOUT_A_LISTING = ("contents", "contents, and times put back", "mode", "mode of a folder", "new", "gone", "renamed")
WITHOUT_A_LISTING += ("folder gone", "moved", "other kind", "written again", "made and removed", "fifo")
"Of these, nothing but the topmost folder is listed entry by entry, and what is new."


@pytest.mark.parametrize("name", CHANGES)
def test_both_ways_find_the_same(source: Path, before: Previous, done: list[bool], name: str) -> None:
    CHANGES[name](source)
    assert scanned(source, before, in_one=True) == scanned(source, before, in_one=False)
    assert any(done)


@pytest.mark.parametrize("seed", range(30))
def test_both_ways_find_the_same_after_several_changes(source: Path, before: Previous, seed: int) -> None:
    for name in random.Random(seed).choices(list(CHANGES), k=4):
        with suppress(OSError):  # an earlier one has moved or removed that
            CHANGES[name](source)
    assert scanned(source, before, in_one=True) == scanned(source, before, in_one=False)


@pytest.mark.parametrize("name", WITHOUT_A_LISTING)
def test_only_what_differs_is_looked_at_by_itself(
    source: Path, before: Previous, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    listed: list[bytes] = []
    genuine = Scanner._entries

    def entries(self: Scanner, node: Node) -> list[Seen]:
        listed.append(node.path)
        return genuine(self, node)

    monkeypatch.setattr(Scanner, "_entries", entries)
    CHANGES[name](source)
    scanned(source, before, in_one=True)
    assert listed == ([b"", b"b/1"] if name == "other kind" else [b""])


def test_nothing_is_looked_at_twice_where_nothing_changed(
    zkeep: Zkeep, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, done: list[bool]
) -> None:
    monkeypatch.setattr(previous, "CLOCK_TICK", -HOUR)  # its files count as safe, however new they are
    assert zkeep("snapshot", "--from", str(source), "v/home@1") == 0
    done.clear()
    assert zkeep("snapshot", "--from", str(source), "v/home@2") == 0
    assert done == [True] * 5
    assert extracted(zkeep, tmp_path, "v/home@2") == listing(source)


@pytest.mark.parametrize(
    "options",
    [
        ExcludeOptions(("1",)),
        ExcludeOptions(caches=True),
        ExcludeOptions(if_present=(b"1",)),
        ExcludeOptions(larger_than=0),
    ],
    ids=["pattern", "caches", "if present", "larger"],
)
def test_what_is_left_out_now_is_left_out(source: Path, before: Previous, options: ExcludeOptions) -> None:
    found = [scanned(source, before, in_one=way, options=options) for way in (True, False)]
    assert found[0] == found[1]


def test_a_pool_that_lies_there_now_is_left_out(source: Path, before: Previous, done: list[bool]) -> None:
    status = (source / "a" / "deep").stat()
    options = ExcludeOptions(own=frozenset({(status.st_dev, status.st_ino)}))
    found = [scanned(source, before, in_one=way, options=options) for way in (True, False)]
    assert found[0] == found[1]
    assert any(done)


@pytest.mark.parametrize("other", ["b/0", "a/1"])
def test_one_file_at_two_places_is_two(source: Path, before: Previous, other: str) -> None:
    """One inode at two places, as where a folder is mounted a second time."""
    rows = before.rows.copy()
    one, two = (rows["ino"] == (source / name).stat().st_ino for name in ("b/1", other))
    rows["object"][one] = rows["object"][two]
    mounted = Previous(rows, before.extras, before.root)
    assert scanned(source, mounted, in_one=True) == scanned(source, mounted, in_one=False)


def test_a_file_that_may_have_changed_unseen_is_read_again(source: Path, before: Previous) -> None:
    rows = before.rows.copy()
    rows["ctime"][rows["ino"] == (source / "b" / "1").stat().st_ino] = 0
    again = Previous(rows, before.extras, before.root)
    written = scanned(source, again, in_one=True)[0]
    assert written == scanned(source, again, in_one=False)[0]
    assert [path for path, *_ in written] == [b"b/1"]  # type: ignore[attr-defined]


def test_rows_that_are_not_there_are_refused(source: Path) -> None:
    assert previous._listing is not None
    for rows, start, end in ((b"", 0, 1), (bytes(ROW.itemsize), 1, 0), (bytes(ROW.itemsize), -1, 1)):
        with pytest.raises(ValueError, match="not there"):
            previous._listing.compared(0, 0, rows, start, end, 0)
    assert previous._listing.compared(-1, 0, b"", 0, 0, 0) is None
    fd = os.open(source / "b" / "1", os.O_RDONLY)
    assert previous._listing.compared(fd, 0, b"", 0, 0, 0) is None
    os.close(fd)
