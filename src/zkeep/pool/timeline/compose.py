"""The records of a stream between two points of a timeline, in the order in which the kernel sends them.

Slice by slice of the key space: what the runs up to the source add up to, what the runs after it add up to, and from
both the OBJECT_RANGE, OBJECT, FREE, FREEOBJECTS, WRITE and SPILL records (FREE_RULES A). The result is a plan: rows
that say which stored record to copy or which header to make; emit.py turns it into bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from zkeep.format.records import HEADER, RecordType
from zkeep.pool.timeline import spans as sp
from zkeep.pool.timeline.holes import Holes, unseen
from zkeep.pool.timeline.segment import Key
from zkeep.pool.timeline.spans import Array
from zkeep.pool.timeline.table import FRESH_DATA, MAX_SLOTS, NOTHING, TAILLESS, Table, content_numbers, fold, merge
from zkeep.pool.timeline.timeline import LAST, Run, Timeline

STEP = np.dtype(
    [
        ("object", "<u8"),
        ("turn", "u1"),
        ("offset", "<u8"),
        ("rtype", "u1"),
        ("unmodified", "?"),
        ("stored", "?"),
        ("bare", "?"),
        ("a", "<u8"),
        ("b", "<u8"),
        ("segment", "<u4"),
        ("size", "<u4"),
        ("pos", "<u8"),
        ("check", "<u8"),
    ]
)
"""One record to send: a stored one at `pos` of `segment`, or a FREE(object, a, b) or FREEOBJECTS(a, b) to be made.

