"""Numbers for new objects: gaps first, so that blocks of dnodes stay full."""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np

from zkeep.snapshot.new_filesystem import FIRST_FREE


class Numbers:
    """Gives out numbers that no object has. `end`: the first behind all that ever had one."""

    def __init__(self, taken: np.ndarray) -> None:
        """`taken`: numbers of objects, ascending."""
        self.end = max(int(taken[-1]) + 1 if len(taken) else 0, FIRST_FREE)
        gaps = np.setdiff1d(np.arange(FIRST_FREE, self.end, dtype=np.uint64), taken, assume_unique=True)
        self._free: list[int] = gaps.tolist()

    def take(self) -> int:
        if self._free:
            return heappop(self._free)
        self.end += 1
        return self.end - 1

    def give_back(self, number: int) -> None:
        """No object has this number any more."""
        heappush(self._free, number)
