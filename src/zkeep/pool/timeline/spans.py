"""Sets of byte ranges of many objects, and their algebra.

A span set is an array of SPAN rows, sorted by (object, start), disjoint and coalesced. `end` is exclusive; the
largest 64-bit number means "to the end of the object" (OpenZFS's DMU_OBJECT_END), so it is never exceeded.
All functions work on whole arrays: a pool's tables have millions of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from zkeep.names import MAX_UINT64

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

END = MAX_UINT64
SPAN = np.dtype([("object", "<u8"), ("start", "<u8"), ("end", "<u8")])
EMPTY = np.empty(0, SPAN)


def spans(objects: Array, starts: Array, ends: Array) -> Array:
    """Rows of SPAN from three columns, as they are (neither sorted nor coalesced)."""
    made = np.empty(len(objects), SPAN)
    made["object"], made["start"], made["end"] = objects, starts, ends
    return made


def join(parts: Sequence[Array]) -> Array:
    """One array of several of one structured type; numpy's own way looks at every field first."""
    if len(parts) == 1:
        return parts[0]
    dtype = parts[0].dtype
    plain = f"V{dtype.itemsize}"
    joined: Array = np.concatenate([np.ascontiguousarray(part).view(plain) for part in parts]).view(dtype)
    return joined


def reach(starts: Array, lengths: Array) -> Array:
    """The exclusive ends of ranges, cut off at END instead of wrapping around."""
    ends = np.asarray(starts + lengths, np.uint64)
    return np.where(ends < starts, np.uint64(END), ends)


def keys(objects: Array, offsets: Array) -> Array:
    """One sortable key for each (object, offset): big-endian bytes, so that numpy can search them."""
    pairs = np.empty((len(objects), 2), ">u8")
    pairs[:, 0], pairs[:, 1] = objects, offsets
    return pairs.reshape(-1).view("S16")


def unique(values: Array) -> Array:
    """Each value once, sorted; np.unique() imports numpy.ma, which takes longer than the sorting itself."""
    values = np.sort(values)
    return values[np.append(True, values[1:] != values[:-1])] if len(values) else values


SMALL = 1 << 16
"Values up to which is_in() sorts."


def is_in(values: Array, among: Array) -> Array:
    """np.isin() of numbers. Of few ones it imports numpy.ma, too, and takes several times as long as this."""
    if len(values) + len(among) > SMALL:
        return np.isin(values, among)
    if not len(among):
        return np.zeros(len(values), bool)
    among = np.sort(among)
    found: Array = among[np.minimum(among.searchsorted(values), len(among) - 1)] == values
    return found


def union(*sets: Array) -> Array:
    """Ranges that lie in any of the sets; the inputs may be unsorted and may overlap."""
    return ordered(join(sets))


def ordered(ranges: Array) -> Array:
    """The ranges as a span set; unchanged if they are one already, as most are that are few."""
    objects, starts, ends = ranges["object"], ranges["start"], ranges["end"]
    apart = (objects[1:] > objects[:-1]) | ((objects[1:] == objects[:-1]) & (starts[1:] > ends[:-1]))
    return ranges if apart.all() and (starts < ends).all() else _sweep(ranges, EMPTY)


def add(one: Array, other: Array) -> Array:
    """union() of two span sets that are sorted, disjoint and coalesced already."""
    if not len(one) or not len(other):
        return other if len(other) else one
    return union(one, other)


def subtract(base: Array, taken: Array) -> Array:
    """The parts of `base` outside of `taken`; both may be unsorted and may overlap."""
    if not len(base) or not len(taken):
        return base
    # Objects without anything taken keep their ranges: sorting them again would be the larger part of the work.
    touched = is_in(base["object"], taken["object"])
    if not touched.any():
        return base
    wanted = is_in(taken["object"], base["object"])
    rest = _sweep(base[touched], taken[wanted])
    if touched.all():
        return rest
    both = join([base[~touched], rest])
    return both[np.argsort(both["object"], kind="stable")]


