"""What a dataset holds now, also while it is mounted: shown read-only, and compared with a snapshot."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from livekit import ZKEEP, mounted
from test_live_clones import names, write

from mountkit import needs_fuse

Zkeep = Callable[..., int]


@contextmanager
def read_only(tmp_path: Path, *words: str) -> Iterator[Path]:
    folder = tmp_path / "ro"
    folder.mkdir(exist_ok=True)
    subprocess.run([*ZKEEP, "mount", *words, str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*ZKEEP, "unmount", str(folder)], check=True)


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return sorted(capsys.readouterr().out.splitlines())


def test_what_changed_since_a_snapshot(zkeep: Zkeep, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, b"one")
    assert zkeep("snapshot", "v/home@a") == 0
    assert zkeep("diff", "v/home@a") == 0
    assert told(capsys) == []
    write(tmp_path, b"two")
    changed = ["+\t/two", "M\t/"]
    for words in (["v/home@a"], ["v/home@a", "v/home"]):
        assert zkeep("diff", *words) == 0
        assert told(capsys) == changed
    assert zkeep("clone", "v/home@a", "v/try") == 0
    assert zkeep("diff", "v/home@a", "v/try") == 0
    assert told(capsys) == []
    write(tmp_path, b"three", "v/try")
    assert zkeep("diff", "v/home@a", "v/try") == 0
    assert told(capsys) == ["+\t/three", "M\t/"]
    assert zkeep("diff", "v/home@a", "w/try") == 2
    assert zkeep("diff", "v/home@a", "v/home", "v/try") == 2
    assert zkeep("diff", "v/home") == 2
    assert zkeep("create", "v/home/empty") == 0
    assert zkeep("diff", "v/home@a", "v/home/empty") == 1


@needs_fuse
def test_what_waits_in_a_mount_is_compared_and_shown(
    zkeep: Zkeep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, b"one")
    assert zkeep("snapshot", "v/home@a") == 0
    with mounted(tmp_path) as (top, _):
        (top / "two").write_text("just now")
        assert zkeep("diff", "v/home@a") == 0
        assert told(capsys) == ["+\t/two", "M\t/"]
        (top / "three").write_text("even later")
        with read_only(tmp_path, "-o", "ro", "v/home") as shown:
            assert sorted(os.listdir(shown)) == ["one", "three", "two"]
            for number in range(4):
                (top / f"after {number}").write_text("not shown")
                subprocess.run(["sync", top / f"after {number}"], check=True)
            assert (shown / "three").read_text() == "even later"
            assert sorted(os.listdir(shown)) == ["one", "three", "two"]
            assert sorted(os.listdir(shown / ".zfs" / "snapshot" / "a")) == ["one"]


@needs_fuse
def test_readonly_datasets_show_what_was_written_last(zkeep: Zkeep, tmp_path: Path) -> None:
    write(tmp_path, b"one")
    assert zkeep("snapshot", "v/home@a") == 0
    write(tmp_path, b"two")
    assert zkeep("clone", "v/home@a", "v/home/try") == 0
    assert zkeep("set", "readonly=on", "v/home") == 0
    with read_only(tmp_path, "v/home") as shown:
        assert sorted(os.listdir(shown)) == ["one", "two"]
        with pytest.raises(OSError, match="Read-only"):
            (shown / "three").write_text("")
    with read_only(tmp_path, "-r", "v/home") as shown:
        assert sorted(os.listdir(shown)) == ["one", "try", "two"]
        assert sorted(os.listdir(shown / "try")) == ["one"], "a clone that nothing was written to"
    assert zkeep("set", "readonly=off", "v/home") == 0
    assert names(tmp_path) == [b"one", b"two"]


@needs_fuse
def test_all_are_mounted_parents_first_and_read_only_ones_too(zkeep: Zkeep, tmp_path: Path) -> None:
    """A dataset that is older than the one above it is mounted inside of that, not hidden by it."""
    home = tmp_path / "home"
    assert zkeep("create", "v/home/low") == 0
    assert zkeep("create", "v/home/up") == 0
    assert zkeep("rename", "v/home/low", "v/home/up/low") == 0
    assert zkeep("create", "v/home/still") == 0
    write(tmp_path, b"one", "v/home/still")
    assert zkeep("set", "readonly=on", "v/home/still") == 0
    assert zkeep("set", "exec=off", "v/home/still") == 0
    assert zkeep("set", f"mountpoint={home}", "v/home") == 0
    try:
        assert zkeep("mount", "-a") == 0
        assert zkeep("mount", "-a") == 0, "all are mounted already"
        (home / "up" / "low" / "file").write_text("below")
        assert os.listdir(home / "still") == ["one"]
        (line,) = [line for line in Path("/proc/self/mounts").read_text().splitlines() if f"{home}/still" in line]
        assert {"ro", "noexec", "nosuid", "nodev"} <= set(line.split()[3].split(","))
    finally:
        for folder in (home / "up" / "low", home / "up", home / "still", home):
            zkeep("unmount", str(folder))
    assert names(tmp_path, "v/home/up/low") == [b"file"]
