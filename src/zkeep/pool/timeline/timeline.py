"""A dataset's timeline: its runs, oldest first, and how to look at stretches of them.

A run is what one transaction group did: the segments that hold its records, in key order. A clone's timeline begins
with its origin's. Where summaries are known, they are asked in the place of the runs that they sum up.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from threading import Lock

import numpy as np

from zkeep.cache import Cache
from zkeep.errors import Damaged
from zkeep.pool.store.port import Blob, Store, segment_name
from zkeep.pool.timeline import spans as sp
from zkeep.pool.timeline.segment import Key, RecentContents, Segment
from zkeep.pool.timeline.spans import Array, Bools
from zkeep.pool.timeline.summary import Summary, SummaryName, digest
from zkeep.pool.timeline.table import MAX_SLOTS, NOTHING, Table, concat, fold
from zkeep.pool.types import Doc

SLICE_ROWS = 150_000
"About how many rows a slice of the key space may have over all runs; bounds memory, not correctness."

MAX_OPEN = 100
"Files that a timeline keeps open."
LAST: Key = (sp.END, sp.END)


@dataclass(frozen=True)
class Run:
    """One run: the txg that it made, and its segments' ids in key order. `doc` is its document in the catalog."""

    txg: int
    segments: tuple[str, ...]
    doc: Doc


