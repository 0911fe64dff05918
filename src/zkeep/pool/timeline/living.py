"""All that lives of some objects after the newest run, in memory: what comes next mostly changes what changed lately.

Each snapshot of a package is resolved against all before it. Searching those piece by piece costs the same again for
each; this is the merged table of what was found and of what came since, so that there is one place to look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from zkeep.pool.timeline import spans as sp
from zkeep.pool.timeline.resolve import (
    Dead,
    Kind,
    Shapes,
    by_number,
    by_object,
    ends_of,
    look_back,
    resolve_beside,
    touched,
)
from zkeep.pool.timeline.spans import Array
from zkeep.pool.timeline.table import FRESH_DATA, FRESH_SPILL, NOTHING, Table, Toll, interleave, interleave_blocks
from zkeep.pool.timeline.timeline import Run, Timeline

MOST_ROWS = 4096
"More rows are not kept: then it begins again."
MOST_BLOCKS = 512
"Of objects that have more blocks, those are not known: what changes of them is looked for."
MOST_RUNS = 4096
"The rows are of no more runs."
_RECORDS = ("ranges", "objects", "blocks", "spills")


class Living:
    """The records that live of some objects as of one run; it follows the runs that come."""

    def __init__(self) -> None:
        self._checked: list[dict[str, bool]] = []
        "What is noted beside the runs of the dataset and its origins: another dict as soon as an older run changed."
        self._last = -1
        "The txg of the newest run."
        self._large = sp.EMPTY
        "Numbers of objects that have too many blocks, which are not known."
        self._forget()

    def _forget(self) -> None:
        self._table = NOTHING
        self._numbers = sp.EMPTY
        "The object numbers of which all is known."
        self._txgs: list[int] = []
        "The runs of the rows, whose `segment` is a place in here."

    def resolve(
        self, new: Table, timeline: Timeline, past: Sequence[Run], kind: Kind, txg: int
    ) -> tuple[Table, Dead] | None:
        """Resolve the table of run `txg` against `past`, as resolve.resolve() does; from then on it is known, too.

        None: too much lives of the objects that it touches.
        """
        # 1. Is what is known of these runs?
        checked = list(timeline.checked.values())
        if not self._is_of(checked, past) or len(self._txgs) > MOST_RUNS:
            self._forget()
        self._checked, self._last = checked, past[-1].txg
        # 2. What is not known of the objects that this run touches is looked up.
        objects = np.concatenate([rows["object"] for rows in (new.blocks, new.holes)])
        if sp.on_lines(self._large, objects).any():
            return None
        objects = np.concatenate([objects, new.spills["object"]])
        numbers = sp.union(touched(new, kind), sp.lines(objects, objects + 1))
        missing = sp.subtract(numbers, self._numbers)
        if len(missing) and not self._learn(missing, numbers, timeline, past, kind):
            return None
        # 3. Resolve it beside what lives of them; what it replaces is known no longer.
        mine = [sp.on_lines(numbers, rows["object"]) for rows in self._table.records()]
        old = _selected(self._table, mine)
        found = resolve_beside(new, old, kind, self._txgs.__getitem__, self._large)
        if found is None:
            return None
        made, dead, kept = found
        self._follow([~some for some in mine], old, kept, made, txg)
        return made, dead

    def _is_of(self, checked: list[dict[str, bool]], past: Sequence[Run]) -> bool:
        same = len(checked) == len(self._checked) and all(a is b for a, b in zip(checked, self._checked, strict=True))
        if not same:
            self._large = sp.EMPTY
        # Runs without records change nothing.
        newest = next((run.txg for run in reversed(past) if run.segments or run.txg <= self._last), -1)
        return same and newest == self._last

    def _learn(self, missing: Array, numbers: Array, timeline: Timeline, past: Sequence[Run], kind: Kind) -> bool:
        """Look up all that lives of objects; False if that is too much."""
        if self._table.rows > MOST_ROWS // 2:
            self._forget()
            missing = numbers
        # Large objects are known by their newest OBJECT, before blocks are looked for.
        pieces = timeline.pieces(list(past))
        shapes = look_back(timeline, pieces, Shapes(missing, kind.raw)).objects
        large = shapes["object"][ends_of(shapes, kind) // np.maximum(shapes["blksz"], 1) > MOST_BLOCKS]
        self._large = sp.union(self._large, sp.lines(large, large + 1))
        found = look_back(timeline, pieces, _Everything(missing, kind.raw, self._large))
        if found.rows > MOST_ROWS // 2:
            return False
        self._table = _together(self._table, self._of_runs(found, timeline))
        self._numbers = sp.union(self._numbers, missing)
        return True

    def _of_runs(self, found: Table, timeline: Timeline) -> Table:
        """The records that were found, with the place of their run in `segment`."""
        numbers = sp.unique(np.concatenate([rows["segment"] for rows in found.records()]))
        first = len(self._txgs)
        self._txgs += [timeline.owner(number)[0].txg for number in numbers.tolist()]
        parts = {}
        for name in _RECORDS:
            rows = getattr(found, name).copy()
            rows["segment"] = first + np.searchsorted(numbers, rows["segment"])
            parts[name] = rows
        return replace(NOTHING, **parts)

    def _follow(self, others: list[Array], old: Table, kept: Toll, made: Table, txg: int) -> None:
        """Put the rows of run `txg` in the place of those of `old` that it does not keep; `others`: the other rows."""
        self._txgs.append(txg)
        parts = {}
        for name in _RECORDS:
            rows = getattr(made, name).copy()
            rows["segment"] = len(self._txgs) - 1
            parts[name] = rows
        lives = _selected(old, [getattr(kept, name) for name in _RECORDS])
        self._table = _together(_selected(self._table, others), _together(lives, replace(NOTHING, **parts)))
        self._last = txg


class _Everything:
    """Searches for all that lives of objects, back to where each was made; but not for the blocks of `large` ones."""

    def __init__(self, numbers: Array, raw: bool, large: Array) -> None:
        self._open = numbers
        self._raw = raw
        self._large = large

    def wanted(self) -> dict[str, Array]:
        if not len(self._open):
            return {}
        rows, blocks = by_object(self._open), by_object(sp.subtract(self._open, self._large))
        records = {"ranges": rows, "objects": rows, "spills": rows, "blocks": blocks, "holes": blocks}
        return {**records, "freed": by_number(self._open)}

    def settle(self, found: Table) -> None:
        # What was made or freed here has nothing older. A metadnode block of a raw stream comes with all its objects:
        # where it has none, nothing lives; an object that was there before has older blocks.
        both = FRESH_DATA | FRESH_SPILL
        older = found.objects["object"][found.objects["fresh"] & both != both]
        begun = found.objects["object"][found.objects["fresh"] & both == both]
        settled = sp.union(sp.lines(begun, begun + 1), found.freed)
        if self._raw:
            covered = sp.lines(found.ranges["object"], found.ranges["object"] + found.ranges["slots"])
            settled = sp.union(settled, sp.subtract(covered, sp.lines(older, older + 1)))
        self._open = sp.subtract(self._open, settled)


def _selected(table: Table, masks: list[Array]) -> Table:
    """The records that masks over them say; no spans."""
    parts = zip(_RECORDS, table.records(), masks, strict=True)
    return replace(NOTHING, **{name: rows if mask.all() else rows[mask] for name, rows, mask in parts})


def _together(one: Table, other: Table) -> Table:
    """The records of both, of which none replaces another."""
    parts = {name: interleave(getattr(one, name), getattr(other, name)) for name in ("ranges", "objects", "spills")}
    return replace(NOTHING, **parts, blocks=interleave_blocks(one.blocks, other.blocks))
