"""The steps of a plain stream, from those of a raw one: both come from the same walk over the dataset.

Source: OpenZFS module/zfs/dmu_send.c do_dump(), dump_freeobjects(), dump_dnode().
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from zkeep.format.records import HEADER, RecordType
from zkeep.pool.timeline import spans as sp
from zkeep.pool.timeline.compose import STEP, TAIL
from zkeep.pool.timeline.spans import Array, Bools


def plain_steps(raw: Iterable[Array]) -> Iterator[Array]:
    """Leave out OBJECT_RANGE, merge the FREEOBJECTS that are neighbours then, and put a FREE behind each OBJECT.

    Where that FREE, to the end of the object, begins is left open: the dnode says it, once it is authentic.
    """
    waiting = np.empty(0, STEP)
    for each in raw:
        # The FREE behind an OBJECT is there for some objects of a raw stream only: all get one below.
        kept = each[(each["rtype"] != RecordType.OBJECT_RANGE) & (each["turn"] != TAIL)]
        steps = _merged(sp.join([waiting, kept]))
        # The last FREEOBJECTS may go on in the next array.
        last = len(steps) - int(len(steps) > 0 and steps["rtype"][-1] == RecordType.FREEOBJECTS)
        waiting = steps[last:]
        yield _with_tails(steps[:last])
    yield waiting


def _merged(steps: Array) -> Array:
    """Merge FREEOBJECTS that follow one another, each beginning where the one before ends."""
    freed = steps["rtype"] == RecordType.FREEOBJECTS
    ends = steps["a"] + steps["b"]
    goes_on = np.zeros(len(steps), bool)
    goes_on[1:] = freed[1:] & freed[:-1] & (steps["a"][1:] == ends[:-1])
    if not goes_on.any():
        return steps
    # The first step of each group stays; of FREEOBJECTS it gets the length of the whole group.
    first = np.flatnonzero(~goes_on)
    merged = steps[first]
    many = merged["rtype"] == RecordType.FREEOBJECTS
    merged["b"][many] = np.add.reduceat(steps["b"], first)[many]
    return merged


def _with_tails(steps: Array) -> Array:
    """Put a FREE to the end behind each OBJECT."""
    at: Bools = steps["rtype"] == RecordType.OBJECT
    tails = np.zeros(int(at.sum()), STEP)
    tails["object"], tails["turn"], tails["rtype"] = steps["object"][at], TAIL, RecordType.FREE
    tails["b"], tails["size"] = sp.END, HEADER
    made: Array = np.insert(steps, np.flatnonzero(at) + 1, tails)
    return made
