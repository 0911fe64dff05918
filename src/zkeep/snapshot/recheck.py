"""Why something is not authentic: if the pool's own checksums differ too, the disk is at fault, not the sender.

Each function raises Damaged in that case, and returns if every record is what was received.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from zkeep.format.dnode import SLOTS
from zkeep.snapshot.chunks import State
from zkeep.snapshot.records import StoredRecords

FEW = 64
"Records that are read at a time."


def compare(records: StoredRecords, rows: npt.NDArray[Any]) -> None:
    """Compare records with their stored checksums. Raises Damaged at the first that differs."""
    for at in range(0, len(rows), FEW):
        records.whole(rows[at : at + FEW])


def dnodes(state: State, index: int) -> None:
    """Compare all records that the MAC of a block of dnodes covers."""
    low, high = index * SLOTS, index * SLOTS + SLOTS
    for chunk in state.over((low, 0), (high, 0)):
        for rows in (chunk.table.ranges, chunk.table.objects, chunk.table.blocks, chunk.table.spills):
            first, end = np.searchsorted(rows["object"], np.array([low, high], np.uint64))
            compare(state.records, rows[first:end])


def seals(state: State) -> None:
    """Compare all records that the portable MAC covers."""
    compare(state.records, state.ranges())
