"""P3 under kill -9 at random moments of receives, destroys and compactions."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from crashkit import Acknowledged, leftovers, small_history

from zkeep.pool.datasets.model import Pool
from zkeep.pool.maintenance.compact import compact

KILLS = int(os.environ.get("ZKEEP_KILLS", "15"))
WORKER = Path(__file__).with_name("worker.py")


def test_p3_a_killed_process_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    root, history, acknowledged, dice = tmp_path / "pool", small_history(), Acknowledged(), random.Random(7)
    Pool.create(root, "v", {"blind": "off"}).close()
    for number in range(KILLS):
        with subprocess.Popen([sys.executable, str(WORKER), str(root), str(number)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"!ready\n"
            time.sleep(dice.random() * 1.5)
            assert process.poll() is None, "the worker failed"
            process.kill()
            for line in process.stdout.read().decode().splitlines():
                acknowledged.take(line[0], line[1:])
        with Pool.open(root) as pool:
            acknowledged.check(pool, history)
            if dice.random() < 0.3:
                compact(pool)
                assert leftovers(pool) == []
                acknowledged.check(pool, history)
