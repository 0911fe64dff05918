"""A snapshot of which only a part is here: what is asked for, and is missing, is fetched from where it is kept.

It begins with the index (the OBJECT_RANGE headers), which is authenticated as that of a whole snapshot is. Blocks of
dnodes come when they are asked for, with all records of their objects but the contents of files; each is authenticated
by its MAC in the index. So nothing is believed that the keeper of the snapshot sends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import NamedTuple, Self

import numpy as np

from zkeep.crypto.unwrap import GetKey
from zkeep.format.dnode import SECTOR, SLOTS
from zkeep.format.records import HEADER
from zkeep.pool.datasets.model import Pool, Snapshot
from zkeep.pool.timeline.spans import Array, unique
from zkeep.snapshot.open import OpenSnapshot
from zkeep.snapshot.verified import VerifiedObject

FetchBlocks = Callable[[Snapshot, Array], Snapshot]
"""Fetches blocks of dnodes, by their numbers (ascending), into the pool; returns the snapshot as it is then."""


class Missing(NamedTuple):
    """Contents of objects that are not here: `objects` ascending, `sizes`: bytes of their records."""

    objects: Array
    sizes: Array
    offset: int
    "Where in the first of them the first missing block begins."

    def upto(self, most: int) -> Missing:
        """The first of them, about `most` bytes together, or one."""
        count = max(1, int(np.searchsorted(np.cumsum(self.sizes), most, "right")))
        return Missing(self.objects[:count], self.sizes[:count], self.offset)


class PartialSnapshot(OpenSnapshot):
    """An OpenSnapshot that fetches the blocks of dnodes that are asked for. Use it as a context manager."""

    def __init__(self, pool: Pool, snapshot: Snapshot, get_key: GetKey, fetch: FetchBlocks) -> None:
        super().__init__(pool, snapshot, get_key, scattered=True)
        self._fetch = fetch
        self._here: set[int] = set()
        "The blocks of dnodes that were fetched."

    def __enter__(self) -> Self:
        super().__enter__()
        # Some may be here from a call that broke off: each came whole, or not at all.
        self._here = set(unique(self.state.numbers() // np.uint64(SLOTS)).tolist())
        return self

    def dnodes(self, index: int) -> Mapping[int, VerifiedObject]:
        self._need([index])
        return super().dnodes(index)

    def expect(self, numbers: Iterable[int]) -> None:
        every = list(numbers)
        self._need(sorted({number // SLOTS for number in every}))
        super().expect(every)

    def _need(self, indices: list[int]) -> None:
        missing = [i for i in indices if i not in self._here and self.seal(i) is not None]
        if not missing:
            return
        # What did not come is asked for again: it must not be taken for something that the keeper withholds.
        found = self._fetch(self.snapshot, np.array(missing, np.uint64))
        self._here.update(missing)
        self.take(found)

    def take(self, snapshot: Snapshot) -> None:
        """Go on with the snapshot as it is now, after more of it was fetched."""
        self.snapshot = snapshot
        self._stack.close()
        # What is cached names places in segments, whose numbers are those of the timeline that was open.
        self._dnode_blocks.clear()
        self._prefetched.clear()
        with ExitStack() as stack:
            self._open_state(stack)
            self._stack = stack.pop_all()

    def blocks_to_fetch(self) -> list[int]:
        """The numbers of all blocks of dnodes that are not here, ascending."""
        return [index for index in self.numbers() if index not in self._here]

    def missing(self, numbers: Iterable[int]) -> Missing:
        """Which blocks of these objects are not here. Their dnodes have been asked for, and are authentic."""
        wanted = np.array(sorted(numbers), np.uint64)
        objects: list[Array] = []
        sizes: list[Array] = []
        offset = 0
        for chunk in self.state.chunks():
            leaves = chunk.leaves
            rows = leaves[(leaves["bare"] > 0) & np.isin(leaves["object"], wanted)]
            if len(rows) and not objects:
                offset = int(rows["offset"][0])
            # The pointer has the size of the stored block in sectors, less one, in its bits 16 to 31.
            stored = ((rows["pointer"]["prop"] >> np.uint64(16)) & np.uint64(0xFFFF)) + np.uint64(1)
            objects.append(rows["object"])
            sizes.append(stored * np.uint64(SECTOR) + np.uint64(HEADER))
        every, size = np.concatenate(objects), np.concatenate(sizes)
        # Add up by object: rows of one object are neighbours.
        starts = np.flatnonzero(np.append(True, every[1:] != every[:-1])) if len(every) else np.empty(0, np.int64)
        return Missing(every[starts], np.add.reduceat(size, starts) if len(starts) else size, offset)