`bare`: of the stored record only the header is sent (excerpt.py)."""

# The kernel walks the metadnode first and then object by object, so for one number the records come like this:
#
# OBJECT_RANGE   the metadnode block that begins at this number (raw streams only)
# FREEOBJECTS    numbers that became free
# OBJECT         the dnode: type, block size, bonus ...
# FREE to end    whatever lay behind the object's last block
# SPILL          an unchanged spill block, for receivers that would lose it with the old dnode
# WRITE, FREE    data and holes, by offset
# SPILL          a changed spill block
_RANGE, _FREED, _OBJECT, TAIL, _OLD_SPILL, _DATA, _NEW_SPILL = range(7)
"The order of the steps of one object number (column `turn`)."


@dataclass(frozen=True)
class Journey:
    """The two ends of a stream. `before`: the runs that the receiver has; `new`: those that it lacks."""

    before: list[Run]
    new: list[Run]
    raw: bool
    maxblkid: int
    "The last block of the metadnode at the end (mdn_maxblkid); only raw streams have it."
    resume: tuple[int, int] | None = None
    "Object and offset of the block to begin with, in a stream that goes on with an interrupted receive."
    within: Array | None = None
    "Object numbers, as lines: slices of the key space that have none of them are passed over."
    bare: bool = False
    "Of the contents of files and disks only headers are sent."


def plan(timeline: Timeline, journey: Journey) -> Iterator[Array]:
    """The steps of the stream, without BEGIN and END, in arrays of bounded size."""
    for steps in _plan(timeline, journey):
        if not journey.resume:
            yield steps
            continue
        # From one block on; before it, its metadnode block and its object are sent again.
        number, offset = journey.resume
        here = steps["object"] == number
        again = here & (steps["turn"] >= _OBJECT) & ((steps["turn"] != _DATA) | (steps["offset"] >= offset))
        again |= (steps["object"] == number - number % MAX_SLOTS) & (steps["turn"] == _RANGE)
        yield steps[again | (steps["object"] > number)]


def index_steps(timeline: Timeline, runs: list[Run]) -> Iterator[Array]:
    """The OBJECT_RANGE records of all blocks of dnodes that there are after these runs."""
    # Freed numbers count, by which such blocks die.
    parts = timeline.parts(
        runs, lambda segment: replace(NOTHING, ranges=segment.rows("ranges"), freed=segment.rows("freed"))
    )
    yield _copies(fold(parts).ranges, RecordType.OBJECT_RANGE, _RANGE)


def _plan(timeline: Timeline, journey: Journey) -> Iterator[Array]:
    whole = not journey.before
    walker = Holes()
    meta = _FreedObjects(journey, whole)
    for low, high in timeline.slices([*journey.before, *journey.new]):
        if journey.within is not None and not _touches(journey.within, low, high):
            continue
        # What changed in this slice. A slice without changes sends nothing, unless the stream is full.
        parts = timeline.states(journey.new, low, high)
        delta = fold(list(parts))
        if not whole and not delta.rows:
            yield from meta.slice(delta, delta, low, high)
            continue
        # The state at the target; `cut` is the object that continues in the next slice.
        state = merge(timeline.state(journey.before, low, high), delta)
        cut = high[0] if high[1] and high != LAST else None
        # Stored records, and FREE records: in raw streams they follow from the trees of blocks, else they are stored.
        objects = _sent(state, delta, journey.raw)
        steps = [*_stored(timeline, journey, state, objects, low, cut), *_tails(objects, low)]
        if journey.raw:
            steps.append(_frees(_raw_holes(walker, parts, state, delta, objects, whole, cut)))
        else:
            # A plain stream's OBJECT records do not tell the shape of trees: its FREE records are sent as they came,
            # but for ranges that died behind an object's end, which the FREE to the end frees anyway.
            holes = delta.holes[np.isin(delta.holes["object"], objects["object"])]
            died = delta.died[np.isin(delta.died["object"], objects["object"])]
            tails = objects["tail"][np.searchsorted(objects["object"], died["object"])]
            steps.append(_frees(sp.subtract(holes, died[died["start"] >= tails])))
        # FREEOBJECTS go between them, and all is sorted into the kernel's order.
        yield from meta.slice(state, delta, low, high, sp.join(steps))
    yield from meta.rest()


def _touches(lines: Array, low: Key, high: Key) -> bool:
    """Whether a slice may have something of one of these object numbers."""
    end = high[0] + 1 if high[1] and high != LAST else high[0]
    return bool(((lines["start"] < end) & (lines["end"] > low[0])).any())


def _sent(state: Table, delta: Table, raw: bool) -> Array:
    """The OBJECT rows to send: in raw streams, all objects of the metadnode blocks that were written."""
    if not raw:
        return state.objects[np.isin(state.objects["object"], delta.objects["object"])]
    # A raw receiver checks a MAC over the whole metadnode block (32 slots of 512 bytes), so it needs every dnode on
    # it.
    blocks = sp.lines(delta.ranges["object"], delta.ranges["object"] + delta.ranges["slots"])
    return state.objects[sp.on_lines(blocks, state.objects["object"])]


def _raw_holes(
    walker: Holes, parts: list[Table], state: Table, delta: Table, objects: Array, whole: bool, cut: int | None
) -> Array:
    # Every hole of a new object is sent, and of every object in a full stream; of the others only holes born since.
    begun = delta.objects["object"][delta.objects["fresh"] & FRESH_DATA > 0]
    fresh = np.ones(len(objects), bool) if whole else np.isin(objects["object"], begun)
    born = delta.holes[np.isin(delta.holes["object"], objects["object"][~fresh])]
    # Over several increments a file may have grown past holes that none of them had to mention.
    if len(parts) > 1 and not whole:
        born = sp.union(born, unseen(parts, state, objects[~fresh], born))
    return walker.find(state, objects, fresh, born, cut=cut)


def _stored(
    timeline: Timeline, journey: Journey, state: Table, sent: Array, low: Key, cut: int | None
) -> Iterator[Array]:
    """The steps of stored records. An object in several slices has its OBJECT in the first, its SPILL in the last."""
    # A row's run is new to the receiver if its txg is that of the first new run or later.
    first_new = journey.new[0].txg
    is_new = timeline.newer(first_new)
    objects = sent[sent["object"] > low[0]] if low[1] else sent
    ranges = state.ranges[is_new[state.ranges["segment"]] & ((state.ranges["object"] > low[0]) | (low[1] == 0))]
    blocks = state.blocks[is_new[state.blocks["segment"]]]
    # Metadnode blocks and data blocks are sent if they were written since the source, objects in any case.
    yield _copies(ranges, RecordType.OBJECT_RANGE, _RANGE)
    yield _copies(objects, RecordType.OBJECT, _OBJECT)
    copies = _copies(blocks, blocks["kind"], _DATA, blocks["offset"])
    if journey.bare:
        is_content = np.isin(blocks["object"], content_numbers(state.objects))
        copies["bare"] = is_content & (copies["rtype"] == RecordType.WRITE) & (copies["size"] > HEADER)
        copies["size"][copies["bare"]] = HEADER
    yield copies
    # A new spill block goes behind the data; an old one goes before it, marked as unmodified.
    spills = state.spills[np.isin(state.spills["object"], sent["object"])]
    new = is_new[spills["segment"]]
    last = spills[new & (spills["object"] != (sp.END if cut is None else cut))]
    yield _copies(last, last["kind"], _NEW_SPILL)
    first = spills[~new & np.isin(spills["object"], objects["object"])]
    old = _copies(first, first["kind"], _OLD_SPILL)
    old["unmodified"] = old["rtype"] == RecordType.SPILL
    yield old


def _copies(rows: Array, rtype: int | Array, turn: int, offsets: Array | int = 0) -> Array:
    steps = np.zeros(len(rows), STEP)
    steps["object"], steps["turn"], steps["offset"] = rows["object"], turn, offsets
    steps["rtype"], steps["stored"] = rtype, True
    for name in ("segment", "pos", "size", "check"):
        steps[name] = rows[name]
    return steps


def _tails(objects: Array, low: Key) -> Iterator[Array]:
    """The FREE to the end that follows each OBJECT."""
    rows = objects[(objects["tail"] != TAILLESS) & ((objects["object"] > low[0]) | (low[1] == 0))]
    steps = np.zeros(len(rows), STEP)
    steps["object"], steps["turn"], steps["rtype"] = rows["object"], TAIL, RecordType.FREE
    steps["a"], steps["b"], steps["size"] = rows["tail"], sp.END, HEADER
    yield steps


def _frees(freed: Array) -> Array:
    steps = np.zeros(len(freed), STEP)
    steps["object"], steps["turn"], steps["rtype"] = freed["object"], _DATA, RecordType.FREE
    steps["offset"] = steps["a"] = freed["start"]
    steps["b"], steps["size"] = freed["end"] - freed["start"], HEADER
    return steps


class _FreedObjects:
    """Makes FREEOBJECTS: of free slots in written metadnode blocks, and of metadnode blocks that are holes.

    Adjacent ranges become one record unless another record lies between them, also across slices.
    """

    def __init__(self, journey: Journey, whole: bool) -> None:
        self._raw = journey.raw
        self._whole = whole
        self._limit = min((journey.maxblkid + 1) * MAX_SLOTS, sp.END)
        self._open: tuple[int, int] | None = None

    def slice(self, state: Table, delta: Table, low: Key, high: Key, steps: Array | None = None) -> Iterator[Array]:
        """Sort the FREEOBJECTS of a slice into its other steps; if it ends with one, that waits for the next slice."""
        steps = np.empty(0, STEP) if steps is None else steps
        # A slice that begins inside an object (its offset is not 0) leaves that object's number to the slice before.
        first = low[0] if low[1] == 0 else low[0] + 1
        last = high[0] if high[1] == 0 or high == LAST else high[0] + 1
        freed = self._find(state, delta, first, last) if first < last else sp.EMPTY
        # Make the steps, and let sorting put each between the records of its neighbours.
        made = np.zeros(len(freed), STEP)
        made["object"], made["turn"], made["rtype"] = freed["start"], _FREED, RecordType.FREEOBJECTS
        made["a"], made["b"], made["size"] = freed["start"], freed["end"] - freed["start"], HEADER
        every = sp.join([steps, made])
        every = every[np.lexsort((every["offset"], every["turn"], every["object"]))]
        yield self._joined(every)

    def rest(self) -> Iterator[Array]:
        if self._open is not None:
            yield self._flush()

    def _joined(self, steps: Array) -> Array:
        """Merge the waiting FREEOBJECTS with the first step, and keep the last step waiting if it is one."""
        if not len(steps):
            return steps
        before = np.empty(0, STEP)
        if self._open is not None:
            if steps["rtype"][0] == RecordType.FREEOBJECTS and int(steps["a"][0]) == sum(self._open):
                steps["a"][0], steps["b"][0] = self._open[0], self._open[1] + int(steps["b"][0])
                self._open = None
            else:
                before = self._flush()
        if steps["rtype"][-1] == RecordType.FREEOBJECTS:
            self._open = int(steps["a"][-1]), int(steps["b"][-1])
            steps = steps[:-1]
        return sp.join([before, steps])

    def _flush(self) -> Array:
        step = np.zeros(1, STEP)
        if self._open is not None:
            step["object"] = step["a"] = self._open[0]
            step["b"], step["turn"], step["rtype"], step["size"] = self._open[1], _FREED, RecordType.FREEOBJECTS, HEADER
        self._open = None
        return step

    def _find(self, state: Table, delta: Table, first: int, last: int) -> Array:
        """The object numbers to free from `first` up to, not including, `last`."""
        live = sp.lines(state.objects["object"], state.objects["object"] + state.objects["slots"])
        if not self._raw:
            return _clipped(_split(sp.subtract(delta.freed, sp.union(live)), state), first, last, sp.END)
        # Raw: every slot of a written metadnode block that no object lives in (object 0 is never freed) ...
        blocks = sp.lines(state.ranges["object"], state.ranges["object"] + state.ranges["slots"])
        written = sp.lines(delta.ranges["object"], delta.ranges["object"] + delta.ranges["slots"])
        zero = sp.lines(np.array([0], np.uint64), np.array([1], np.uint64))
        slots = sp.subtract(written, sp.union(live, zero))
        # ... and every metadnode block that does not exist.
        empty = self._empty(delta, first, last)
        empty = sp.subtract(empty, sp.union(blocks)) if len(blocks) else empty
        return _clipped(_split(sp.union(slots, empty), state), first, last, self._limit)

    def _empty(self, delta: Table, first: int, last: int) -> Array:
        """The object numbers of whole metadnode blocks that may be holes."""
        if self._whole:
            return sp.lines(np.array([first], np.uint64), np.array([min(last, self._limit)], np.uint64))
        starts = -(-delta.freed["start"].astype(object) // MAX_SLOTS) * MAX_SLOTS
        ends = delta.freed["end"] // MAX_SLOTS * MAX_SLOTS
        made = sp.lines(starts.astype(np.uint64), ends)
        return made[made["start"] < made["end"]]


def _split(freed: Array, state: Table) -> Array:
    """Split ranges where a metadnode block begins: its OBJECT_RANGE lies between the parts."""
    if not len(freed) or not len(state.ranges):
        return freed
    # |------- freed -------|      becomes      |-- freed --| |- freed -|, with the OBJECT_RANGE of the second between
    #             ^ a metadnode block
    marks = state.ranges["object"]
    marks = marks[sp.on_lines(freed, marks)]
    starts = np.union1d(freed["start"], marks)
    ends = np.union1d(freed["end"], marks[~np.isin(marks, freed["start"])])
    return sp.lines(starts, ends)


def _clipped(freed: Array, first: int, last: int, limit: int) -> Array:
    freed = freed.copy()
    freed["start"] = np.maximum(freed["start"], np.uint64(first))
    freed["end"] = np.minimum(freed["end"], np.uint64(min(last, limit)))
    return freed[freed["start"] < freed["end"]]


__all__ = ["NOTHING", "STEP", "TAIL", "Journey", "plan"]
