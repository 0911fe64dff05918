"""Writes into a live dataset until it is killed; after each commit it prints what that made durable."""

from __future__ import annotations

import random
import stat
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "live"))

from livekit import OWNER, live


def main(folder: str, seed: int) -> None:
    chance = random.Random(seed)
    with live(Path(folder)) as files:
        last = max([int(name) for name in files.dataset.folders.entries(files.dataset.root)], default=0)
        print(last, flush=True)
        for number in range(last + 1, 1 << 30):
            name = b"%d" % number
            inode = files.make(name, stat.S_IFREG | 0o644, OWNER)
            files.write(inode, name * chance.choice([1, 1000, 30_000]), 0)
            if chance.random() < 0.3 and number > 2:
                files.rename(b"%d" % chance.choice([number - 1, number - 2]), name)
                files.write(files.lookup(name), name, 0)
            if chance.random() < 0.5:
                files.dataset.commit()
                print(number, flush=True)


main(sys.argv[1], int(sys.argv[2]))
