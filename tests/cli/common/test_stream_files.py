"""Stream files as people have them: compressed, one behind the other, from pipes; and what is no stream."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import lz4.frame
import pytest
import zstandard

import keykit
from zkeep.cli.common import stream_files
from zkeep.cli.main import run
from zkeep.errors import Refused

STORY = Path(__file__).parents[2] / "data" / "opened" / "story"
KEY = ("-L", keykit.location(STORY / "jambon-zfs-key"))
FULL, INCREMENT = (STORY / "full-Rw.zfs").read_bytes(), (STORY / "inc-w.zfs").read_bytes()
Output = pytest.CaptureFixture[str]
Pack = Callable[[bytes], bytes]

PACKED: dict[str, Pack] = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "lz4": lz4.frame.compress,
    # pzstd puts the length of the next frame into a frame that is skipped.
    "pzstd": lambda data: b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + zstandard.ZstdCompressor().compress(data),
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
}


def listed(capfd: Output, *arguments: str, status: int = 0) -> str:
    assert run(["ls", *KEY, *arguments]) == status
    out, err = capfd.readouterr()
    return out if status == 0 else err


def in_two(pack: Pack) -> Pack:
    """Compressed pieces, as `pzstd`, `pigz` or `cat a.gz b.gz` make a file of several compressed streams."""
    return lambda data: pack(data[:1000]) + pack(data[1000:])


@pytest.mark.parametrize("pack", [*PACKED.values(), *map(in_two, PACKED.values())])
def test_a_compressed_stream_is_opened(pack: Pack, tmp_path: Path, capfd: Output) -> None:
    (tmp_path / "s").write_bytes(pack(FULL))
    assert "jambons\n" in listed(capfd, str(tmp_path / "s"), "blanc@2018")


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_streams_may_follow_one_another_in_a_file(pack: Pack, tmp_path: Path, capfd: Output) -> None:
    (tmp_path / "s").write_bytes(pack(FULL) + pack(INCREMENT) if pack is not PACKED["plain"] else FULL + INCREMENT)
    assert "another-file" in listed(capfd, str(tmp_path / "s"), "blanc@work-of-the-day")


def test_pipes_and_standard_input_are_streams(tmp_path: Path, capfd: Output) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = Thread(target=lambda: (tmp_path / "pipe").write_bytes(gzip.compress(FULL, mtime=0)))
    writer.start()
    assert "jambons\n" in listed(capfd, str(tmp_path / "pipe"), "blanc@2018")
    writer.join()
    command = [sys.executable, "-m", "zkeep", "ls", *KEY, "-", "blanc@work-of-the-day"]
    done = subprocess.run(command, input=FULL + lzma.compress(INCREMENT), capture_output=True, check=False)
    assert done.returncode == 1  # two ways to be packed in one file are none
    done = subprocess.run(command, input=FULL + INCREMENT, capture_output=True, check=False)
    assert b"another-file" in done.stdout


@pytest.mark.parametrize("name", [name for name in PACKED if name != "plain"])
@pytest.mark.parametrize("damage", ["cut short", "changed"])
def test_a_broken_packing_is_told_of_in_one_line(name: str, damage: str, tmp_path: Path, capfd: Output) -> None:
    data = PACKED[name](FULL)
    broken = data[:-20] if damage == "cut short" else data[:400] + b"\xff" * 400 + data[800:]
    (tmp_path / "s").write_bytes(broken)
    told = listed(capfd, str(tmp_path / "s"), status=1)
    assert told.startswith("zkeep: cannot ")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (FULL[:100], "it is cut short: it ends after 100 bytes"),
        (b"#!/bin/sh\n" * 100, "it does not begin like a send stream"),
        (gzip.compress(b"something else" * 100, mtime=0), "it does not begin like a send stream"),
        (FULL + b"more", "a BEGIN|data after|does not begin like"),
        (FULL[:-1], "ends"),
        (None, "No such file or directory"),
    ],
)
def test_what_is_no_stream_is_said(content: bytes | None, why: str, tmp_path: Path, capfd: Output) -> None:
    if content is not None:
        (tmp_path / "s").write_bytes(content)
    for verb in (["ls"], ["cat"], ["extract", "-C", str(tmp_path / "x")], ["verify"], ["diff"]):
        assert run([*verb, *KEY, str(tmp_path / "s")]) == 1
        told = capfd.readouterr().err
        assert "dataset name" not in told
        assert any(part in told for part in why.split("|"))
        assert told.count("\n") == 1


def test_a_folder_is_no_stream(tmp_path: Path, capfd: Output) -> None:
    assert "it is a folder" in listed(capfd, str(tmp_path), status=1)


def test_a_path_may_hold_an_at(tmp_path: Path, capfd: Output) -> None:
    """Only what the streams bring is a snapshot; all else is a path in the newest one."""
    (tmp_path / "s").write_bytes(FULL)
    for path in ("getty@tty1.service", "./getty@tty1.service", "/getty@tty1.service", "@types", "a b@c"):
        assert f"zkeep: {path}: no such file or directory\n" == listed(capfd, str(tmp_path / "s"), path, status=1)
    assert run(["diff", *KEY, str(tmp_path / "s"), "blanc@2018", "@nothing"]) == 1
    assert "the streams bring no such snapshot" in capfd.readouterr().err
    assert run(["diff", *KEY, str(tmp_path / "s"), "blanc@2018"]) == 2


def test_a_name_too_long_for_a_file_is_told_of(capfd: Output) -> None:
    assert listed(capfd, "v/" + "x" * 5000 + "@s", status=1).count("\n") == 1
    assert listed(capfd, "/" + "x" * 5000, status=1).count("\n") == 1


def test_a_bomb_is_unpacked_in_pieces() -> None:
    """A megabyte of it would be gigabytes; as it holds no stream, little is unpacked."""
    data = gzip.compress(bytes(32 << 20))
    unpacked = stream_files.Unpacked(io.BytesIO(data), stream_files.PACKINGS[0], "s")
    room = bytearray(1 << 20)
    assert unpacked.readinto(room) == len(room)
    assert len(unpacked._ready) < 8 << 20


def test_a_file_that_asks_for_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_files, "XZ_MEMORY", 1 << 16)
    unpacked = stream_files.Unpacked(io.BytesIO(lzma.compress(FULL)), stream_files.PACKINGS[1], "s")
    with pytest.raises(Refused, match="cannot read s: its xz data is damaged: Memory usage limit"):
        unpacked.readinto(bytearray(10))


def test_dump_prints_several_streams(tmp_path: Path, capfd: Output) -> None:
    (tmp_path / "s").write_bytes(zstandard.ZstdCompressor().compress(FULL + INCREMENT))
    assert run(["dump", str(tmp_path / "s")]) == 0
    whole = capfd.readouterr().out
    assert f"Total stream length = {len(FULL + INCREMENT)} " in whole
    assert run(["dump", str(tmp_path / "nothing")]) == 1
    assert "No such file or directory" in capfd.readouterr().err


@pytest.mark.parametrize("content", [b"h", b"hello\n", bytes(3) + b"\1", bytes(8) + b"\xac\xdb", b"{}" * 150])
def test_a_short_file_of_something_else_is_called_that(content: bytes, tmp_path: Path, capfd: Output) -> None:
    (tmp_path / "s").write_bytes(content)
    for file in (str(tmp_path / "s"), gzip.compress(content)):
        if isinstance(file, bytes):
            (tmp_path / "s").write_bytes(file)
        assert run(["dump", str(tmp_path / "s")]) == 1
        assert "it does not begin like a send stream" in capfd.readouterr().err


@pytest.mark.parametrize("count", [1, 4, 9, 16, 300])
def test_the_start_of_a_stream_is_one_that_is_cut_short(count: int, tmp_path: Path, capfd: Output) -> None:
    (tmp_path / "s").write_bytes(FULL[:count])
    assert run(["dump", str(tmp_path / "s")]) == 1
    assert "the stream ends in it" in capfd.readouterr().err
