"""kill -9 of a backup at any moment: the same command goes on, and what arrives in the end is all of it.

ZKEEP_KILLS=N tries N moments.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backupkit import Laptop

KILLS = int(os.environ.get("ZKEEP_KILLS", "2"))
MOMENTS = ("made", "snapshot", "send", "sent")
"What it said last."


@pytest.mark.parametrize("number", range(KILLS))
def test_p3_a_backup_that_was_killed_goes_on(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    laptop = Laptop(tmp_path, monkeypatch, capfd)
    chance = random.Random(number)
    (laptop.source / "b").write_bytes(os.urandom(2_000_000))
    last = MOMENTS[(number + 2) % len(MOMENTS)]
    pause = chance.random() * 0.5 if KILLS > 2 else 0.0
    words = ["backup", "-j", "--yes", "--key-file", str(laptop.key), str(laptop.source), "ssh://box/vault/me"]
    env = {**os.environ, "ZKEEP_HOME": str(laptop.folder / "home")}
    command = [sys.executable, "-P", "-m", "zkeep", *words]
    with subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if f'"what":"{last}"' in line:
                break
        time.sleep(pause)
        process.kill()
    # What it started ends with it, soon: until then the server may be busy with the first receive.
    for _ in range(100):
        done = laptop.backup()
        if done.status != 5:
            break
        time.sleep(0.1)
    assert done.status == 0, done.err
    (laptop.source / "c").write_bytes(b"later")
    assert laptop.backup().status == 0
    assert laptop.files() == {path.name: path.read_bytes() for path in laptop.source.iterdir()}
