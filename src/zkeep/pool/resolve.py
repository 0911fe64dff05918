"""What a new table means for what was there before.

A stream says what changed; some of it only shows against the past: an object whose shape changed starts anew, a file
that became shorter lost blocks. That is settled once, when a segment of the new run is closed, so that from then on
the merge of tables needs no rules about shapes. The same look at the past tells what the new run kills: the figures
under which space is accounted.

Source: OpenZFS module/zfs/dmu_recv.c, receive_handle_existing_object(), receive_object(), flush_write_batch_impl().
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from zkeep.pool import spans as sp
from zkeep.pool.segment import WANT
from zkeep.pool.spans import Array, Bools
from zkeep.pool.table import (
    FRESH_DATA,
    FRESH_SPILL,
    MAX_SLOTS,
    TAILLESS,
    Table,
    Toll,
    block_ends,
    extents,
    fold,
    overlapped,
    toll,
)
from zkeep.pool.timeline import Run, Timeline

PLAIN_FILE = 19
"""DMU_OT_PLAIN_FILE_CONTENTS."""
SYSTEM_ATTRIBUTES = 44
"""DMU_OT_SA: a bonus of this type leaves room for one block pointer only."""

Dead = dict[int, list[int]]
"""By the txg of older runs: stored bytes and logical bytes of their records that died."""


@dataclass(frozen=True)
class Kind:
    """What of the stream's own features matters here."""

    raw: bool
    grows_blocks: bool = False
    """The first stream with large blocks onto a dataset without: files keep what they have."""


def beginning(new: Table) -> Table:
    """A table with no past: every object is new."""
    objects = new.objects.copy()
    objects["fresh"] = FRESH_DATA | FRESH_SPILL
    return replace(new, objects=objects)


def resolve(new: Table, timeline: Timeline, past: list[Run], kind: Kind) -> tuple[Table, Dead]:
    """Settle `new` against the runs `past`; returns it and what it kills of them."""
    if not past:
        return beginning(new), {}
    shapes = fold(timeline.near(past, ("objects", "freed"), _whole_objects(new)))
    new = replace(new, objects=_judge(new, shapes, kind))
    wanted = {**_whole_objects(new), **_touched(new, shapes, kind)}
    old = fold(timeline.near(past, wanted.keys(), wanted))
    new = _bury(old, new, kind)
    return new, _dead(timeline, old, toll(old, new))


def _wants(objects: Array, starts: Array, to_objects: Array, to: Array) -> Array:
    made = np.empty(len(objects), WANT)
    made["object"], made["start"], made["to_object"], made["to"] = objects, starts, to_objects, to
    return made


def _whole(starts: Array, ends: Array) -> Array:
    """Everything of the objects start <= number < end, and of those whose slots could reach into them."""
    zero = np.zeros(len(starts), np.uint64)
    return _wants(starts - np.minimum(starts, MAX_SLOTS - 1), zero, ends, zero)


def _whole_objects(new: Table) -> dict[str, Array]:
    """Where older objects could be in the way."""
    objects = new.objects["object"]
    starts = np.concatenate([objects, new.freed["start"], new.ranges["object"]])
    ends = np.concatenate([objects + new.objects["slots"], new.freed["end"], new.ranges["object"] + 1])
    rows = _whole(starts, ends)
    zero = np.zeros(len(starts), np.uint64)
    return {"ranges": rows, "objects": rows, "spills": rows, "freed": _wants(zero, starts, zero, ends)}


def _judge(new: Table, shapes: Table, kind: Kind) -> Array:
    """The new OBJECT rows with what of older objects of their numbers does not live on (FREE_RULES E)."""
    objects = new.objects.copy()
    old = shapes.objects
    at = np.minimum(np.searchsorted(old["object"], objects["object"]), max(len(old) - 1, 0))
    if not len(old):
        objects["fresh"] = FRESH_DATA | FRESH_SPILL
        return objects
    was = old[at]
    known = (was["object"] == objects["object"]) & ~sp.on_lines(new.freed, objects["object"])
    slots = was["slots"] != objects["slots"]
    data = slots | (_nblkptr(objects) < _nblkptr(was)) | _blocks_resized(was, objects, kind)
    spill = slots
    if kind.raw:
        indirect = was["indblkshift"] != objects["indblkshift"]
        lower = objects["nlevels"] < was["nlevels"]
        data |= indirect | lower
        spill |= lower | (indirect & (was["nlevels"] > 1))
    data, spill = data | ~known, spill | ~known
    objects["fresh"] |= np.where(data, FRESH_DATA, 0).astype(np.uint8)
    objects["fresh"] |= np.where(spill, FRESH_SPILL, 0).astype(np.uint8)
    return objects


