"""What surrounds a snapshot may be bad, too: the disk, the folder itself, other file systems, other snapshots."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from capturekit import extracted, listing, make_tree, sent
from historykit import check_objects

from zkeep.capture import previous, scan, snapshot
from zkeep.capture.scan import Scanner

Zkeep = Callable[..., int]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    make_tree(path)
    return path


def said(capsys: pytest.CaptureFixture[str], status: int) -> str:
    """The one line of an error."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


class Entry:
    """An entry of a folder whose name no file system of this machine may have."""

    def __init__(self, real: os.DirEntry[str], name: str) -> None:
        self.name = name
        self.stat = real.stat
        self.inode = real.inode


class LongNames:
    """os, with long names where `long-` stands."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def scandir(self, fd: int) -> Any:
        listing = os.scandir(fd)
        return _Listing(listing, self._length)


class _Listing:
    def __init__(self, real: Any, length: int) -> None:
        self._real, self._length = real, length

    def __enter__(self) -> Iterator[Any]:
        return iter([self._of(entry) for entry in self._real])

    def __exit__(self, *_: object) -> None:
        self._real.close()

    def _of(self, entry: os.DirEntry[str]) -> Any:
        return Entry(entry, entry.name.ljust(self._length, "x")) if entry.name.startswith("long-") else entry


@pytest.mark.parametrize("length", [256, 257, 1023, 70_000])
def test_a_name_that_is_too_long_is_left_out_and_reported(
    zkeep: Zkeep,
    tmp_path: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    length: int,
) -> None:
    """Some file systems have names of more than 255 bytes; the snapshot's has not."""
    want = listing(source)
    (source / "long-file").write_bytes(b"x")
    (source / "folders" / "long-folder").mkdir()
    (source / "folders" / "long-folder" / "below").write_bytes(b"x")
    monkeypatch.setattr(scan, "os", LongNames(length))
    monkeypatch.setattr(previous, "_listing", None)  # it would look past this
    for name in ("1", "2"):
        assert zkeep("snapshot", "--from", str(source), f"v/home@{name}") == 3
        assert f"its name has {length} bytes, more than 255" in capsys.readouterr().err
        check_objects(tmp_path / "pool", f"v/home@{name}")
    found = extracted(zkeep, tmp_path, "v/home@2")
    assert found.keys() == want.keys()


@pytest.mark.parametrize("first", [True, False])
def test_a_folder_that_goes_while_it_is_read(
    zkeep: Zkeep, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """All of it, between the look and the reading."""
    if not first:
        assert zkeep("snapshot", "--from", str(source), "v/home@0") == 0
        (source / "text").write_bytes(b"changed")
    genuine = Scanner.scan

    def scan_and_lose(self: Scanner, started: int) -> Any:
        found = genuine(self, started)
        shutil.rmtree(source)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Scanner, "scan", scan_and_lose)
        assert zkeep("snapshot", "--from", str(source), "v/home@1") in (0, 1, 3)
    assert zkeep("pool", "scrub", "v") == 0
    make_tree(source)
    assert zkeep("snapshot", "--from", str(source), "v/home@2") == 0
    check_objects(tmp_path / "pool", "v/home@2")
    assert extracted(zkeep, tmp_path, "v/home@2") == listing(source)


def test_the_folder_is_gone_when_it_is_opened(
    zkeep: Zkeep, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    genuine = snapshot._with_own

    def lose(*words: Any) -> Any:
        shutil.rmtree(source)
        return genuine(*words)

    monkeypatch.setattr(snapshot, "_with_own", lose)
    assert zkeep("snapshot", "--from", str(source), "v/home@1") in (0, 1)
    assert zkeep("pool", "scrub", "v") == 0
    assert "Traceback" not in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "zkeep-test", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounts cannot be made here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("step", ["4000000000", "500000"])
def test_a_disk_that_fills(
    zkeep: Zkeep,
    tmp_path: Path,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: str,
) -> None:
    """Nothing half done stays but whole steps; when there is room again, it goes on."""
    monkeypatch.setenv("ZKEEP_STEP", step)
    assert zkeep("pool", "create", "w", str(small_disk / "pool")) == 0
    options = ("encryption=on", "keyformat=raw", f"keylocation=file://{tmp_path / 'key'}")
    assert zkeep("create", *(word for option in options for word in ("-o", option)), "w/home") == 0
    source = tmp_path / "source"
    source.mkdir()
    (source / "kept").write_bytes(os.urandom(1 << 20))
    assert zkeep("snapshot", "--from", str(source), "w/home@1") == 0
    for number in range(4):
        (source / f"large{number}").write_bytes(os.urandom(3 << 20))
    capsys.readouterr()
    assert zkeep("snapshot", "--from", str(source), "w/home@2") == 1
    assert f"cannot create snapshot w/home@2: {small_disk / 'pool'}: No space left on device" in said(capsys, 1)
    assert zkeep("list", "-H", "-t", "snapshot", "-o", "name") == 0
    assert [name for name in capsys.readouterr().out.split() if "@step-" not in name] == ["w/home@1"]
    assert zkeep("pool", "scrub", "w") == 0
    for number in range(4):
        (source / f"large{number}").unlink()
    assert zkeep("snapshot", "--from", str(source), "w/home@2") == 0
    assert zkeep("pool", "compact", "w") == 0
    assert zkeep("pool", "scrub", "w") == 0
    check_objects(small_disk / "pool", "w/home@2", "w")
    # What is elsewhere makes room.
    (source / "more").write_bytes(os.urandom(3 << 20))
    assert zkeep("set", "contents=metadata", "w/home@2") == 0
    assert zkeep("snapshot", "--from", str(source), "w/home@3") == 0
    assert zkeep("verify", "w/home@3") == 0


def test_a_dataset_whose_newest_snapshot_was_made_elsewhere(
    zkeep: Zkeep, tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zkeep("snapshot", "--from", str(source), "v/home@1") == 0
    stream = sent(zkeep, tmp_path / "stream", "v/home@1")
    saved = os.dup(0)
    with stream.open("rb") as given:
        os.dup2(given.fileno(), 0)
    try:
        assert zkeep("receive", "v/copy") == 0
    finally:
        os.dup2(saved, 0)
        os.close(saved)
    capsys.readouterr()
    key = f"file://{tmp_path / 'key'}"
    for words in (["snapshot", "--from", str(source)], ["snapshot"]):
        assert zkeep("load-key", "-L", key, "v/copy") in (0, 1)
        capsys.readouterr()
        assert zkeep(*words, "v/copy@2") == 1
        assert "take it on the sending side" in said(capsys, 1)
    assert zkeep("list", "-H", "-t", "snapshot", "-o", "name", "v/copy") == 0
    assert capsys.readouterr().out.split() == ["v/copy@1"]


def test_a_file_in_place_of_the_folder(zkeep: Zkeep, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (source / "text", source / "fifo"):
        assert stat.S_IFMT(path.lstat().st_mode)
        capsys.readouterr()
        assert zkeep("snapshot", "--from", str(path), "v/home@1") == 1
        assert path.name in said(capsys, 1)
