"""The log of a mount is bounded, however often something fails."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from commandkit import create_encrypted, own_state
from mountkit import needs_fuse
from zkeep.cli.main import run
from zkeep.cli.mount import log as mount_log
from zkeep.cli.mount.log import MOST, WINDOW, MountLog

Lines = Callable[[], list[str]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1e6]
    monkeypatch.setattr(mount_log.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    return lambda: [line.split("zkeep: ", 1)[1] for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_told_once_an_hour(clock: list[float], lines: Lines) -> None:
    log = MountLog()
    for _ in range(1000):
        log("one")
    log("two")
    assert lines() == ["one", "two"]
    clock[0] += WINDOW
    log("one")
    assert lines() == [f"999 more errors: each is told once an hour, and at most {MOST} are", "one"]


def test_lines_that_all_differ_are_bounded(clock: list[float], lines: Lines) -> None:
    log = MountLog()
    for number in range(100_000):
        log(f"commit {number}")
    assert len(lines()) == MOST
    log.close()
    assert lines() == [f"{100_000 - MOST} more errors: each is told once an hour, and at most {MOST} are"]
    log.close()
    assert lines() == [], "it is told once"


def test_what_happens_rarely_is_told_each_time(clock: list[float], lines: Lines) -> None:
    log = MountLog()
    for _ in range(3):
        log("one")
        clock[0] += WINDOW
    assert lines() == ["one"] * 3


@needs_fuse
def test_a_damaged_file_that_is_read_in_a_loop_fills_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_state(tmp_path, monkeypatch)
    create_encrypted(tmp_path, "v/home")
    folder = tmp_path / "mnt"
    folder.mkdir()
    zkeep = [sys.executable, "-m", "zkeep"]
    subprocess.run([*zkeep, "mount", "v/home", folder], check=True)
    (folder / "file").write_bytes(os.urandom(1 << 20))
    subprocess.run([*zkeep, "unmount", folder], check=True)
    for segment in (tmp_path / "pool").rglob("*"):
        if segment.is_file() and segment.stat().st_size > 1 << 20:
            with segment.open("r+b") as file:
                for at in range(400 << 10, 700 << 10, 60_000):  # within blocks of the file
                    file.seek(at)
                    file.write(bytes(64))
    subprocess.run([*zkeep, "mount", "v/home", folder], check=True)
    try:
        with (folder / "file").open("rb", buffering=0) as file:
            for _ in range(300):
                with pytest.raises(OSError) as error:  # noqa: PT011 (which one is looked at below)
                    os.pread(file.fileno(), 1 << 20, 512 << 10)
                assert error.value.errno == errno.EIO
    finally:
        subprocess.run([*zkeep, "unmount", folder], check=True)
        run(["unload-key", "-a"])
    (log,) = [path for path in tmp_path.rglob("mount-*.log")]
    assert len(log.read_text().splitlines()) == 2, log.read_text()
