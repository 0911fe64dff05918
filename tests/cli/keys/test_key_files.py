"""Where a key comes from: only a regular file of a key's size is opened, and only where it was set here."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import keykit
from zkeep.cli.common import open_snapshot
from zkeep.cli.common.open_snapshot import read_key
from zkeep.cli.keys import changekey, encryption, root_key
from zkeep.cli.main import run
from zkeep.errors import Refused
from zkeep.pool.datasets.model import Pool

STORY = Path(__file__).parents[2] / "data" / "opened" / "story"
Output = pytest.CaptureFixture[str]


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """v/jambon: a root of encryption with four children, under a raw key."""
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZKEEP_AGENT", str(tmp_path / "runtime" / "agent"))
    assert run(["pool", "create", "v", str(tmp_path / "pool")]) == 0
    with (STORY / "full-Rw.zfs").open("rb") as source:
        command = [sys.executable, "-m", "zkeep", "receive", "v/jambon"]
        assert subprocess.run(command, stdin=source, check=False).returncode == 0
    return tmp_path / "pool"


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(path))


def folder(path: Path) -> None:
    path.mkdir()


def large(path: Path) -> None:
    path.write_bytes(b"")
    os.truncate(path, 1 << 40)


def link_to_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def missing(path: Path) -> None:
    """There is nothing."""


def empty(path: Path) -> None:
    path.touch()


def link_into_proc(path: Path) -> None:
    path.symlink_to("/proc/self/environ")


ODD = [fifo, bound, folder, large, empty, link_into_proc, link_to_fifo, link_to_a_device, link_to_itself, missing]


@pytest.mark.parametrize("make", ODD)
def test_what_is_no_key_file_is_not_read(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "key")
    with pytest.raises(Refused, match="cannot read the key") as caught:
        read_key(f"file://{tmp_path}/key")
    assert "\n" not in str(caught.value)


def test_a_device_is_not_even_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(Refused, match="not a regular file"):
        read_key("file:///dev/null")


def test_what_takes_the_place_of_a_file_meanwhile_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is looked at again once it is open."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "key").write_bytes(bytes(32))
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, flags: real(tmp_path / "pipe", flags))
    with pytest.raises(Refused, match="not a regular file"):
        read_key(f"file://{tmp_path}/key")


@pytest.mark.parametrize("location", ["/etc/key", "file://key", "key", "FILE:///key", "prompt ", "file:///a\nb", ""])
def test_what_is_no_location_is_not_set(pool: Path, capfd: Output, location: str) -> None:
    assert run(["set", f"keylocation={location}", "v/jambon"]) == 1
    assert "bad value" in capfd.readouterr().err
    for taken in ("prompt", "file:///etc/key", "https://host/key"):
        assert run(["set", f"keylocation={taken}", "v/jambon"]) == 0


VERBS = [["load-key"], ["change-key"], ["change-key", "-l"], ["ls"], ["verify"], ["mount", "-f"]]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_a_pipe_in_one_line(pool: Path, tmp_path: Path, capfd: Output, verb: list[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    capfd.readouterr()
    what = ["v/jambon@to-remote-server"] if verb[0] in ("ls", "verify", "mount") else ["v/jambon"]
    folder = [str(tmp_path)] if verb[0] == "mount" else []
    assert run([*verb, "-L", f"file://{tmp_path}/pipe", *what, *folder]) == 1
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "not a regular file" in err


@pytest.mark.parametrize("words", [["load-key", "v/jambon"], ["load-key", "-a"], ["change-key", "-l", "v/jambon"]])
def test_p1_a_location_that_was_received_is_not_opened(
    pool: Path, tmp_path: Path, capfd: Output, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    key = tmp_path / "theirs"
    key.write_bytes((STORY / "jambon-zfs-key").read_bytes())
    with Pool.open(pool) as opened, opened.transaction() as t:
        found = next(d for d in opened.tree().by_id.values() if d.name.text.endswith("/jambon"))
        opened.update_dataset(t, found, received={"keylocation": f"file://{key}"})
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    # Verbs are loaded when they are called: one that is loaded now would keep the replacement.
    for module in (open_snapshot, root_key, changekey, encryption):
        monkeypatch.setattr(module, "read_key", pytest.fail)
    capfd.readouterr()
    assert run(words) == 1
    assert capfd.readouterr().err.count("\n") == 1


def test_a_key_that_others_can_read_is_taken_with_one_warning(pool: Path, tmp_path: Path, capfd: Output) -> None:
    """A warning, as ssh has it; but the file is taken, as zfs takes it."""
    key = tmp_path / "key"
    keykit.write(key, (STORY / "jambon-zfs-key").read_bytes())
    for mode, warns in ((0o600, False), (0o400, False), (0o644, True), (0o640, True), (0o604, True), (0o622, False)):
        open_snapshot._warned().clear()
        key.chmod(mode)
        capfd.readouterr()
        assert run(["verify", "-r", "-L", f"file://{key}", "-L", f"file://{key}", "v/jambon@to-remote-server"]) == 0
        warned = capfd.readouterr().err
        assert warned.count("others can read the key") == warns, oct(mode)
        assert warned.count("\n") == warns


def test_a_file_that_waits_for_an_event_is_no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file like /proc/kmsg: a regular file to look at, of no bytes, and a read of it says to try again."""
    keykit.write(tmp_path / "key", b"")
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    real = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest: os.dup(ours) if path == str(tmp_path / "key") else real(path, *rest)
    )
    monkeypatch.setattr(open_snapshot, "_no_key_file", lambda _: "")
    with pytest.raises(Refused, match="not a regular file"):
        read_key(f"file://{tmp_path}/key")
    os.close(ours)
    os.close(theirs)


GIVEN = {
    "a key file": "from zkeep.cli.common.open_snapshot import read_key; read_key('file:///dev/null')",
    "standard input": "from zkeep.cli.common.open_snapshot import piped; piped(1)",
    "the agent": "from zkeep.agent.client import borrowed; borrowed().__enter__()",
}


@pytest.mark.parametrize("how", GIVEN)
def test_p1_a_program_that_is_given_a_key_leaves_no_core_dump(how: str, tmp_path: Path) -> None:
    """Not at a signal from the keyboard either, and no other process of its user looks into its memory."""
    look = "import ctypes, resource; print(ctypes.CDLL(None).prctl(3), resource.getrlimit(resource.RLIMIT_CORE))"
    work = f"try: {GIVEN[how]}\nexcept Exception: pass\n{look}"
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "ZKEEP_AGENT": str(tmp_path / "none")}
    command = [sys.executable, "-c", work]
    done = subprocess.run(command, input=b"", capture_output=True, check=True, env=environ)
    assert done.stdout == b"0 (0, 0)\n"
