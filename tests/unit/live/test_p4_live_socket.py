"""P4: the socket of a mount is closed to others from its first moment, and no mode is set by a path."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from zkeep.live.control import listening

WATCHED = """
import os, sys
from pathlib import Path
from zkeep.live.control import listening
def watch(event, values):
    if event in ("os.chmod", "os.chown") and not isinstance(values[0], int):
        print(event, values[0])
sys.addaudithook(watch)
with listening(Path(sys.argv[1]) / "socket"):
    pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir(mode=0o700)
    return tmp_path / "run"


@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
def test_p4_only_its_owner_may_connect(folder: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with listening(folder / "socket"):
            assert stat.S_IMODE(os.lstat(folder / "socket").st_mode) == 0o600
        assert os.listdir(folder) == []
    finally:
        os.umask(before)


def test_p4_no_mode_is_changed_by_a_path(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(folder)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == ""


def test_what_a_killed_mount_left_is_replaced(folder: Path) -> None:
    (folder / "kept").write_text("kept")
    (folder / "socket").symlink_to(folder / "kept")
    with listening(folder / "socket"):
        assert stat.S_ISSOCK(os.lstat(folder / "socket").st_mode)
    assert (folder / "kept").read_text() == "kept"
