"""P3: all or nothing, also when the disk is full, the pool is busy, or somebody else receives the same."""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from badkit import Answer, Box, one_line, stream

from zkeep.pool.datasets.model import Pool

FULL = stream("rs1k", "full-s0")
NEXT = stream("rs1k", "inc-s0-s1")
COMMAND = [sys.executable, "-m", "zkeep"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small tmpfs")
    gc.disable()  # what is left open must show
    try:
        yield place
        subprocess.run(["umount", str(place)], check=True)
    finally:
        gc.enable()


def test_p3_a_full_disk_changes_nothing(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZKEEP_HOME", str(small_disk))
    box = Box(small_disk)
    box.takes(FULL, "v/x@s0")
    big = stream("ccm256-off-4k", "full-s4")
    for left in (0, 8 << 10, 60 << 10, 200 << 10, 400 << 10):
        room, filler = os.statvfs(small_disk), small_disk / "filler"
        filler.write_bytes(bytes(max(room.f_bavail * room.f_bsize - left, 0)))
        answer = box.receive(big, "v/y")
        filler.unlink()
        assert answer.status == 1, answer
        one_line(answer)
        assert answer.err == "zkeep: cannot receive v/y: No space left on device\n"
        documents, files = box.state()
        assert [d["name"] for d in documents["dataset"].values()] == ["", "x"]
        assert not documents["receive"]
        assert len(files) == 1
    box.takes(NEXT, "v/x@s1")


def test_p3_a_locked_catalog_is_busy(kept: Box) -> None:
    lock = sqlite3.connect(kept.path / "catalog.sqlite", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    try:
        answer = kept.receive(stream("rs512b", "inc-s0-s1"), "v/x@s1")
    finally:
        lock.execute("ROLLBACK")
        lock.close()
    assert answer.status in (0, 5), answer
    if answer.status:
        one_line(answer)
        assert not kept.state()[0]["receive"]
        kept.takes(stream("rs512b", "inc-s0-s1"), "v/x@s1")


def receiver(*arguments: str) -> subprocess.Popen[bytes]:
    """It takes an interrupt, also where this runs in the background, for which shells have it ignored."""
    command = [*COMMAND, "receive", *arguments]
    pipe = subprocess.PIPE
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
    finally:
        signal.signal(signal.SIGINT, before)


def begun(box: Box) -> None:
    """Wait until a receive is registered; a scrub each time would keep the receive waiting for the catalog."""
    for _ in range(200):
        with Pool.open(box.path, "v") as pool:
            if dict(pool.catalog.scan("receive")):
                return
        time.sleep(0.05)
    raise AssertionError("nothing is being received")


@pytest.mark.parametrize("options", [[], ["-s"]])
def test_p3_two_receivers_at_once(kept: Box, options: list[str]) -> None:
    data = stream("rs512b", "inc-s0-s1")
    one = receiver(*options, "v/x@s1")
    assert one.stdin
    one.stdin.write(data[:5000])
    one.stdin.flush()
    begun(kept)
    answer = kept.receive(data, *options, "v/x@s1")
    assert answer.status == 5, answer
    one_line(answer)
    destroyed = kept.zkeep("destroy", "-r", "v/x")
    assert destroyed.status == 5, destroyed
    one.communicate(data[5000:], timeout=30)
    assert one.returncode == 0
    assert kept.zkeep("list", "-H", "-t", "snapshot", "-o", "name").out.split() == ["v/x@s0", "v/x@s1"]
    kept.state()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_p3_an_interrupted_receive_leaves_nothing(kept: Box, number: signal.Signals) -> None:
    before = kept.state()
    one = receiver("v/x@s1")
    assert one.stdin
    one.stdin.write(stream("rs512b", "inc-s0-s1")[:5000])
    one.stdin.flush()
    begun(kept)
    one.send_signal(number)
    _, err = one.communicate(timeout=30)
    if number == signal.SIGKILL:
        assert kept.zkeep("pool", "scrub", "v").status == 0
        kept.takes(stream("rs512b", "inc-s0-s1"), "v/x@s1")
    else:
        assert one.returncode == 5, err
        assert err.count(b"\n") == 1
        assert kept.state() == before


def test_p3_clients_leave_room_in_which_snapshots_are_destroyed(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much a client sends, what is left of the disk is enough to destroy some of it, and to go on."""
    monkeypatch.setenv("ZKEEP_HOME", str(small_disk))
    box = Box(small_disk)
    monkeypatch.setattr("zkeep.pool.datasets.room.RESERVED_SHARE", 2)  # of 1 MiB
    assert box.zkeep("create", "v/alice").status == 0

    def ask(line: str, stdin: bytes = b"") -> Answer:
        monkeypatch.setenv("SSH_ORIGINAL_COMMAND", line)
        return box.zkeep("server", "--root", "v/alice", "--allow", "receive,list,destroy", stdin=stdin)

    assert ask("zkeep receive v/alice/x", FULL).status == 0
    filler = small_disk / "filler"
    room = os.statvfs(small_disk)
    filler.write_bytes(bytes(room.f_bavail * room.f_bsize - (300 << 10)))
    answer = ask("zkeep receive v/alice/y", FULL)
    assert answer.status == 1
    assert answer.err == "zkeep: cannot receive v/alice/y: out of space\n"
    assert ask("zkeep destroy -r v/alice/x").status == 0
    filler.unlink()
    assert ask("zkeep receive v/alice/y", FULL).status == 0