def _sweep(base: Array, taken: Array) -> Array:
    """Sweep over all ends of ranges; keep where `base` covers and `taken` does not."""
    # Each range becomes two points: it adds 1 where it starts and takes 1 away where it ends. The sum so far tells
    # how
    # many ranges cover what follows a point:
    #
    # base    |-----|     |------|          +1    -1    +1     -1
    # taken      |-----|                          +1    -1
    # kept    |--|        |------|
    #
    # `step` counts the ranges of `base`, `veto` those of `taken`.
    n, m = len(base), len(taken)
    objects = np.concatenate([base["object"], base["object"], taken["object"], taken["object"]])
    points = np.concatenate([base["start"], base["end"], taken["start"], taken["end"]])
    step = np.repeat(np.array([1, -1, 0, 0]), [n, n, m, m])
    veto = np.repeat(np.array([0, 0, 1, -1]), [n, n, m, m])
    order = np.lexsort((points, objects))
    objects, points = objects[order], points[order]
    inside = (np.cumsum(step[order]) > 0) & (np.cumsum(veto[order]) == 0)
    # Of several points at one place only the last knows the whole sum.
    last = np.ones(len(points), bool)
    last[:-1] = (objects[1:] != objects[:-1]) | (points[1:] != points[:-1])
    objects, points, inside = objects[last], points[last], inside[last]
    # A kept range starts where "inside" turns true, and ends where it turns false.
    rises = inside.copy()
    rises[1:] &= ~inside[:-1]
    falls = ~inside
    falls[1:] &= inside[:-1]
    falls[:1] = False
    return spans(objects[rises], points[rises], points[falls])


def covering(ranges: Array, objects: Array, offsets: Array) -> Ints:
    """For each (object, offset) the row of the sorted, disjoint `ranges` that holds it, or -1."""
    if not len(ranges) or not len(objects):
        return np.full(len(objects), -1, np.int64)
    # The last range that starts at or before the point is the only one that can hold it.
    row = np.searchsorted(keys(ranges["object"], ranges["start"]), keys(objects, offsets), "right") - 1
    at = np.maximum(row, 0)
    held = (row >= 0) & (ranges["object"][at] == objects) & (offsets < ranges["end"][at])
    return np.where(held, row, -1)


def within(ranges: Array, objects: Array, offsets: Array, ends: Array) -> Bools:
    """Whether [offset, end) of each object lies wholly in one of the sorted, disjoint `ranges`."""
    row = covering(ranges, objects, offsets)
    if not len(ranges):
        return np.zeros(len(objects), bool)
    return (row >= 0) & (ends <= ranges["end"][np.maximum(row, 0)])


def meets(ranges: Array, objects: Array, starts: Array, ends: Array) -> Bools:
    """Whether any of the sorted, disjoint `ranges` has a byte in common with each [start, end)."""
    if not len(ranges) or not len(objects):
        return np.zeros(len(objects), bool)
    # Ranges are disjoint: only the one that starts at or before `start`, and the one after it, can meet [start, end).
    row = np.searchsorted(keys(ranges["object"], ranges["start"]), keys(objects, starts), "right")
    before = np.maximum(row - 1, 0)
    held = (row > 0) & (ranges["object"][before] == objects) & (starts < ranges["end"][before])
    after = np.minimum(row, len(ranges) - 1)
    later = (row < len(ranges)) & (ranges["object"][after] == objects) & (ranges["start"][after] < ends)
    return np.asarray(held | later)


def lines(starts: Array, ends: Array) -> Array:
    """A span set over plain numbers (object numbers): all rows of one pretended object 0."""
    return spans(np.zeros(len(starts), np.uint64), starts, ends)


def on_lines(ranges: Array, numbers: Array) -> Bools:
    """Whether each number lies in the sorted, disjoint `ranges` made by lines()."""
    if not len(ranges):
        return np.zeros(len(numbers), bool)
    row = np.searchsorted(ranges["start"], numbers, "right") - 1
    return (row >= 0) & (numbers < ranges["end"][np.maximum(row, 0)])
