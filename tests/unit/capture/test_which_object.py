"""Each file of a folder has an object of its own, whatever happened to names and inodes, with and without the cache."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from capturekit import extracted
from historykit import check_objects, stored_listing

Zkeep = Callable[..., int]


def _swap(a: Path, b: Path) -> None:
    a.rename(a.parent / "third")
    b.rename(a)
    (a.parent / "third").rename(b)


def _break_link(path: Path) -> None:
    """What cp --remove-destination does: another file with the same content gets the name."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content + b" of its own")


def _rename_and_renew(top: Path) -> None:
    (top / "a").rename(top / "renamed")
    (top / "a").write_bytes(b"a new file at an old path")


def _swap_files(top: Path) -> None:
    _swap(top / "a", top / "b")


def _swap_folders(top: Path) -> None:
    _swap(top / "one", top / "two")


def _swap_with_what_is_in_it(top: Path) -> None:
    (top / "one" / "in").rename(top / "third")
    (top / "one").rename(top / "third" / "in")
    (top / "third").rename(top / "one")


def _break_one(top: Path) -> None:
    _break_link(top / "link1")


def _break_into_pairs(top: Path) -> None:
    """Let two of the four names of a file lead to another one: each file has two."""
    _break_link(top / "link2")
    (top / "link4").unlink()
    os.link(top / "link2", top / "link4")


def _break_into_pairs_elsewhere(top: Path) -> None:
    _break_link(top / "link1")
    (top / "one" / "link3").unlink()
    os.link(top / "link1", top / "one" / "link3")


def _break_all(top: Path) -> None:
    for name in ("link1", "link2", "one/link3", "link4"):
        _break_link(top / name)
        os.link(top / name, top / f"{name}-again")


def _join(top: Path) -> None:
    (top / "a").unlink()
    os.link(top / "b", top / "a")


def _link_and_renew(top: Path) -> None:
    os.link(top / "a", top / "one" / "second name")
    (top / "a").unlink()
    (top / "a").write_bytes(b"other")
    os.link(top / "a", top / "two" / "second name of the other")


def _folder_becomes_link(top: Path) -> None:
    shutil.rmtree(top / "one")
    (top / "one").symlink_to("two")


def _make_again(top: Path) -> None:
    """The inodes of what went are used again for others."""
    content = {path.name: path.read_bytes() for path in top.iterdir() if path.is_file()}
    for name in content:
        (top / name).unlink()
    for name in reversed(sorted(content)):
        (top / name).write_bytes(content[name])


CHANGES = [
    _rename_and_renew,
    _swap_files,
    _swap_folders,
    _swap_with_what_is_in_it,
    _break_one,
    _break_into_pairs,
    _break_into_pairs_elsewhere,
    _break_all,
    _join,
    _link_and_renew,
    _folder_becomes_link,
    _make_again,
]


def make(top: Path) -> None:
    for name in ("one", "two"):
        (top / name / "in").mkdir(parents=True)
        (top / name / "file").write_bytes(f"file of {name}".encode())
        (top / name / "in" / "deep").write_bytes(f"deep in {name}".encode())
    (top / "a").write_bytes(b"content of a")
    (top / "b").write_bytes(b"b, which is longer")
    (top / "link1").write_bytes(b"four names")
    for name in ("link2", "one/link3", "link4"):
        os.link(top / "link1", top / name)


def take(zkeep: Zkeep, tmp_path: Path, source: Path, name: str, *, cached: bool = True) -> None:
    """A snapshot that is as the folder is."""
    if not cached:
        shutil.rmtree(tmp_path / "state" / "capture", ignore_errors=True)
    assert zkeep("snapshot", "--from", str(source), f"v/home@{name}") == 0
    check_objects(tmp_path / "pool", f"v/home@{name}")
    assert extracted(zkeep, tmp_path, f"v/home@{name}") == stored_listing(source)


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_what_happens_to_names(zkeep: Zkeep, tmp_path: Path, change: Callable[[Path], None], cached: bool) -> None:
    source = tmp_path / "source"
    make(source)
    take(zkeep, tmp_path, source, "1")
    change(source)
    take(zkeep, tmp_path, source, "2", cached=cached)
    (source / "a").write_bytes(b"and the next one")
    take(zkeep, tmp_path, source, "3")


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
def test_the_next_top_is_around_the_last_one_and_in_it_again(zkeep: Zkeep, tmp_path: Path, cached: bool) -> None:
    around = tmp_path / "source"
    make(around)
    for turn, part in enumerate([".", "one", ".", "one/in", "one", "two", ".", "."]):
        take(zkeep, tmp_path, around / part, str(turn), cached=cached)


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
def test_the_top_is_moved_below_itself(zkeep: Zkeep, tmp_path: Path, cached: bool) -> None:
    source = tmp_path / "source"
    make(source)
    take(zkeep, tmp_path, source, "1")
    (source / "one").rename(tmp_path / "next")
    source.rename(tmp_path / "next" / "in" / "below")
    (tmp_path / "next").rename(source)
    take(zkeep, tmp_path, source, "2", cached=cached)
    take(zkeep, tmp_path, source, "3")
