"""Files of several names, and calls that are repeated: what was extracted before is kept and found."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from oddkit import FILE, FOLDER, LINK, PIPE, ROOT, SOCKET, TIME, folder, node
from sealedkit import Entries
from sealing import Thing
from targetkit import F, extracted, failed, made, refusing

from zkeep.restore.files.extract import Extraction, ExtractOptions

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
