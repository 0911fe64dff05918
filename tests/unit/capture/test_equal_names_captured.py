"""Folders with names that are one in the dataset, or none: the first is kept, each of the others is reported."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from capturekit import extracted

from zkeep.format.folding import MAX_VARIANTS

Zkeep = Callable[..., int]
COMPOSED, APART = "\u00e9", "e\u0301"


def new_dataset(zkeep: Zkeep, *options: str) -> str:
    words = [word for option in options for word in ("-o", option)]
    assert zkeep("create", *words, "v/home/named") == 0
    return "v/home/named"


def take(zkeep: Zkeep, top: Path, snapshot: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    capsys.readouterr()
    status = zkeep("snapshot", "--from", str(top), f"v/home/named@{snapshot}")
    return status, [line for line in capsys.readouterr().err.splitlines() if "named" not in line]


def names_in(found: dict[str, tuple[object, ...]]) -> list[str]:
    return sorted(path for path in found if path != ".")


@pytest.mark.parametrize(
    ("options", "names", "left_out"),
    [
        (("casesensitivity=insensitive",), ["A", "a", "b", COMPOSED, APART], ["a"]),
        (("normalization=formD",), ["A", "a", COMPOSED, APART], [COMPOSED]),
        (("normalization=formKC",), ["fi", "\ufb01", "a"], ["\ufb01"]),
        (
            ("casesensitivity=insensitive", "normalization=formC"),
            ["\u00c9", COMPOSED, APART, "E"],
            [COMPOSED, "\u00c9"],
        ),
        (("casesensitivity=mixed",), ["A", "a", "\udcff"], []),
        (("utf8only=on",), ["A", "a", "\udcff", "x\udcc3"], ["\udcff", "x\udcc3"]),
        (("casesensitivity=insensitive", "normalization=formD"), ["\u03b1\u0345", "a"], ["\u03b1\u0345"]),
        ((), ["A", "a", COMPOSED, APART, "\udcff"], []),
    ],
)
def test_the_first_of_equal_names_is_kept(
    zkeep: Zkeep,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    names: list[str],
    left_out: list[str],
) -> None:
    new_dataset(zkeep, *options)
    top = tmp_path / "top"
    for folder in (top, top / "below"):
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(os.fsencode(name))
    kept = sorted(set(names) - set(left_out))
    want = sorted([*kept, "below", *(f"below/{name}" for name in kept)])
    for snapshot in ("one", "two"):
        status, lines = take(zkeep, top, snapshot, capsys)
        told = [line for line in lines if "its name" in line]
        assert (status, len(told)) == (3 if left_out else 0, 2 * len(left_out)), lines
        found = extracted(zkeep, tmp_path, f"v/home/named@{snapshot}")
        assert names_in(found) == want


def test_what_was_left_out_comes_once_its_name_is_free(
    zkeep: Zkeep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new_dataset(zkeep, "casesensitivity=insensitive")
    top = tmp_path / "top"
    (top / "Folder").mkdir(parents=True)
    (top / "folder").mkdir()
    (top / "Folder" / "one").write_bytes(b"1")
    (top / "folder" / "two").write_bytes(b"2")
    assert take(zkeep, top, "one", capsys)[0] == 3
    (top / "FILE").write_bytes(b"3")
    (top / "Folder").rename(top / "other")
    assert take(zkeep, top, "two", capsys)[0] == 0
    assert names_in(extracted(zkeep, tmp_path, "v/home/named@two")) == sorted(
        ["FILE", "folder", "folder/two", "other", "other/one"]
    )
    # Only the case of names changed, and two files changed theirs with one another.
    (top / "FILE").rename(top / "file")
    (top / "other").rename(top / "OTHER")
    assert take(zkeep, top, "three", capsys)[0] == 0
    found = extracted(zkeep, tmp_path, "v/home/named@three")
    assert names_in(found) == sorted(["file", "folder", "folder/two", "OTHER", "OTHER/one"])


def test_large_folders_lose_one_name_for_each_that_is_there_twice(
    zkeep: Zkeep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new_dataset(zkeep, "casesensitivity=insensitive", "normalization=formD")
    top = tmp_path / "top"
    top.mkdir()
    for number in range(1200):
        (top / f"{COMPOSED}tude {number}").write_bytes(b"")
    assert take(zkeep, top, "one", capsys)[0] == 0
    for number in range(0, 1200, 400):
        (top / f"{APART}TUDE {number}").write_bytes(b"")
    for number in range(2100, 3100):
        (top / f"new {number}").write_bytes(b"")
    status, lines = take(zkeep, top, "two", capsys)
    assert (status, len([line for line in lines if "its name" in line])) == (3, 3)
    found = extracted(zkeep, tmp_path, "v/home/named@two")
    assert len(names_in(found)) == 2200


def test_so_many_names_of_one_hash_as_a_leaf_holds(
    zkeep: Zkeep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new_dataset(zkeep, "casesensitivity=mixed")
    top = tmp_path / "top"
    top.mkdir()
    for bits in range(64):
        (top / "".join(c.upper() if bits >> at & 1 else c for at, c in enumerate("abcdef"))).write_bytes(b"")
    for number in range(2100):
        (top / f"{number}").write_bytes(b"")
    status, lines = take(zkeep, top, "one", capsys)
    assert (status, len([line for line in lines if "their case" in line])) == (3, 64 - MAX_VARIANTS)
    found = extracted(zkeep, tmp_path, "v/home/named@one")
    assert len(names_in(found)) == 2100 + MAX_VARIANTS
