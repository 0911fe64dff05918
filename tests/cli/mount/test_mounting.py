"""zkeep mount and unmount, as a person calls them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import keykit
from mountkit import needs_fuse

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
        ([*STREAMS, str(tmp_path / "nowhere"), "-L", KEY], 1),
        ([*STREAMS, "blanc@nothing", str(tmp_path), "-L", KEY], 1),
        (["nopool/x@y", str(tmp_path), "-L", KEY], 1),
        ([*STREAMS, str(tmp_path), "-L", KEY, "-o", "rw"], 2),
        ([str(tmp_path)], 2),
    ]:
        got, text = zkeep("mount", *arguments, home=tmp_path)
        assert (got, text.count("\n")) == (status, 1), text
        assert text.startswith("zkeep: ")
        assert not os.path.ismount(tmp_path)


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