class Files:
    """Segment files, the most recently used of which stay open: a pool has more than a process may open.

    Several threads may use it. What one of them reads stays open for it, whatever others open meanwhile.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._open: Cache[str, Blob] = Cache(MAX_OPEN)
        self._lock = Lock()

    def get(self, name: str) -> Blob:
        """Raises Damaged: it is not there."""
        with self._lock:
            # Not closed when it leaves the cache: another thread may be reading it. It closes when that one lets go.
            return self._open.get(name) or self._open.put(name, self._opened(name))

    def _opened(self, name: str) -> Blob:
        try:
            return self._store.open(name)
        except FileNotFoundError:
            raise Damaged(f"{name} is missing") from None

    def close(self) -> None:
        for blob in self._open.values():
            blob.close()
        self._open.clear()


@dataclass(frozen=True)
class Piece:
    """Consecutive runs that are read together, from their summary; or one run by itself."""

    runs: list[Run]
    summary: str | None = None
    "The name of their summary; it may turn out to be missing, or damaged."


class Timeline:
    """Runs of one dataset (its origin's included), with their segments opened as they are needed.

    `summaries`: names of files that sum up some of the runs, or what gives them when they are first needed; those that
    sum up others are passed over.
    `checked`: by datasets' keys and by names, which are known to sum up these runs, or others; this adds to it.
    `recent`: what is known of segments and summaries without reading them; this adds to it, too. `datasets`: the keys
    of those whose runs these are, for it.
    """

    def __init__(
        self,
        store: Store,
        runs: Iterable[Run],
        summaries: Sequence[str] | Callable[[], Sequence[str]] = (),
        checked: dict[str, dict[str, bool]] | None = None,
        recent: RecentContents | None = None,
        datasets: tuple[str, ...] = (),
    ) -> None:
        self.runs = list(runs)
        self._files = Files(store)
        self._recent = recent
        self._datasets = datasets
        self._opened: dict[str, Segment] = {}
        self._by_number: list[tuple[Run, Segment]] = []
        self._ids: list[str] = []
        self._names = summaries
        self._checked = checked if checked is not None else {}
        self._summed: dict[str, Summary] = {}
        self._damaged: set[str] = set()

    def __enter__(self) -> Timeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._files.close()
        self._opened.clear()
        self._summed.clear()  # they lead back here: such rings are looked for seldom

    def upto(self, txg: int) -> list[Run]:
        return [run for run in self.runs if run.txg <= txg]

    def after(self, txg: int, last: int) -> list[Run]:
        return [run for run in self.runs if txg < run.txg <= last]

    def segments(self, run: Run) -> list[Segment]:
        return [self._open(run, segment_id) for segment_id in run.segments]

    def _open(self, run: Run, segment_id: str) -> Segment:
        if segment_id not in self._opened:
            name = segment_name(segment_id)
            opened = partial(self._files.get, name)
            self._opened[segment_id] = Segment(opened, name, len(self._by_number), self._recent)
            self._by_number.append((run, self._opened[segment_id]))
            self._ids.append(segment_id)
        return self._opened[segment_id]

    def segment_id(self, number: int) -> str:
        """The id of the segment that rows call `number`."""
        return self._ids[number]

    def owner(self, number: int) -> tuple[Run, Segment]:
        """The run and the segment of a `number` in a row's `segment`."""
        return self._by_number[number]

    def newer(self, txg: int) -> Bools:
        """For each number of an opened segment, whether its run is of `txg` or later."""
        return np.array([run.txg >= txg for run, _ in self._by_number], bool)

    # Pieces

    def pieces(self, runs: list[Run]) -> list[Piece]:
        """The runs in as few pieces as there are summaries for."""
        found, at = [], 0
        while at < len(runs):
            found.append(self._piece(runs, at))
            at += len(found[-1].runs)
        return found

    def _piece(self, runs: list[Run], at: int) -> Piece:
        # The longest summary that starts with this run, ends inside of `runs`, and matches the segments they have
        # today.
        names = self._summaries.get(runs[at].txg, ())
        start = self._place(runs[at].txg) if names else None
        for name in names if start is not None else ():
            end = self._place(name.last)
            if end is None or start is None or str(name) in self._damaged:
                continue
            summed = runs[at : at + end + 1 - start]
            if summed == self.runs[start : end + 1] and self._sums_up(name, summed):
                return Piece(summed, str(name))
        return Piece(runs[at : at + 1])

    @property
    def checked(self) -> dict[str, dict[str, bool]]:
        """What is known of the names of summaries, by the keys of the datasets whose runs these are."""
        return self._checked

    @cached_property
    def _summaries(self) -> dict[int, list[SummaryName]]:
        """Summaries by the txg of their first run, those of most runs first."""
        if self._recent is None:
            return self._grouped()
        # Each snapshot of a package asks for the same hundreds of names.
        if self._datasets not in self._recent.names:
            self._recent.names[self._datasets] = self._grouped()
        known: dict[int, list[SummaryName]] = self._recent.names[self._datasets]
        return known

    def _grouped(self) -> dict[int, list[SummaryName]]:
        found: dict[int, list[SummaryName]] = {}
        texts = self._names() if callable(self._names) else self._names
        for name in sorted(filter(None, map(SummaryName.parse, texts)), key=lambda name: -name.last):
            found.setdefault(name.first, []).append(name)
        return found

    def _place(self, txg: int) -> int | None:
        at = bisect_left(self.runs, txg, key=lambda run: run.txg)
        return at if at < len(self.runs) and self.runs[at].txg == txg else None

    def _sums_up(self, name: SummaryName, runs: list[Run]) -> bool:
        """Whether a summary matches these runs, which begin and end with the txgs in its name."""
        checked = self._checked.setdefault(name.dataset, {})
        text = str(name)
        if text not in checked:
            checked[text] = digest(runs) == name.digest
        return checked[text]

    def _summary(self, name: str, runs: list[Run]) -> Summary:
        if name not in self._summed:
            owners: dict[str, Run] = {}

            def number_of(segment_id: str) -> int:
                if not owners:
                    owners.update((each, run) for run in runs for each in run.segments)
                return self._open(owners[segment_id], segment_id).number

            self._summed[name] = Summary(partial(self._files.get, name), name, number_of, self._recent)
        return self._summed[name]

    def ask(self, piece: Piece, look: Callable[[Segment], Table]) -> list[Table]:
        """What `look` finds in the segments of a piece: a table for each run, or one from the summary."""
        if piece.summary:
            with suppress(Damaged):
                return [look(self._summary(piece.summary, piece.runs))]
            # The summary is damaged: use it no more, and ask its runs instead.
            self._damaged.add(piece.summary)
        return [concat(look(segment) for segment in self.segments(run)) for run in piece.runs]

    def parts(self, runs: list[Run], look: Callable[[Segment], Table]) -> list[Table]:
        """What `look` finds in each piece of these runs, oldest first; together it is what it finds in all of them."""
        return [table for piece in self.pieces(runs) for table in self.ask(piece, look)]

    def nearby(self, piece: Piece, wanted: dict[str, Array]) -> Table:
        """A piece's rows that lie in `wanted` (rows of WANT by table), and those just before."""
        if not piece.summary and not piece.runs[0].segments:
            return NOTHING  # a snapshot in which nothing changed
        return fold(self.ask(piece, lambda segment: segment.nearby(wanted)))

    def near(self, runs: list[Run], names: Iterable[str], wanted: dict[str, Array]) -> list[Table]:
        """What nearby() finds in the named tables, for each piece of the runs."""
        asked = {name: wanted[name] for name in names}
        return self.parts(runs, lambda segment: segment.nearby(asked))

    def _asked(self, runs: list[Run]) -> Iterator[Segment]:
        """The segments and summaries that answer for these runs."""
        for piece in self.pieces(runs):
            if piece.summary:
                with suppress(Damaged):
                    summary = self._summary(piece.summary, piece.runs)
                    summary.parts  # noqa: B018 (verified when it is read)
                    yield summary
                    continue
                self._damaged.add(piece.summary)
            for run in piece.runs:
                yield from self.segments(run)

    def rows(self, runs: list[Run]) -> int:
        """How many rows the tables of these runs have."""
        return sum(part.rows for segment in self._asked(runs) for part in segment.parts.values())

    def cuts(self, runs: list[Run], rows: int = SLICE_ROWS) -> list[Key]:
        """Keys at which to cut the key space, so that no slice has many more than `rows` rows of these runs."""
        keys, weights = [], []
        for segment in self._asked(runs):
            for name, part in segment.parts.items():
                if name != "freed":
                    keys.append(part.keys)
                    weights.append(np.full(len(part.keys), min(part.rows, 256)))
        if not keys:
            return []
        # All first keys of pages, sorted, stand for about 256 rows each. Cut where their sum passes a multiple of
        # `rows`.
        every, weight = np.concatenate(keys), np.concatenate(weights)
        order = np.argsort(every, kind="stable")
        filled = np.cumsum(weight[order]) // rows
        turns = np.flatnonzero(filled[1:] > filled[:-1]) + 1
        pairs = every[order][turns].view(">u8").reshape(-1, 2)
        # Cut between metadnode blocks, but a single large object may be cut at any offset.
        cuts = {(number, at) if at else (number - number % MAX_SLOTS, 0) for number, at in pairs.tolist()}
        return sorted(cuts - {(0, 0)})

    def slices(self, runs: list[Run], rows: int = SLICE_ROWS) -> Iterator[tuple[Key, Key]]:
        """The key space as consecutive stretches [low, high) of bounded size."""
        low: Key = (0, 0)
        for high in [*self.cuts(runs, rows), LAST]:
            yield low, high
            low = high

    def state(self, runs: list[Run], low: Key, high: Key) -> Table:
        """What these runs add up to between two keys. Rows of objects that reach into it are there, too."""
        return fold(self.states(runs, low, high))

    def states(self, runs: list[Run], low: Key, high: Key) -> list[Table]:
        """What state() adds up: the tables of the pieces, oldest first."""
        return self.parts(runs, lambda segment: _between(segment, low, high))


def _between(segment: Segment, low: Key, high: Key) -> Table:
    """The rows of a segment between two keys; an object's own rows are in each slice that it reaches into."""
    first, last = segment.hull
    if first > last or last < low[0] or first > high[0]:
        return NOTHING
    parts = {}
    # Rows of metadnode blocks, objects and spill blocks have no offset: they come with every slice of their object.
    beyond = high[0] if high[1] == 0 or high == LAST else high[0] + 1
    for name, start in (("ranges", low[0] - low[0] % MAX_SLOTS), ("objects", low[0]), ("spills", low[0])):
        rows = segment.between(name, (start, 0), (beyond, 0))
        parts[name] = rows[(rows["object"] >= start) & (rows["object"] < beyond)]
    for name in ("blocks", "holes", "died"):
        parts[name] = _cut(name, segment.between(name, low, high), low, high)
    freed = segment.rows("freed")
    return Table(**parts, freed=freed[(freed["end"] > low[0]) & (freed["start"] < beyond)])


def _cut(name: str, rows: Array, low: Key, high: Key) -> Array:
    """Rows with low <= key < high; spans are clipped."""
    if not len(rows):
        return rows
    if name != "blocks":
        return _clip(rows, low, high)
    keys = sp.keys(rows["object"], rows["offset"])
    ends = sp.keys(*np.array([low, high], np.uint64).T)
    kept: Array = rows[(keys >= ends[0]) & ((keys < ends[1]) | (high == LAST))]
    return kept


def _clip(rows: Array, low: Key, high: Key) -> Array:
    rows = rows[(rows["object"] >= low[0]) & (rows["object"] <= high[0])].copy()
    # Only spans of the first and the last object can reach out of the slice.
    first = rows["object"] == low[0]
    rows["start"][first] = np.maximum(rows["start"][first], np.uint64(low[1]))
    last = rows["object"] == high[0]
    if high != LAST:
        rows["end"][last] = np.minimum(rows["end"][last], np.uint64(high[1]))
    return rows[rows["start"] < rows["end"]]


__all__ = ["LAST", "SLICE_ROWS", "Run", "Timeline", "segment_name"]
