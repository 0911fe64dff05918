"""Checks that an increment brings all that its receiver lacks, and frees nothing that lives.

Which records an increment has follows from the pool's tables, which no MAC covers. Each block that is sent is
authentic by itself, but a server that forged a table could leave a change out, or free what is there; the receiver
would then hold a state that never was. So the source is opened, too, and what differs follows from MACs alone:

    block of dnodes     the same salt, IV and MAC in both: equal, with all that its 32 objects have
    object              the same dnode and the same pointers: equal
    indirect block      the same MAC: equal, so of a large file only the changed parts are compared
    block               the same pointer: equal; all others must be sent, or freed where the target has none

It is asked in the order of the stream, and raises before anything behind what is missing leaves; so what a receiver
keeps of a stream that broke off is complete up to there, too.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from zkeep.format.dnode import SLOTS
from zkeep.format.records import RecordType
from zkeep.pool.timeline import spans as sp
from zkeep.pool.timeline.spans import END, Array
from zkeep.snapshot.errors import Forgery
from zkeep.snapshot.open import OpenSnapshot
from zkeep.snapshot.verified import NO_LEAVES, VerifiedObject


@dataclass
class _Open:
    """The object whose steps come in. `before`: what the source has under its number; itself if it is the same."""

    obj: VerifiedObject
    before: VerifiedObject | None
    done: int
    "Bytes up to which its blocks were compared."
    is_rest: bool = False
    "The receiver has what lies before `done`, from a stream that broke off."
    frees: Array = field(default_factory=lambda: sp.EMPTY)
    told: bool = False
    spill: bool = False


class Difference:
    """Is told the steps of a plain stream to `target`, in their order.

    `source`: None if the stream is full. `complete`: False if there is a source that cannot be opened; then only what
    is freed is checked. `resume`: object and offset at which the stream goes on.

    Raises (all methods):
        Forgery: the tables of the pool are not true.
        Damaged: the pool's own data is not what was stored.
    """

    def __init__(
        self,
        target: OpenSnapshot,
        source: OpenSnapshot | None,
        *,
        complete: bool = True,
        resume: tuple[int, int] | None = None,
    ) -> None:
        self._target, self._source, self._complete = target, source, complete
        self._resume = resume or (0, 0)
        self._blocks = sorted(target.numbers())
        self._differing = self._numbers() if complete else iter(())
        self._next = next(self._differing, END)
        "The lowest object that may differ and for which no step has come."
        self._freed: list[tuple[int, int]] = []
        self._open: _Open | None = None

    def _numbers(self) -> Iterator[int]:
        """The objects of either side that may differ, ascending."""
        target, source = self._target, self._source
        for index in sorted({*self._blocks, *(source.numbers() if source else ())}):
            seal = target.seal(index)
            if index * SLOTS + SLOTS <= self._resume[0] or (source and seal is not None and seal == source.seal(index)):
                continue
            here = {*target.dnodes(index), *(source.dnodes(index) if source else ())}
            yield from sorted(number for number in here if number >= self._resume[0])

    # Objects that are gone

    def free(self, steps: Array) -> None:
        """FREEOBJECTS, all of which begin behind the objects before."""
        for first, count in zip(steps["a"].tolist(), steps["b"].tolist(), strict=True):
            self._check_free(first, first + count)
            self._freed.append((first, first + count))

    def _check_free(self, first: int, end: int) -> None:
        """Raises Forgery: an object of the target lies in [first, end)."""
        low, high = bisect_left(self._blocks, first // SLOTS), bisect_right(self._blocks, (end - 1) // SLOTS)
        for index in self._blocks[low:high]:
            block = self._target.dnodes(index)
            inside = [number for number in block if number < end]
            before = max((number for number in inside if number < first), default=None)
            # An object of several slots may begin before the range and reach into it.
            if before is not None and before + block[before].dnode.slots > first:
                raise self._forgery("it would be freed", before)
            if live := [number for number in inside if number >= first]:
                raise self._forgery("it would be freed", min(live))

    def _pass(self, number: int) -> None:
        """All steps of objects below `number` came: those of them that differ must be gone, and freed."""
        while self._next < number:
            if not self._is_freed(self._next):
                raise self._forgery("its change is left out", self._next)
            self._next = next(self._differing, END)

    def _is_freed(self, number: int) -> bool:
        block = self._target.dnodes(number // SLOTS)
        if number in block:
            return False
        # A receiver frees what lies in the slots of a larger dnode.
        larger = max((other for other in block if other < number), default=None)
        if larger is not None and larger + block[larger].dnode.slots > number:
            return True
        at = bisect_right(self._freed, (number, END)) - 1
        return at >= 0 and self._freed[at][1] > number

    # One object

    def object(self, obj: VerifiedObject, steps: Array) -> None:
        """Some steps of one object: those of one go before those of the next."""
        # Steps come in ascending order: a new object number closes the one before.
        if self._open is None or self._open.obj.dnode.number != obj.dnode.number:
            self._turn_to(obj)
        assert self._open is not None
        here, rtypes = self._open, steps["rtype"]
        here.told |= bool((rtypes == RecordType.OBJECT).any())
        here.spill |= bool((rtypes == RecordType.SPILL).any())
        # What the stream calls a hole must be one in the authenticated tree.
        for row in steps[rtypes == RecordType.FREE]:
            self._check_hole(here, int(row["a"]), min(int(row["a"]) + int(row["b"]), END))
        written = steps["offset"][rtypes == RecordType.WRITE]
        # Behind the last block that is sent here nothing more is known yet, so compare only up to it.
        if len(written):
            self._compare(here, int(written[-1]) + obj.dnode.blksz, written)

    def _turn_to(self, obj: VerifiedObject) -> None:
        self._finish()
        number = obj.dnode.number
        self._pass(number)
        if self._next == number:
            self._next = next(self._differing, END)
        is_rest = number == self._resume[0] and self._resume[1] > 0
        self._open = _Open(obj, self._before(obj), self._resume[1] if is_rest else 0, is_rest)

    def _before(self, obj: VerifiedObject) -> VerifiedObject | None:
        if not self._complete:
            return obj
        if self._source is None:
            return None
        number = obj.dnode.number
        index = number // SLOTS
        # The MAC of the dnode block covers all in it: the same MAC means the same objects.
        if self._target.seal(index) == self._source.seal(index):
            return obj
        held = self._source.dnodes(index).get(number)
        return obj if held is not None and self._target.same(obj, held) else held

    def _check_hole(self, here: _Open, start: int, end: int) -> None:
        """Raises Forgery: a block of the target lies in a range that is freed."""
        size = here.obj.dnode.blksz
        for leaves in self._target.blocks.leaves(here.obj, start // size, -(-end // size)):
            if len(leaves):
                raise self._forgery("it would be freed", here.obj.dnode.number, int(leaves["offset"][0]))
        # Note what was freed: blocks that only the source has must be in one of these ranges.
        if here.before is not None and here.before is not here.obj:
            number = np.array([here.obj.dnode.number], np.uint64)
            freed = sp.spans(number, np.array([start], np.uint64), np.array([end], np.uint64))
            here.frees = sp.union(here.frees, freed)

    def _finish(self) -> None:
        """No more steps of the open object come."""
        here, self._open = self._open, None
        if here is None:
            return
        # What lies behind the last block that was sent must be as the source has it.
        self._compare(here, END, np.empty(0, np.uint64))
        dnode = here.obj.dnode
        if here.before is not here.obj and not here.told:
            raise self._forgery("its change is left out", dnode.number)
        if here.told and dnode.has_spill and not here.spill:
            raise self._forgery("its spill block is left out", dnode.number)

    def finish(self) -> None:
        """No more steps come."""
        self._finish()
        self._pass(END)

    # Its blocks

    def _compare(self, here: _Open, end: int, written: Array) -> None:
        """Compare the blocks up to `end`. `written`: offsets of those that are sent there, ascending."""
        start, here.done = here.done, max(end, here.done)
        # The object is the same in both snapshots: nothing can be missing.
        if here.before is here.obj:
            return
        size = here.obj.dnode.blksz
        # Compare MACs range by range: a block whose MAC differs from the source's must be among those sent.
        for low, high in self._ranges(here, start, end):
            old = here.before and self._leaves_of(self._source, here.before, low, high)
            for new in self._target.blocks.leaves(here.obj, low // size, -(-high // size)):
                lacking = new if old is None or here.before is None else _changed(new, old, here)
                lacking = lacking[~np.isin(lacking["offset"], written)]
                if len(lacking):
                    offset = int(lacking["offset"][0])
                    raise self._forgery("its change is left out", here.obj.dnode.number, offset)
            # And what only the source has must be freed by the stream.
            if old is not None and len(old):
                self._check_gone(here, old, low, high)

    def _ranges(self, here: _Open, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The ranges of bytes in which the blocks of both sides may differ."""
        one, other = here.obj.tree, here.before.tree if here.before is not None else None
        # Trees of different shape cannot be compared group by group.
        if one is None or other is None or one.shape != other.shape or not _same_size(here):
            if start < end:
                yield start, end
            return
        size = here.obj.dnode.blksz << one.shape.fanout
        # A group is all that one pointer of the top level leads to: the same MAC, the same blocks.
        for group in sorted({*one.first, *other.first}):
            low, high = max(group * size, start), min(group * size + size, end)
            if low < high and one.first.get(group) != other.first.get(group):
                yield low, high

    def _check_gone(self, here: _Open, old: Array, low: int, high: int) -> None:
        """What only the source has must be freed."""
        new = self._leaves_of(self._target, here.obj, low, high)
        if here.is_rest:
            # What was freed before the first block of the rest was freed in what came before it.
            low = max(low, int(new["offset"][0]) if len(new) else high)
        gone = sp.subtract(_spans(old, low, high), _spans(new, 0, END))
        kept = sp.subtract(gone, here.frees)
        if len(kept):
            raise self._forgery("what is gone is not freed", here.obj.dnode.number, int(kept["start"][0]))

    def _leaves_of(self, opened: OpenSnapshot | None, obj: VerifiedObject, low: int, high: int) -> Array:
        if opened is None:
            return NO_LEAVES
        size = obj.dnode.blksz
        parts = list(opened.blocks.leaves(obj, low // size, -(-high // size)))
        found: Array = np.concatenate([NO_LEAVES, *parts])
        return found

    def _forgery(self, what: str, number: int, offset: int = -1) -> Forgery:
        return Forgery(self._target.name, f"{what}: the pool's tables are not true", number, offset)


def _same_size(here: _Open) -> bool:
    return here.before is not None and here.before.dnode.blksz == here.obj.dnode.blksz


def _changed(new: Array, old: Array, here: _Open) -> Array:
    """The leaves that the source does not have as they are."""
    if not _same_size(here) or not len(old):
        return new
    at = np.minimum(np.searchsorted(old["offset"], new["offset"]), len(old) - 1)
    same = (old["offset"][at] == new["offset"]) & (old["pointer"][at] == new["pointer"])
    changed: Array = new[~same]
    return changed


def _spans(leaves: Array, low: int, high: int) -> Array:
    """The bytes of blocks, as far as they lie in [low, high)."""
    made = sp.spans(leaves["object"], leaves["offset"], sp.reach(leaves["offset"], leaves["logical"].astype(np.uint64)))
    made["start"] = np.maximum(made["start"], np.uint64(low))
    made["end"] = np.minimum(made["end"], np.uint64(min(high, END)))
    cut: Array = made[made["start"] < made["end"]]
    return cut
