"""forget-keys, killed at any of the calls that change the disk: the next call finishes it, and no file has the old."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import keykit
from rawbytes import everything
from zkeep.cli.main import run
from zkeep.format.events import SubBegin
from zkeep.format.nvlist import NvList
from zkeep.format.reader import read_events
from zkeep.pool.store.files import Disk

STORY = Path(__file__).parent.parent / "data" / "opened" / "story"
KEY = keykit.location(STORY / "jambon-zfs-key")
CALLS = ("open", "write", "truncate", "sync", "sync_folder", "link", "rename", "unlink", "mkdir")


class Killed(BaseException):
    """Stands for SIGKILL: nothing is done to the disk after it."""


def sealed_keys(stream: Path) -> list[bytes]:
    """The key records of a stream that a key opens."""
    with stream.open("rb") as source:
        found = [event.nvlist["crypt_keydata"] for event in read_events(source) if isinstance(event, SubBegin)]
    return [bytes(crypt["DSL_CRYPTO_MASTER_KEY_1"]) for crypt in found if isinstance(crypt, NvList)]


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pool whose keys were changed. It is put back by copying `before`."""
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZKEEP_AGENT", str(tmp_path / "runtime" / "agent"))
    path = tmp_path / "pool"
    assert run(["pool", "create", "v", str(path)]) == 0
    with (STORY / "full-Rw.zfs").open("rb") as source:
        command = [sys.executable, "-m", "zkeep", "receive", "v/jambon"]
        assert subprocess.run(command, stdin=source, check=False).returncode == 0
    (tmp_path / "new").write_bytes(bytes(range(32)))
    options = ["-o", "keyformat=raw", "-o", f"keylocation=file://{tmp_path}/new"]
    assert run(["change-key", "-L", KEY, *options, "v/jambon"]) == 0
    return path


def mortal(monkeypatch: pytest.MonkeyPatch, lives: int) -> list[int]:
    """Let the process die at a call that changes the disk; returns how many calls are left."""
    left = [lives]

    def call(real: Callable[..., Any], *arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return real(*arguments)

    for name in CALLS:
        real = getattr(Disk, name)
        monkeypatch.setattr(Disk, name, lambda *a, real=real: call(real, *a))
    return left


def test_p1_killed_at_any_moment_the_next_call_finishes_it(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    olds = sealed_keys(STORY / "full-Rw.zfs")
    assert olds
    assert all(old in everything(pool) for old in olds)
    before = pool.with_name("before")
    shutil.copytree(pool, before)
    for lives in range(200):
        shutil.rmtree(pool)
        shutil.copytree(before, pool)
        with monkeypatch.context() as patched:
            left = mortal(patched, lives)
            run(["forget-keys", "-f", "v/jambon"])
        assert run(["forget-keys", "-f", "v/jambon"]) == 0
        content = everything(pool)
        assert not any(old in content for old in olds), f"killed after {lives} calls"
        if left[0] >= 0:
            break
    assert 10 < lives < 199
    assert run(["verify", "-r", "-L", f"file://{pool.parent}/new", "v/jambon"]) == 0
    assert run(["verify", "-L", KEY, "v/jambon"]) == 1
    assert run(["pool", "scrub", "v"]) == 0


def test_what_killed_processes_left_goes_too(pool: Path) -> None:
    old = sealed_keys(STORY / "full-Rw.zfs")[0]
    (pool / "tmp").mkdir(exist_ok=True)
    (pool / "tmp" / "0123456789abcdef").write_bytes(b"half a checkpoint" + old)
    log = max((pool / "journal").glob("*.log"))
    log.write_bytes(log.read_bytes() + b"half a line" + old)
    assert run(["forget-keys", "-f", "v/jambon"]) == 0
    assert old not in everything(pool)


def test_it_is_said_when_only_the_files_are_left_to_do(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = sealed_keys(STORY / "full-Rw.zfs")[0]
    with monkeypatch.context() as patched:
        patched.setattr("zkeep.pool.store.catalog.Catalog.renew", partial(_full))
        assert run(["forget-keys", "-f", "v/jambon"]) == 5
    assert old in everything(pool)
    assert run(["forget-keys", "v/jambon"]) == 0
    assert old not in everything(pool)


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")
