"""A mount that is killed at any moment: what was synced is there, and the dataset is as a commit left it (P3).

ZKEEP_KILLS=500 tries as many.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from commandkit import create_encrypted, own_state
from zkeep.cli.main import run

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "live"))

from livekit import listing, live

ROUNDS = int(os.environ.get("ZKEEP_KILLS", "3"))


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    own_state(tmp_path, monkeypatch)
    create_encrypted(tmp_path, "v/home", "recordsize=16k")
    return tmp_path


def test_p3_what_was_synced_survives_kills(pool: Path) -> None:
    chance = random.Random(1)
    for seed in range(ROUNDS):
        synced = _killed(pool, seed, after=chance.uniform(0.05, 0.6))
        with live(pool) as files:
            numbers = [int(name) for name in files.dataset.folders.entries(files.dataset.root)]
            assert max(numbers, default=0) >= synced
            for name, (_, _, _, content) in listing(files).items():
                assert not name or content.startswith(name), "it is not what its own commit wrote"
        assert run(["pool", "scrub", "v"]) == 0
    assert run(["snapshot", "v/home@end"]) == 0
    assert run(["verify", "-L", f"file://{pool / 'key'}", "v/home@end"]) == 0
    run(["unload-key", "-a"])


def _killed(folder: Path, seed: int, after: float) -> int:
    """Let a process write, kill it; the number of what it synced last."""
    command = [sys.executable, str(Path(__file__).parent / "live_worker.py"), str(folder), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first, "it could not open the dataset"
        timer = threading.Timer(after, process.kill)
        timer.start()
        lines = [first, *process.stdout]
        timer.join()
    return int(lines[-1] if lines[-1].endswith(b"\n") else lines[-2])
