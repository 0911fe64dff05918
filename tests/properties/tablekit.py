"""Small random tables, and a dictionary that does by hand what the merge of tables does in whole arrays.

A table here is built as a stream would: every object lies in a metadnode block that was written, data belong to objects
of the same table, an object that was not there before, or had other slots, begins again, and one that is gone is
freed with all its slots.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from zkeep.pool.timeline import spans as sp
from zkeep.pool.timeline.table import BLOCK, FRESH_DATA, FRESH_SPILL, NOTHING, OBJECT, RANGE, Table

UNIT = 512
NUMBERS = 96
BLOCKS = 6
BOTH = FRESH_DATA | FRESH_SPILL


@dataclass
class Model:
    """What lives, by key; values are the places of records. Holes and freed numbers one by one."""

    ranges: dict[int, int] = field(default_factory=dict)
    objects: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Place and slots."""
    blocks: dict[tuple[int, int], int] = field(default_factory=dict)
    spills: dict[int, int] = field(default_factory=dict)
    holes: set[tuple[int, int]] = field(default_factory=set)
    died: set[tuple[int, int]] = field(default_factory=set)

    def apply(self, table: Table) -> None:
        freed = {n for s in table.freed for n in range(int(s["start"]), int(s["end"]))}
        inner = {n for o in table.objects for n in range(int(o["object"]) + 1, int(o["object"]) + int(o["slots"]))}
        new = {int(o["object"]) for o in table.objects}
        for first in [f for f in self.ranges if set(range(f, f + 32)) <= freed]:
            del self.ranges[first]
        for number, (_, slots) in list(self.objects.items()):
            reached = {number} if number in new else set(range(number, number + slots))
            if reached & (freed | inner) or new & set(range(number + 1, number + slots)):
                del self.objects[number]
                self.forget(number, BOTH)
        for row in table.objects:
            self.forget(int(row["object"]), int(row["fresh"]))
            self.objects[int(row["object"])] = int(row["pos"]), int(row["slots"])
        for row in table.ranges:
            self.ranges[int(row["object"])] = int(row["pos"])
        for spot in units(table.holes):
            self.blocks.pop(spot, None)
        self.holes |= units(table.holes)
        self.died |= units(table.died)
        for row in table.blocks:
            spot = int(row["object"]), int(row["offset"]) // UNIT
            self.blocks[spot] = int(row["pos"])
            self.holes.discard(spot)
            self.died.discard(spot)
        for row in table.spills:
            self.spills[int(row["object"])] = int(row["pos"])

    def forget(self, number: int, fresh: int) -> None:
        if fresh & FRESH_DATA:
            self.blocks = {k: v for k, v in self.blocks.items() if k[0] != number}
            self.holes = {k for k in self.holes if k[0] != number}
            self.died = {k for k in self.died if k[0] != number}
        if fresh & FRESH_SPILL:
            self.spills.pop(number, None)

    def agrees(self, table: Table) -> bool:
        return (
            self.ranges == {int(r["object"]): int(r["pos"]) for r in table.ranges}
            and self.objects == {int(r["object"]): (int(r["pos"]), int(r["slots"])) for r in table.objects}
            and self.blocks == {(int(r["object"]), int(r["offset"]) // UNIT): int(r["pos"]) for r in table.blocks}
            and self.spills == {int(r["object"]): int(r["pos"]) for r in table.spills}
            and self.holes == units(table.holes)
            and self.died == units(table.died)
        )


def units(spans: sp.Array) -> set[tuple[int, int]]:
    return {(int(s["object"]), u) for s in spans for u in range(int(s["start"]) // UNIT, int(s["end"]) // UNIT)}


@dataclass(frozen=True)
class Draw:
    """What a random history says of one object number in one txg."""

    number: int
    slots: int
    again: bool
    """Begin again although nothing forces it."""
    blocks: frozenset[int]
    holes: frozenset[int]
    spill: bool
    has_spill: bool


draws = st.builds(
    Draw,
    st.integers(1, NUMBERS - 5),
    st.sampled_from([1, 1, 1, 2, 4]),
    st.booleans(),
    st.frozensets(st.integers(0, BLOCKS - 1), max_size=4),
    st.frozensets(st.integers(0, BLOCKS - 1), max_size=3),
    st.booleans(),
    st.booleans(),
)
txgs = st.tuples(
    st.lists(draws, max_size=6),
    st.frozensets(st.integers(1, NUMBERS - 1), max_size=8),
    st.frozensets(st.sampled_from([0, 32, 64]), max_size=1),
)
histories = st.lists(txgs, min_size=1, max_size=6)


def build(history: list[tuple[list[Draw], frozenset[int], frozenset[int]]]) -> tuple[list[Table], Model]:
    """The tables of a history, oldest first, and their merge."""
    model, tables = Model(), []
    for number, txg in enumerate(history):
        table = _table(number, txg, model)
        tables.append(table)
        model.apply(table)
    return tables, model


def _table(segment: int, txg: tuple[list[Draw], frozenset[int], frozenset[int]], model: Model) -> Table:
    drawn, lone, emptied = txg
    chosen: dict[int, Draw] = {}
    taken: set[int] = set()
    for draw in sorted(drawn, key=lambda d: d.number):
        span = set(range(draw.number, draw.number + draw.slots))
        same_block = draw.number // 32 == (draw.number + draw.slots - 1) // 32
        if same_block and not span & taken and draw.number // 32 * 32 not in emptied:
            chosen[draw.number] = draw
            taken |= span
    freed = (set(lone) - taken) | {n for first in emptied for n in range(first, first + 32)}
    for number, (_, slots) in model.objects.items():  # a written block tells of every slot of what went
        span = set(range(number, number + slots))
        if span & (freed | taken) and number not in chosen:
            freed |= span - taken
    written = {n // 32 * 32 for n in taken | freed} - set(emptied)
    places = iter(range(segment * 10_000 + 1, segment * 10_000 + 10_000))

    def rows(dtype: np.dtype[np.void], keys: list[tuple[int, int]]) -> sp.Array:
        made = np.zeros(len(keys), dtype)
        for row, (number, offset) in zip(made, sorted(keys), strict=True):
            row["object"], row["pos"], row["size"], row["segment"] = number, next(places), 312 + offset, segment
            if "offset" in (dtype.names or ()):
                row["offset"], row["length"] = offset, UNIT
        return made

    objects = rows(OBJECT, [(n, 0) for n in chosen])
    objects["slots"] = [chosen[int(n)].slots for n in objects["object"]]
    objects["fresh"] = [_fresh(chosen[int(n)], model) for n in objects["object"]]
    ranges = rows(RANGE, [(n, 0) for n in written])
    ranges["slots"] = 32
    blocks = rows(BLOCK, [(n, b * UNIT) for n, d in chosen.items() for b in d.blocks])
    holes = _spans({(n, h) for n, d in chosen.items() for h in d.holes - d.blocks})
    died = _spans(units(holes) & set(model.blocks))
    return Table(
        ranges=ranges,
        objects=objects,
        blocks=blocks,
        spills=rows(BLOCK, [(n, 0) for n, d in chosen.items() if d.spill]),
        holes=holes,
        died=died,
        freed=_lines(freed),
    )


def _fresh(draw: Draw, model: Model) -> int:
    known = model.objects.get(draw.number)
    if known is None or known[1] != draw.slots or draw.again:
        return BOTH
    return 0 if draw.has_spill else FRESH_SPILL


def _spans(spots: set[tuple[int, int]]) -> sp.Array:
    made = np.array([(n, u * UNIT, (u + 1) * UNIT) for n, u in sorted(spots)], sp.SPAN)
    return sp.union(made) if len(made) else NOTHING.holes


def _lines(numbers: set[int]) -> sp.Array:
    ordered = np.array(sorted(numbers), np.uint64)
    return sp.union(sp.lines(ordered, ordered + 1)) if len(ordered) else sp.EMPTY
