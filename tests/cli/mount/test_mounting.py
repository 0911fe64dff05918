"""zkeep mount and unmount, as a person calls them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

import keykit
from commandkit import create_encrypted, own_state
from mountkit import needs_fuse
from zkeep.cli.main import run
from zkeep.errors import Refused
from zkeep.restore.mount.fuse import _driver

STORY = Path(__file__).parents[2] / "data" / "opened" / "story"
KEY = keykit.location(STORY / "jambon-zfs-key")
STREAMS = [str(STORY / "full-Rw.zfs"), str(STORY / "inc-w.zfs")]


def zkeep(*arguments: str, home: Path, stdin: BinaryIO | None = None) -> tuple[int, str]:
    """In a process of its own, as it goes on in the background; status, and all that was printed."""
    environment = {**os.environ, "ZKEEP_HOME": str(home / "home"), "XDG_RUNTIME_DIR": str(home)}
    command = [sys.executable, "-c", "from zkeep.cli.main import main; main()", *arguments]
    done = subprocess.run(
        command, check=False, stdin=stdin, capture_output=True, text=True, env=environment, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


@needs_fuse
def test_streams_are_mounted_listed_and_unmounted(tmp_path: Path) -> None:
    folder = tmp_path / "m n"
    folder.mkdir()
    what = [*STREAMS, "blanc@work-of-the-day", str(folder), "-L", KEY]
    assert zkeep("mount", "-o", "ro", *what, home=tmp_path) == (0, "")
    try:
        assert (folder / "another-file").stat().st_size == 5 << 20
        assert f"blanc@work-of-the-day  {folder}\n" in zkeep("mount", home=tmp_path)[1]
        with (folder / "another-file").open("rb"):
            status, text = zkeep("unmount", str(folder), home=tmp_path)
            assert status == 5
            assert text.count("\n") == 1
    finally:
        assert zkeep("unmount", str(folder), home=tmp_path) == (0, "")
    assert not os.path.ismount(folder)
    assert zkeep("unmount", str(folder), home=tmp_path)[0] == 1


def test_what_cannot_be_mounted_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(bytes(32))
    (tmp_path / "key").chmod(0o600)
    wrong = f"file://{tmp_path}/key"
    for arguments, status in [
        ([*STREAMS, str(tmp_path), "-L", wrong], 1),
        ([*STREAMS, str(tmp_path / "no where"), "-L", KEY], 1),
        ([*STREAMS, str(tmp_path / "key"), "-L", KEY], 1),
        ([*STREAMS, "blanc@nothing", str(tmp_path), "-L", KEY], 1),
        (["nopool/x@y", str(tmp_path), "-L", KEY], 1),
        ([*STREAMS, str(tmp_path), "-L", KEY, "-o", "rw"], 2),
        ([str(tmp_path)], 2),
    ]:
        got, text = zkeep("mount", *arguments, home=tmp_path)
        assert (got, text.count("\n")) == (status, 1), text
        assert text.startswith("zkeep: ")
        assert not os.path.ismount(tmp_path)
        if str(tmp_path / "no where") in arguments:
            assert text.endswith(f": mkdir -p '{tmp_path}/no where'\n")  # what the command line takes as it stands


def test_what_mounting_lacks_is_named_with_a_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zkeep.restore.mount.readdirplus", None)
    with pytest.raises(Refused) as refused:
        _driver()
    assert str(refused.value).endswith(f": {shlex.quote(sys.executable)} -m pip install mfusepy")


@needs_fuse
def test_a_dataset_is_mounted_with_all_its_snapshots(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    zkeep("pool", "create", "vault", str(tmp_path / "vault"), home=tmp_path)
    for stream in STREAMS:
        target = "vault/home" if stream == STREAMS[0] else "vault/home/blanc"
        with open(stream, "rb") as source:
            assert zkeep("receive", "-F", target, home=tmp_path, stdin=source) == (0, "")
    assert zkeep("mount", "vault/home/blanc", str(folder), "-L", KEY, home=tmp_path) == (0, "")
    try:
        snapshots = {path.name for path in (folder / ".zfs" / "snapshot").iterdir()}
        assert {"2018", "work-of-the-day"} <= snapshots
        assert (folder / "another-file").exists()
        assert not (folder / ".zfs" / "snapshot" / "2018" / "another-file").exists()
        assert "vault/home/blanc " in zkeep("mount", home=tmp_path)[1]
    finally:
        assert zkeep("umount", "vault/home/blanc", home=tmp_path) == (0, "")
    assert zkeep("destroy", "-r", "vault/home", home=tmp_path)[0] == 0


@needs_fuse
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a folder read-only")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("mount -o ro -L {key} v/t {folder}", ""),
        ("mount -r -L {key} v/t {folder}", ""),
        ("mount -L {key} v/t {folder}", "cannot be written to: v/t is mounted read-only"),
    ],
)
def test_what_was_made_here_is_mounted_from_a_read_only_disk_and_unmounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, says: str
) -> None:
    own_state(tmp_path, monkeypatch)
    create_encrypted(tmp_path, "v/t")
    (tmp_path / "m").mkdir()
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "note").write_text("here")
    key = f"file://{tmp_path}/key"
    (tmp_path / "key").chmod(0o600)
    assert run(["snapshot", "--from", str(tmp_path / "f"), "v/t@s"]) == 0
    assert run(["unload-key", "-a"]) == 0
    # The disk is read-only in a name space of its own, which goes with its last process.
    script = """
        mount --make-rprivate / && mount --bind "$1/pool" "$1/pool" && mount -o remount,ro,bind "$1/pool" || exit 77
        shift; zkeep="$1"; folder="$2"; shift 2
        "$zkeep" "$@" && cat "$folder/note" && "$zkeep" unmount "$folder" && ! mountpoint -q "$folder"
    """
    line = words.format(key=key, folder=tmp_path / "m").split()
    program = str(Path(sys.executable).with_name("zkeep"))
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path), program, str(tmp_path / "m"), *line],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode == 77:
        pytest.skip("no folder can be mounted here")
    assert (done.returncode, done.stdout) == (0, "here"), done
    assert says in done.stderr if says else "warning" not in done.stderr
