"""Which numbers objects have, and which new ones get."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from zkeep.snapshot.new_filesystem import FIRST_FREE, ROOT
from zkeep.snapshot.open import OpenSnapshot

FIXED = frozenset(range(1, FIRST_FREE)) - {ROOT}


def live_objects(base: OpenSnapshot | None) -> np.ndarray:
    """The numbers of all objects of a snapshot, ascending."""
    if base is None:
        return np.array(sorted(FIXED), np.uint64)
    return np.ascontiguousarray(base.state.numbers())


def free_numbers(live: np.ndarray) -> Iterator[int]:
    """Object numbers for new files: gaps first, so that blocks of dnodes stay full. `live`: ascending, each once."""
    last = int(live[-1]) if len(live) else FIRST_FREE
    # What is unique already is not made so again: that takes longer than all else, and imports numpy.ma.
    gaps = np.setdiff1d(np.arange(FIRST_FREE, last, dtype=np.uint64), live, assume_unique=True)
    yield from gaps.tolist()
    number = max(last + 1, FIRST_FREE)
    while True:
        yield number
        number += 1
