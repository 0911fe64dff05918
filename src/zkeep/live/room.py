"""How much may still be written to a mounted dataset: what its quotas and the disk leave."""

from __future__ import annotations

import errno
from collections.abc import Callable

from zkeep.live.errors import fail
from zkeep.pool.datasets.model import Dataset, Pool
from zkeep.pool.datasets.view import View


class Room:
    """Looks it up once after each commit, and when quotas were set. `dataset`: as it is now."""

    def __init__(self, pool: Pool, dataset: Callable[[], Dataset]) -> None:
        self._pool = pool
        self._dataset = dataset
        self._left: int | None = None

    def look_again(self) -> None:
        """Something was written, or a quota was set: ask the next time."""
        self._left = None

    def left(self) -> int:
        """Bytes that quotas and disk leave, as they were when it looked."""
        if self._left is None:
            self._left = View(self._pool).available(self._dataset())
        return self._left

    def used(self) -> int:
        return View(self._pool).charged(self._dataset())

    def refuse(self) -> None:
        """Raise OSError: ENOSPC where the disk leaves least, EDQUOT where a quota or refquota does."""
        view = View(self._pool)
        fail(errno.ENOSPC if view.free() <= view.available(self._dataset()) else errno.EDQUOT)