def _blocks_resized(was: Array, objects: Array, kind: Kind) -> Bools:
    differs: Bools = was["blksz"] != objects["blksz"]
    if kind.raw or not kind.grows_blocks:
        return differs
    files = (was["type"] == PLAIN_FILE) & (objects["type"] == PLAIN_FILE)
    return np.asarray(differs & ~(files & (was["tail"] > was["blksz"]) & (objects["blksz"] > was["blksz"])))


def _nblkptr(objects: Array) -> Array:
    """Block pointers that the dnode has room for beside its bonus. Source: dmu_recv.c, deduce_nblkptr()."""
    room = objects["slots"].astype(np.int64) * 512 - 64 - 128
    spare = np.minimum((room - objects["bonuslen"]) >> 7, 2)
    return np.where(objects["bonustype"] == SYSTEM_ATTRIBUTES, 1, 1 + np.maximum(spare, 0))


def _touched(new: Table, shapes: Table, kind: Kind) -> dict[str, Array]:
    """The ranges of older blocks that the new table could kill."""
    fresh = new.objects["object"][new.objects["fresh"] & FRESH_DATA > 0]
    covered = shapes.objects[overlapped(shapes.objects, new.objects["object"])]["object"]
    named, ends = new.objects["object"], _ends(new.objects, kind)
    top = np.full(len(named), sp.END, np.uint64)
    ranges = sp.union(sp.spans(named, ends, top), extents(new.blocks), new.holes)
    every = sp.join(
        [
            _wants(ranges["object"], ranges["start"], ranges["object"], ranges["end"]),
            _whole(np.concatenate([fresh, covered, new.freed["start"]]),
                   np.concatenate([fresh + 1, covered + 1, new.freed["end"]])),
        ]
    )
    return {"blocks": every, "holes": every, "died": every}


def _ends(objects: Array, kind: Kind) -> Array:
    """Where each object's blocks end now."""
    if not kind.raw:
        return objects["tail"]
    ends = (objects["maxblkid"] + 1) * objects["blksz"]
    return np.where(objects["maxblkid"] < np.uint64(sp.END) // np.maximum(objects["blksz"], 1), ends, TAILLESS)


def _bury(old: Table, new: Table, kind: Kind) -> Table:
    """Add to `new` the holes that dead blocks of living objects leave."""
    alive = toll(old, replace(new, holes=sp.EMPTY, blocks=new.blocks[:0])).blocks
    blocks = old.blocks[alive]
    tails = new.objects[new.objects["fresh"] & FRESH_DATA == 0]
    cut = sp.spans(tails["object"], _ends(tails, kind), np.full(len(tails), sp.END, np.uint64))
    ends = block_ends(blocks)
    dead = sp.within(new.holes, blocks["object"], blocks["offset"], ends)
    dead |= sp.within(cut[cut["start"] < sp.END], blocks["object"], blocks["offset"], ends)
    died = sp.union(sp.spans(blocks["object"][dead], blocks["offset"][dead], ends[dead])) if dead.any() else sp.EMPTY
    died = sp.subtract(died, extents(new.blocks))
    return replace(new, died=died, holes=sp.union(new.holes, died) if len(died) else new.holes)


def _dead(timeline: Timeline, old: Table, kept: Toll) -> Dead:
    stored: dict[int, int] = defaultdict(int)
    logical: dict[int, int] = defaultdict(int)
    for rows, alive in (
        (old.ranges, kept.ranges),
        (old.objects, kept.objects),
        (old.blocks, kept.blocks),
        (old.spills, kept.spills),
    ):
        gone = rows[~alive]
        for number in np.unique(gone["segment"]):
            txg = timeline.owner(int(number))[0].txg
            mine = gone[gone["segment"] == number]
            stored[txg] += int(mine["size"].sum(dtype=np.uint64))
            if "length" in (rows.dtype.names or ()):
                logical[txg] += int(mine["length"].sum(dtype=np.uint64))
    return {txg: [stored[txg], logical[txg]] for txg in stored}
