"""A process to be killed: works on a pool, and says on standard output what it has acknowledged."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

from crashkit import Worker, small_history

from zkeep.pool.datasets.model import Pool


def tell(sign: str, name: str) -> None:
    os.write(1, f"{sign}{name}\n".encode())


if __name__ == "__main__":
    with Pool.open(Path(sys.argv[1])) as pool:
        worker = Worker(pool, small_history(), random.Random(int(sys.argv[2])), tell)
        tell("!", "ready")
        while True:
            worker.step()
