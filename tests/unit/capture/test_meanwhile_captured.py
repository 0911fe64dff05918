"""Others change the dataset or the files while a capture is under way: nothing is taken from the wrong snapshot."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from capturekit import extracted
from historykit import stored_listing

from zkeep.capture import contents, snapshot
from zkeep.capture.previous import Previous, rows_of
from zkeep.cli.main import run

Zkeep = Callable[..., int]
PART = 2_500_000


def take(zkeep: Zkeep, source: Path, name: str) -> int:
    return zkeep("snapshot", "--from", str(source), f"v/home@{name}")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    top = tmp_path / "source"
    (top / "below").mkdir(parents=True)
    (top / "file").write_text("first")
    (top / "below" / "file").write_text("first")
    return top


def after_the_scan(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """Let something happen between the scan of the next capture and its reading."""
    genuine, left = snapshot.Scanner.scan, [do]

    def scan(self: snapshot.Scanner, started: int) -> snapshot.Scan:
        found = genuine(self, started)
        if left:
            left.pop()()
        return found

    monkeypatch.setattr(snapshot.Scanner, "scan", scan)


def destroy(zkeep: Zkeep) -> None:
    assert zkeep("destroy", "v/home@2") == 0


def roll_back(zkeep: Zkeep) -> None:
    assert zkeep("rollback", "-r", "v/home@1") == 0


def destroy_all(zkeep: Zkeep) -> None:
    assert zkeep("destroy", "v/home@1,2") == 0


def make_again(zkeep: Zkeep) -> None:
    assert zkeep("destroy", "-r", "v/home") == 0
    key = f"file://{os.environ['ZKEEP_HOME']}/../key"
    assert zkeep("create", "-o", "encryption=on", "-o", "keyformat=raw", "-o", f"keylocation={key}", "v/home") == 0


@pytest.mark.parametrize("do", [destroy, roll_back, destroy_all, make_again])
def test_p3_a_capture_notices_that_its_base_is_gone(
    zkeep: Zkeep, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, do: Callable[[Zkeep], None]
) -> None:
    assert take(zkeep, source, "1") == 0
    (source / "below" / "file").write_text("second")
    (source / "below" / "new").write_text("second")
    assert take(zkeep, source, "2") == 0
    (source / "file").write_text("third")
    after_the_scan(monkeypatch, lambda: do(zkeep))
    assert take(zkeep, source, "3") == 5
    if do is destroy_all:
        return
    assert take(zkeep, source, "4") == 0
    assert extracted(zkeep, tmp_path, "v/home@4") == stored_listing(source)


def test_p3_of_two_captures_at_once_one_is_to_be_tried_again(
    zkeep: Zkeep, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert take(zkeep, source, "1") == 0
    (source / "file").write_text("second")

    def other() -> None:
        (source / "below" / "new").write_text("new")
        assert take(zkeep, source, "other") == 0

    after_the_scan(monkeypatch, other)
    assert take(zkeep, source, "mine") == 5
    assert take(zkeep, source, "mine") == 0
    assert extracted(zkeep, tmp_path, "v/home@mine") == stored_listing(source)


def broken_from(monkeypatch: pytest.MonkeyPatch, offset: int) -> None:
    """Let large files be unreadable from an offset on."""
    genuine = contents._read

    def read(fd: int, at: int, size: int) -> bytes:
        if at >= offset and os.fstat(fd).st_size > PART:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return genuine(fd, at, size)

    monkeypatch.setattr(contents, "_read", read)


@pytest.mark.parametrize("size", [20 << 20, 17_000_001])
def test_a_large_file_whose_end_cannot_be_read_stays_as_the_last_snapshot_has_it(
    zkeep: Zkeep, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    large = source / "large"
    large.write_bytes(os.urandom(18 << 20))
    assert take(zkeep, source, "1") == 0
    before = extracted(zkeep, tmp_path, "v/home@1")
    large.write_bytes(os.urandom(size))
    (source / "file").write_text("second")
    monkeypatch.setenv("ZKEEP_STEP", str(PART))
    with monkeypatch.context() as patch:
        broken_from(patch, 14 << 20)  # 8 MiB are compared at a time
        assert take(zkeep, source, "2") == 3
    after = extracted(zkeep, tmp_path, "v/home@2")
    assert after["large"] == before["large"]
    assert after["file"] == stored_listing(source)["file"]
    # Once it can be read it is.
    assert take(zkeep, source, "3") == 0
    assert extracted(zkeep, tmp_path, "v/home@3") == stored_listing(source)
    assert run(["pool", "scrub", "v"]) == 0


def test_a_file_of_which_an_interrupted_capture_has_a_part_is_put_back_if_it_cannot_be_read(
    zkeep: Zkeep, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zkeep.snapshot import commit

    large = source / "large"
    large.write_bytes(os.urandom(8 << 20))
    assert take(zkeep, source, "1") == 0
    before = extracted(zkeep, tmp_path, "v/home@1")
    large.write_bytes(os.urandom(9 << 20))
    monkeypatch.setenv("ZKEEP_STEP", str(PART))
    with monkeypatch.context() as patch:
        genuine, calls = commit._commit, iter(range(9))

        def interrupted(*words: object) -> object:
            if next(calls) == 2:
                raise KeyboardInterrupt
            return genuine(*words)  # type: ignore[arg-type]

        patch.setattr(commit, "_commit", interrupted)
        assert take(zkeep, source, "2") != 0
    with monkeypatch.context() as patch:
        broken_from(patch, 0)
        assert take(zkeep, source, "2") == 3
    assert extracted(zkeep, tmp_path, "v/home@2")["large"] == before["large"]
    assert take(zkeep, source, "3") == 0
    assert extracted(zkeep, tmp_path, "v/home@3") == stored_listing(source)


def test_another_file_that_gets_the_name_of_a_large_one_is_read_from_its_begin(
    zkeep: Zkeep, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, other = source / "large", tmp_path / "other"
    large.write_bytes(os.urandom(8 << 20))
    other.write_bytes(os.urandom(9 << 20))
    monkeypatch.setenv("ZKEEP_STEP", str(PART))
    genuine = contents._read

    def read(fd: int, at: int, size: int) -> bytes:
        if at >= 4 << 20 and other.exists():
            other.rename(large)
        return genuine(fd, at, size)

    monkeypatch.setattr(contents, "_read", read)
    assert take(zkeep, source, "1") in (0, 3)
    assert extracted(zkeep, tmp_path, "v/home@1")["large"] == stored_listing(source)["large"]


def test_a_file_without_a_time_of_change_is_never_as_it_was(source: Path) -> None:
    status = os.stat(source / "file")
    values = list(status)
    values[1:3] = [status.st_ino, status.st_dev]
    unchanging = os.stat_result([*values[:9], 0], {"st_ctime_ns": 0, "st_mtime_ns": 5})
    row = (status.st_dev, status.st_ino, status.st_size, 5, 0, 7, 34, 1, 0, 8)
    (match,) = Previous(rows_of([row]), root=34).match([unchanging], 34)
    assert (match.number, match.same) == (7, False)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("taken", ["one", "two", "below/three"])
def test_a_name_that_another_file_takes_does_not_bring_its_content_to_the_other_names(
    zkeep: Zkeep, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: str, stored: bool
) -> None:
    """Between the scan and the reading, of a file with three names."""
    names = ("one", "two", "below/three")
    (source / "one").write_text("mine")
    for name in names[1:]:
        os.link(source / "one", source / name)
    if stored:
        assert take(zkeep, source, "before") == 0
        (source / "one").write_text("mine, changed")
    mine = (source / "one").read_text()
    (source / "other").write_text("another one's")
    after_the_scan(monkeypatch, lambda: (source / "other").rename(source / taken))
    take(zkeep, source, "1")
    for name in names:
        assert stored_content(zkeep, tmp_path, "v/home@1", name) == mine
    assert take(zkeep, source, "2") == 0
    for name in names:
        expected = "another one's" if name == taken else mine
        assert stored_content(zkeep, tmp_path, "v/home@2", name) == expected


def stored_content(zkeep: Zkeep, tmp_path: Path, snapshot: str, name: str) -> str:
    target = tmp_path / "out" / snapshot.replace("/", "-") / name
    assert zkeep("extract", "-L", f"file://{tmp_path / 'key'}", "-C", str(target), snapshot, name) == 0
    return (target / name).read_text()
