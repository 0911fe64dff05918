"""unload-key: a key stays as long as a process works with what it opens, whatever that is called meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import keykit
from mountkit import needs_fuse
from zkeep.agent import client
from zkeep.agent.in_use import Busy, InUse, unused
from zkeep.cli.main import run

STORY = Path(__file__).parents[2] / "data" / "opened" / "story"
KEY = keykit.location(STORY / "jambon-zfs-key")
SNAPSHOT = "v/jambon/blanc@2018"
USER = """
import sys
from zkeep.cli.common.open_snapshot import opened_snapshot
with opened_snapshot(sys.argv[1:], ()):
    print(flush=True)
    sys.stdin.read()
"""
Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Output) -> Iterator[None]:
    """v/jambon: a root of encryption with four children, its key loaded."""
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZKEEP_AGENT", str(tmp_path / "runtime" / "agent"))
    assert run(["pool", "create", "v", str(tmp_path / "pool")]) == 0
    with (STORY / "full-Rw.zfs").open("rb") as source:
        command = [sys.executable, "-m", "zkeep", "receive", "v/jambon"]
        assert subprocess.run(command, stdin=source, check=False).returncode == 0
    assert run(["load-key", "-L", KEY, "v/jambon"]) == 0
    capfd.readouterr()
    yield
    run(["unload-key", "-a"])
    assert client.keys() == []


@contextmanager
def reader(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another process of this user that has a snapshot open."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", USER, *words], stdin=pipe, stdout=pipe) as process:
        assert process.stdout
        assert process.stdout.readline() == b"\n"
        yield process
        assert process.stdin
        process.stdin.close()


def busy(capfd: Output, *words: str) -> None:
    capfd.readouterr()
    assert run(["unload-key", *words]) == 5
    out, err = capfd.readouterr()
    assert err.count("\n") == 1
    assert "is busy" in err
    if words[0].startswith("-"):
        assert out == "0 / 1 key(s) successfully unloaded\n"
    assert len(client.keys()) == 1


@pytest.mark.parametrize("words", [["v/jambon"], ["-r", "v"], ["-a"]])
def test_p1_a_key_that_is_used_is_busy(capfd: Output, words: list[str]) -> None:
    with reader(SNAPSHOT):
        busy(capfd, *words)
    assert run(["unload-key", *words]) == 0
    assert client.keys() == []


def test_it_is_busy_under_another_name(capfd: Output) -> None:
    with reader(SNAPSHOT):
        assert run(["rename", "v/jambon", "v/york"]) == 0
        busy(capfd, "v/york")


def test_it_is_busy_where_a_stream_of_the_same_is_read(capfd: Output) -> None:
    with reader(str(STORY / "full-Rw.zfs")):
        busy(capfd, "v/jambon")


def test_a_process_that_was_killed_uses_nothing() -> None:
    with reader(SNAPSHOT) as process:
        process.kill()
    assert run(["unload-key", "v/jambon"]) == 0


def test_what_was_opened_by_a_call_that_ended_is_not_in_use(capfd: Output) -> None:
    assert run(["ls", SNAPSHOT]) == 0
    assert run(["unload-key", "v/jambon"]) == 0


def test_several_use_a_key_and_the_last_one_counts() -> None:
    first, second = InUse(), InUse()
    first.hold(7)
    second.hold(7)
    first.release()
    with pytest.raises(Busy, match="it is"), unused([6, 7], "it is"):
        pass
    second.release()
    with unused([6, 7], "it is"):
        pass


@needs_fuse
def test_p1_a_key_of_what_is_mounted_stays_until_the_mount_ends(capfd: Output, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    command = [sys.executable, "-m", "zkeep", "mount"]
    assert subprocess.run([*command, SNAPSHOT, str(folder)], check=False).returncode == 0
    try:
        assert os.listdir(folder)
        busy(capfd, "v/jambon")
    finally:
        assert run(["unmount", str(folder)]) == 0
    assert run(["unload-key", "v/jambon"]) == 0


@needs_fuse
def test_a_mount_whose_process_was_killed_keeps_no_key(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    command = [sys.executable, "-m", "zkeep", "mount", "-f", SNAPSHOT, str(folder)]
    with subprocess.Popen(command) as process:
        while not os.path.ismount(folder):
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert run(["unload-key", "v/jambon"]) == 0
    assert run(["unmount", "-f", str(folder)]) == 0


@pytest.mark.parametrize(
    "words", [["destroy", "-r", "v/jambon"], ["pool", "export", "v"], ["pool", "destroy", "-f", "v"]]
)
def test_p1_a_key_goes_with_what_it_opens(words: list[str]) -> None:
    assert len(client.keys()) == 1
    assert run(words) == 0
    assert client.keys() == []


def test_p1_other_keys_stay(tmp_path: Path) -> None:
    assert run(["pool", "create", "w", str(tmp_path / "other")]) == 0
    options = ["encryption=on", "keyformat=raw", f"keylocation={KEY}"]
    assert run(["create", *(word for option in options for word in ("-o", option)), "w/mine"]) == 0
    assert len(client.keys()) == 2
    assert run(["destroy", "-r", "v/jambon"]) == 0
    assert len(client.keys()) == 1
    assert run(["destroy", "w/mine"]) == 0
    assert client.keys() == []
