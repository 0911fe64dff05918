"""A mount that is killed while SQLite writes (WAL, synchronous=FULL): what was committed is there (P3).

ZKEEP_INTEROP=long kills 30 times, ZKEEP_KILLS=N as often as it says; each takes seconds.
"""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from commandkit import create_encrypted, own_state
from mountkit import needs_fuse
from zkeep.cli.main import run

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "live"))

from livekit import mounted

ROUNDS = int(os.environ.get("ZKEEP_KILLS", "30" if os.environ.get("ZKEEP_INTEROP") == "long" else "0"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    own_state(tmp_path, monkeypatch)
    create_encrypted(tmp_path, "v/home", "recordsize=16k")
    yield tmp_path
    run(["unload-key", "-a"])


@needs_fuse
@pytest.mark.skipif(not ROUNDS, reason="ZKEEP_INTEROP=long or ZKEEP_KILLS=N kills mounts")
def test_p3_what_sqlite_committed_survives_kills(place: Path) -> None:
    chance = random.Random(1)
    for seed in range(ROUNDS):
        with mounted(place) as (top, process):
            committed = _killed(top / "database", seed, process, after=chance.uniform(0.05, 1.0))
        with mounted(place) as (top, _):
            _check(top / "database", committed)
        assert run(["pool", "scrub", "v"]) == 0


def _killed(path: Path, seed: int, mount: subprocess.Popen[bytes], after: float) -> int:
    """Let a program write, kill the mount below it; the number of the last row that it was told is committed."""
    command = [sys.executable, str(Path(__file__).parent / "sqlite_worker.py"), str(path), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as writer:
        assert writer.stdout is not None
        first = writer.stdout.readline()
        assert first, "it could not open the database"
        timer = threading.Timer(after, mount.kill)
        timer.start()
        lines = [first, *writer.stdout]
        timer.join()
    mount.wait()
    assert writer.returncode, "nothing told the writer that the mount is gone"
    return int(lines[-1] if lines[-1].endswith(b"\n") else lines[-2])


def _check(path: Path, committed: int) -> None:
    database = sqlite3.connect(path)
    assert database.execute("pragma integrity_check").fetchone() == ("ok",)
    rows = database.execute("select number, content from rows order by number").fetchall()
    database.close()
    assert len(rows) >= committed
    assert [number for number, _ in rows] == list(range(1, len(rows) + 1))
    for number, content in rows:
        text = str(number).encode()
        assert content == text * (len(content) // len(text)), "a row has what another one was given"
