"""Which runs to merge or to trim, judged by the catalog's sums alone. Pure.

Runs between two pins (snapshots, bookmarks, origins of clones) are a group: any neighbours in it may become one run.
Runs up to the next snapshot or origin are a stretch: what one of its runs killed of another, nothing can need. Groups
lie in stretches; they differ where only a bookmark stands between.

Merging costs its result, so it is done where that is not much more than what is gained: the largest run of a merge is
at most RATIO times the others together. By that every byte is rewritten a number of times that grows with the logarithm
of the group, and small runs do not pile up.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from zkeep.names import MAX_UINT64
from zkeep.pool.types import Doc

RATIO = 4
FLOOR = 256 << 10
"Runs count as at least this large, so that several small files are merged at once, not pair by pair."
CEILING = 1 << 30
"Runs larger than this are trimmed, never merged."
ROW = 64
"Bytes that a record takes in the table of contents, about."
WASTED = 0.5
"A run of which this much is garbage is trimmed at once: that costs less than it gives back."
LEVELS = (0.25, 0.1, 0.03)
"Shares of garbage at which runs are trimmed, one after the other, while the pool as a whole is too large."
SMALLEST = 16 << 10
"Less garbage than this is not worth a rewrite, ever."


@dataclass(frozen=True)
class Part:
    """One run of a stretch. `later`: the runs up to the stretch's end; what they killed of it is garbage."""

    doc: Doc
    later: Sequence[Doc]
    pinned: bool
    "A snapshot, bookmark or clone names it."
    sent: bool
    "Its own snapshot is there: its body is kept as it came."
    killed: int | None = None
    "What `later` killed of it, where that is known."

    @property
    def txg(self) -> int:
        return int(self.doc["txg"])

    @property
    def garbage(self) -> int:
        """Bytes of its records that nothing can need."""
        if self.killed is not None:
            return self.killed
        key = str(self.txg)
        return sum(int(doc["dead"].get(key, (0, 0))[0]) for doc in self.later)

    @property
    def live(self) -> int:
        return max(int(self.doc["bytes"]) - self.garbage, 0)

    @property
    def waste(self) -> int:
        """Bytes that a rewrite would return: garbage, and records that a send makes again."""
        if self.sent:
            return self.garbage
        made = int(self.doc["file_bytes"]) - int(self.doc["bytes"]) - ROW * int(self.doc["records"])
        return self.garbage + max(made, 0)

    @property
    def wasted(self) -> float:
        return self.waste / max(int(self.doc["file_bytes"]), 1)


Group = list[Part]


class _Stretch(Sequence[Doc]):
    """A slice of the runs without copying them: a stretch of thousands of runs has as many slices."""

    def __init__(self, runs: Sequence[Doc], start: int, stop: int) -> None:
        self._runs = runs
        self._places = range(start, max(start, stop))

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, at: int) -> Doc: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Doc]: ...
    def __getitem__(self, at: int | slice) -> Doc | Sequence[Doc]:
        if isinstance(at, slice):
            return [self._runs[place] for place in self._places[at]]
        return self._runs[self._places[at]]


def _killed(stretch: Iterable[Doc]) -> dict[str, int]:
    """Bytes by the txg of the run that brought them, which later runs of the stretch overwrote or freed."""
    found: dict[str, int] = {}
    for run in stretch:
        for born, amounts in run["dead"].items():
            if born != str(run["txg"]):
                found[born] = found.get(born, 0) + int(amounts[0])
    return found


def groups(runs: Sequence[Doc], pins: Iterable[int], needed: Iterable[int]) -> Iterator[Group]:
    """The groups of one dataset's own runs, oldest first. `needed`: the pins that need content, not births alone."""
    pinned, ends = set(pins), sorted(set(needed))
    sent = set(ends)
    txgs = [int(run["txg"]) for run in runs]
    group: Group = []
    killed: dict[str, int] = {}
    known = -1
    for i, run in enumerate(runs):
        # runs     1  2  3  4  5  6  7        pins: snapshot at 3, bookmark at 5, snapshot at 7
        # groups   |-----|  |--|  |--|        what may become one run
        # stretch  |-----|  |--------|        what one of its runs killed of another is garbage
        at = bisect_left(ends, txgs[i])
        stop = bisect_left(txgs, ends[at] + 1) if at < len(ends) else len(runs)
        if at != known:  # a stretch begins: all of it is gone through once
            known, killed = at, _killed(runs[i:stop])
        later = _Stretch(runs, i + 1, stop)
        part = Part(run, later, txgs[i] in pinned, txgs[i] in sent, killed.get(str(txgs[i]), 0))
        group.append(part)
        if part.pinned:
            yield group
            group = []
    if group:
        yield group


def merges(group: Group, most: int = MAX_UINT64) -> Iterator[Group]:
    """Neighbours of a group that are worth merging. `most`: the bytes that one merge may write."""
    if len(group) < 2:
        return
    sizes = [max(part.live, FLOOR) for part in group]
    # The largest run is rewritten only if the others bring enough; else the runs on both sides of it are tried. So are
    # they where the whole is too much at a time: a few large runs must not keep many small ones from merging.
    largest = max(range(len(group)), key=sizes.__getitem__)
    is_worth_it = sizes[largest] <= min(CEILING, RATIO * (sum(sizes) - sizes[largest]))
    if is_worth_it and sum(part.live for part in group) <= most:
        yield group
        return
    yield from merges(group[:largest], most)
    yield from merges(group[largest + 1 :], most)


@dataclass(frozen=True)
class Figures:
    """`disk`: bytes of all files of the pool; `live`: bytes of records that a snapshot or a head needs."""

    disk: int
    live: int

    @property
    def room(self) -> int:
        """Bytes up to what a compacted pool may take; less than 0 if it takes more."""
        return self.live * 11 // 10 + (2 << 20) - self.disk

    @property
    def excess(self) -> int:
        """Bytes above what a compacted pool should take."""
        return max(-self.room, 0)


def trims(parts: Iterable[Part], wasted: float = WASTED) -> list[Part]:
    """Runs of which at least the share `wasted` would come back, the most wasteful first."""
    found = [part for part in parts if part.wasted >= wasted and part.waste >= SMALLEST]
    return sorted(found, key=lambda part: -part.wasted)
