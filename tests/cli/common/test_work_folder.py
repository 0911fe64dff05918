"""Temporary folders: none is left for ever, and nothing else is removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zkeep.cli.common import work_folder as module
from zkeep.cli.common.work_folder import work_folder

KILLED = """
import os, sys
from zkeep.cli.common.work_folder import work_folder
with work_folder() as folder:
    (folder / "pool").mkdir()
    (folder / "pool" / "ciphertext").write_bytes(b"x")
    os.symlink(sys.argv[1], folder / "link")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_what_a_killed_call_left_is_removed_by_the_next_and_what_is_in_use_stays(
    temporary: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "a").touch()
    words = [sys.executable, "-c", KILLED, str(kept)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        made = Path(process.stdout.readline().decode().strip())
        with work_folder() as mine:
            assert {made, mine} == set(temporary.iterdir())
        assert (made / "pool" / "ciphertext").exists()
        process.send_signal(signal.SIGKILL)
    with work_folder() as mine:
        assert list(temporary.iterdir()) == [mine]
    assert list(temporary.iterdir()) == []
    assert (kept / "a").exists()


def test_the_filter_leaves_nothing_behind_either(temporary: Path) -> None:
    words = [sys.executable, "-m", "zkeep", "verify"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, **pipes) as process:
        until = time.monotonic() + 60
        while not list(temporary.glob("*/pool")) and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert list(temporary.glob("zkeep-work-*"))
    subprocess.run(words, input=b"no stream", capture_output=True, check=False)
    assert list(temporary.iterdir()) == []


def test_nothing_of_others_is_removed(temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link, a file, another name, a folder of somebody else."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "a").touch()
    (temporary / "zkeep-work-abcdefgh").symlink_to(precious)
    (temporary / "zkeep-work-abcdefg_").touch()
    for name in ("zkeep-work-abcdefghi", "zkeep-0", "zkeep-restore-0123456789abcdef", "zkeep-demo-abcdefgh"):
        (temporary / name).mkdir()
    before = set(temporary.iterdir())
    with work_folder():
        pass
    assert set(temporary.iterdir()) == before
    (temporary / "zkeep-work-01234567").mkdir()
    others = os.geteuid() + 1
    with monkeypatch.context() as patched:
        patched.setattr(module.os, "geteuid", lambda: others)
        module.remove_leftovers(str(temporary))
    assert (temporary / "zkeep-work-01234567").exists()
    assert (precious / "a").exists()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777, 0o700])
def test_where_others_can_rename_what_is_ours_nothing_is_removed(temporary: Path, mode: int) -> None:
    temporary.chmod(mode)
    (temporary / "zkeep-work-abcdefgh").mkdir()
    with work_folder() as mine:
        is_alone = list(temporary.iterdir()) == [mine]
    assert is_alone == (mode in (0o1777, 0o700))


def test_one_that_is_taken_for_a_leftover_before_it_is_locked(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another call looks just between the making and the locking."""
    made, lock = [], module._lock

    def cleaned(fd: int) -> bool:
        if not made:
            made.append(fd)
            module.remove_leftovers(str(temporary))
        return lock(fd)

    monkeypatch.setattr(module, "_lock", cleaned)
    with work_folder() as mine:
        assert mine.is_dir()
        assert list(temporary.iterdir()) == [mine]
    assert (list(temporary.iterdir()), len(made)) == ([], 1)
