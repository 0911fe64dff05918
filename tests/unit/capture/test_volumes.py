"""A disk image that was stored in a volume comes back as it was, and only blocks that changed are stored again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from capturekit import sent

from zkeep.capture import image
from zkeep.cli.common import snapshot_from
from zkeep.format.events import Batch
from zkeep.format.reader import read_events
from zkeep.format.records import RecordType

Zkeep = Callable[..., int]
BLOCK = 16 << 10


def stream(zkeep: Zkeep, tmp_path: Path, *words: str) -> list[tuple[str, int, int, int]]:
    """Type, object, offset and length of the WRITE and FREE records."""
    found = []
    with sent(zkeep, tmp_path / "stream", *words).open("rb") as source:
        for event in read_events(source):
            for rtype in (RecordType.WRITE, RecordType.FREE) if isinstance(event, Batch) else ():
                _, headers = event.select(rtype)
                length = headers["logical_size" if rtype == RecordType.WRITE else "length"]
                rows = zip(headers["object"].tolist(), headers["offset"].tolist(), length.tolist(), strict=True)
                found += [(rtype.name, *row) for row in rows]
    return found


def image_of(zkeep: Zkeep, tmp_path: Path, snapshot: str) -> bytes:
    target = tmp_path / f"out-{snapshot.replace('/', '-')}"
    assert zkeep("extract", "-C", str(target), snapshot) == 0
    (path,) = target.iterdir()
    return path.read_bytes()


@pytest.fixture
def disk(zkeep: Zkeep, tmp_path: Path) -> Path:
    """An image of 1 MiB and 5 bytes: data, zeros, a hole, data."""
    assert zkeep("create", "-s", "-V", "2M", "v/home/disk") == 0
    path = tmp_path / "disk.img"
    with path.open("wb") as sink:
        sink.write(os.urandom(5 * BLOCK) + bytes(3 * BLOCK))
        sink.seek(1 << 20)
        sink.write(b"tail!")
    return path


def test_only_changed_blocks_are_stored(zkeep: Zkeep, tmp_path: Path, disk: Path) -> None:
    want = {}
    for turn in range(4):
        assert zkeep("snapshot", "--from", str(disk), f"v/home/disk@{turn}") == 0
        want[turn] = disk.read_bytes().ljust(2 << 20, b"\0")
        with disk.open("r+b") as sink:
            sink.seek([BLOCK + 3, 2 * BLOCK, 20 * BLOCK, 0][turn])
            sink.write([b"changed", bytes(BLOCK), b"new data in a hole", b""][turn])
    for turn, content in want.items():
        assert image_of(zkeep, tmp_path, f"v/home/disk@{turn}") == content
        assert zkeep("verify", f"v/home/disk@{turn}") == 0
    full = {row[1:3] for row in stream(zkeep, tmp_path, "v/home/disk@0") if row[0] == "WRITE"}
    assert full == {(1, at * BLOCK) for at in [0, 1, 2, 3, 4, 64]} | {(2, 0)}, "zeros are holes"

    def changed(turn: int) -> list[tuple[str, int, int, int]]:
        rows = stream(zkeep, tmp_path, "-i", f"@{turn - 1}", f"v/home/disk@{turn}")
        return [row for row in rows if row[3] < 1 << 62]

    assert changed(1) == [("WRITE", 1, BLOCK, BLOCK)]
    assert ("FREE", 1, 2 * BLOCK, BLOCK) in changed(2)
    assert not [row for row in changed(2) if row[0] == "WRITE"]
    assert changed(3) == [("WRITE", 1, 20 * BLOCK, BLOCK)]


def test_its_state_is_named_without_a_source(zkeep: Zkeep, tmp_path: Path) -> None:
    assert zkeep("create", "-V", "100000", "-b", "4K", "v/home/disk") == 0
    assert zkeep("snapshot", "v/home/disk@1") == 0
    assert image_of(zkeep, tmp_path, "v/home/disk@1") == bytes(25 * 4096)
    (tmp_path / "disk.img").write_bytes(b"x" * 5000)
    assert zkeep("snapshot", "--from", str(tmp_path / "disk.img"), "v/home/disk@2") == 0
    assert zkeep("snapshot", "v/home/disk@3") == 0
    assert image_of(zkeep, tmp_path, "v/home/disk@3") == (b"x" * 5000).ljust(25 * 4096, b"\0")


def test_properties(zkeep: Zkeep, capsys: pytest.CaptureFixture[str]) -> None:
    assert zkeep("create", "-V", "100000", "-o", "volblocksize=8K", "v/home/disk") == 0
    assert zkeep("get", "-Hp", "-o", "value", "type,volsize,volblocksize,encryption", "v/home/disk") == 0
    assert capsys.readouterr().out.split() == ["volume", "106496", "8192", "aes-256-gcm"]


@pytest.mark.parametrize("size", ["0", "none", "1", "12345", "9E", "1.5"])
def test_a_size_that_no_volume_has(size: str, zkeep: Zkeep, capsys: pytest.CaptureFixture[str]) -> None:
    assert zkeep("create", "-V", "64K", "-b", "8K", "v/home/disk") == 0
    assert zkeep("set", f"volsize={size}", "v/home/disk") == 1
    assert zkeep("set", "volsize=128K", "v/home/disk") == 0
    for option in ([], ["-S"]):
        assert zkeep("inherit", *option, "volsize", "v/home/disk") == 1
    assert zkeep("get", "-Hp", "-o", "value", "volsize", "v/home/disk") == 0
    assert capsys.readouterr().out.strip() == "131072"


def test_a_volume_grows_by_whole_blocks(zkeep: Zkeep, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert zkeep("create", "-V", "64K", "-b", "8K", "v/home/disk") == 0
    (tmp_path / "disk.img").write_bytes(b"x" * 70_000)
    assert zkeep("snapshot", "--from", str(tmp_path / "disk.img"), "v/home/disk@1") == 1
    assert "zkeep set volsize=73728" in capsys.readouterr().err


def test_a_volume_grows(zkeep: Zkeep, tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert zkeep("snapshot", "--from", str(disk), "v/home/disk@1") == 0
    with disk.open("r+b") as sink:
        sink.truncate(3 << 20)
        sink.seek((3 << 20) - 3)
        sink.write(b"end")
    assert zkeep("snapshot", "--from", str(disk), "v/home/disk@2") == 1
    assert "zkeep set volsize=3145728" in capsys.readouterr().err
    assert zkeep("set", "volsize=3145728", "v/home/disk") == 0
    assert zkeep("snapshot", "--from", str(disk), "v/home/disk@2") == 0
    assert image_of(zkeep, tmp_path, "v/home/disk@2") == disk.read_bytes()
    assert len(image_of(zkeep, tmp_path, "v/home/disk@1")) == 2 << 20


def test_refusals(zkeep: Zkeep, tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert zkeep("create", "-V", "1M", "v/plain") == 1
    assert "encryption=on" in capsys.readouterr().err
    assert zkeep("create", "-V", "0", "v/home/none") == 1
    assert zkeep("create", "-V", "1M", "-b", "5000", "v/home/none") == 1
    assert zkeep("create", "-V", "much", "v/home/none") == 2
    assert zkeep("create", "-b", "4K", "v/home/none") == 2
    assert zkeep("snapshot", "--from", str(tmp_path), "v/home/disk@1") == 1
    assert "name a disk image" in capsys.readouterr().err
    assert zkeep("snapshot", "--from", str(disk), "v/home@1") == 1
    assert zkeep("snapshot", "--from", str(disk), "-n", "v/home/disk@1") == 2
    assert zkeep("snapshot", "--from", str(disk), "--exclude", "x", "v/home/disk@1") == 2
    assert zkeep("snapshot", "--from", str(tmp_path / "nowhere"), "v/home/disk@1") == 1
    os.mkfifo(tmp_path / "fifo")
    assert zkeep("snapshot", "--from", str(tmp_path / "fifo"), "v/home/disk@1") == 1
    assert zkeep("list", "-H", "-t", "snapshot", "-o", "name") == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("blocksize", ["512", "128K", "1M"])
def test_block_sizes(zkeep: Zkeep, tmp_path: Path, blocksize: str) -> None:
    assert zkeep("create", "-V", "3M", "-b", blocksize, "v/home/disk") == 0
    image = tmp_path / "image"
    image.write_bytes(os.urandom(3 << 20))
    assert zkeep("snapshot", "--from", str(image), "v/home/disk@1") == 0
    with image.open("r+b") as sink:
        sink.seek(2_000_000)
        sink.write(bytes(700_000))
    assert zkeep("snapshot", "--from", str(image), "v/home/disk@2") == 0
    assert image_of(zkeep, tmp_path, "v/home/disk@2") == image.read_bytes()


@pytest.mark.parametrize("is_device", [False, True])
@pytest.mark.parametrize("writes", [False, True])
def test_a_source_that_is_written_to_while_it_is_read_is_reported(
    zkeep: Zkeep,
    tmp_path: Path,
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_device: bool,
    writes: bool,
) -> None:
    """A file tells by its times, a device by what Linux counts: reads differ, and writes in the fifth field."""
    counts = tmp_path / "259:7"
    counts.mkdir()
    (counts / "stat").write_text("10 0 80 1 2 0 16 0 0 1 1 0 0 0 0 5 1\n")
    if is_device:
        genuine = os.fstat

        def fstat(fd: int) -> os.stat_result:
            found = genuine(fd)
            if not os.path.samestat(found, disk.stat()):
                return found
            fields = {"st_rdev": os.makedev(259, 7), "st_mtime_ns": 0, "st_ctime_ns": 0}
            return os.stat_result((0o060600, *found[1:]), fields)

        monkeypatch.setattr(image.os, "fstat", fstat)
        monkeypatch.setattr(image, "DEVICES", str(tmp_path))

    def read(self: snapshot_from.Printer, size: int) -> None:
        (counts / "stat").write_text(f"99 0 999 1 {2 + writes} 0 16 0 0 1 1 0 0 0 0 5 1\n")
        if writes:
            os.utime(disk)

    monkeypatch.setattr(snapshot_from.Printer, "read", read)
    assert zkeep("snapshot", "--from", str(disk), "v/home/disk@1") == (3 if writes else 0)
    assert ("changed while it was read" in capsys.readouterr().err) == writes
    assert image_of(zkeep, tmp_path, "v/home/disk@1")[: 1 << 20] == disk.read_bytes()[: 1 << 20]
