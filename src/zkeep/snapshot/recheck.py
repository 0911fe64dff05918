"""Whose fault it is that something is not authentic: the disk's, where the pool's own sums tell so."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from zkeep.format.dnode import SLOTS
from zkeep.snapshot.chunks import State
from zkeep.snapshot.records import Records

FEW = 64
"Records that are read at a time."


def compare(records: Records, rows: npt.NDArray[Any]) -> None:
    """Raises Damaged at the first record that is not what was received."""
    for at in range(0, len(rows), FEW):
        records.whole(rows[at : at + FEW])


def dnodes(state: State, index: int) -> None:
    """The same for all that a block of dnodes depends on."""
    low, high = index * SLOTS, index * SLOTS + SLOTS
    for chunk in state.over((low, 0), (high, 0)):
        for rows in (chunk.table.ranges, chunk.table.objects, chunk.table.blocks, chunk.table.spills):
            first, end = np.searchsorted(rows["object"], np.array([low, high], np.uint64))
            compare(state.records, rows[first:end])


def seals(state: State) -> None:
    """The same for all that the portable MAC covers."""
    compare(state.records, state.ranges())
