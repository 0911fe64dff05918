"""Which summaries a dataset's runs should have, and writing those that it lacks (timeline/summary.py).

Units are summed up by FAN: runs first, then what became of them, as long as that stays of a size to be written at once.
Units that wait for their like are few at any level, and a run that is large enough by itself is left alone. So a long
timeline is a handful of pieces, and each row is written once for each level.

Summaries are only a cache: if the process that writes them is killed, or the disk is full, nothing is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import numpy as np

from zkeep.errors import Damaged, ZkeepError
from zkeep.format.records import Feature
from zkeep.pool.datasets.history import History, history_of, own_runs
from zkeep.pool.datasets.model import Dataset, Pool
from zkeep.pool.datasets.orphans import reading
from zkeep.pool.store.port import Blob
from zkeep.pool.timeline import spans as sp
from zkeep.pool.timeline.copying import Made
from zkeep.pool.timeline.rewrite import RewriteJob, tables
from zkeep.pool.timeline.summary import FOLDER, Summary, SummaryName, encode, matching
from zkeep.pool.timeline.table import Table, concat
from zkeep.pool.timeline.timeline import Run

FAN = 16
"How many units are summed up together."
MOST = 1 << 18
"About the most records that a summary sums up: it is made in memory."
AT_ONCE = 4
"The most summaries that one receive writes, of FAN runs or fewer."


Place = tuple[int, int, SummaryName]
"A summary: the place of the first run, how many runs, name."


@dataclass(frozen=True)
class Unit:
    """Consecutive runs that one look answers for: `count` of them from place `start`."""

    start: int
    count: int
    level: int
    records: int

    @property
    def end(self) -> int:
        return self.start + self.count


def missing(runs: list[Run], have: Iterable[Place]) -> Iterator[Unit]:
    """The summaries that runs should have and do not, those of few runs first. Pure."""
    # Level by level: what is summed up at one level are the units of the next.
    # runs     0 1 2 ... 15 | 16 ... 31 | ... | 240 ... 255 | 256 257 258
    # level 1  |---- 16 ----|---- 16 ----|     |---- 16 -----|                 one summary of 16 runs each
    # level 2  |------------------------ 256 -----------------|                 one of 16 such summaries
    # units at the end: the level 2 summary, and three runs that wait for thirteen more
    known = {(start, count, name.level) for start, count, name in have}
    units = list(_settled(runs, known))
    level, most = 1, max((unit.level for unit in units), default=0)
    while True:
        joined = list(_level(units, known, level))
        if len(joined) == len(units) and level > most:
            return
        yield from (u for u in joined if u.level == level and (u.start, u.count, level) not in known)
        units, level = joined, level + 1


def _settled(runs: list[Run], known: set[tuple[int, int, int]]) -> Iterator[Unit]:
    """The runs, but in the place of those that a summary and complete ones below it sum up, that summary.

    Nothing is missing in there: a long timeline is looked at where it has grown.
    """
    # A summary is complete if summaries of the level below cover its runs without a gap.
    records = [int(run.doc["records"]) for run in runs]
    complete: dict[int, tuple[int, int]] = {}
    for start, count, level in sorted(known, key=lambda unit: unit[2]):
        below, at, end = complete, start, start + count
        while level > 1 and at < end and below.get(at, (0, 0))[1] == level - 1:
            at += below[at][0]
        if level == 1 or at == end:
            complete[start] = count, level
    # Walk over the runs, from summary to summary.
    at = 0
    while at < len(runs):
        count, level = complete.get(at, (1, 0))
        yield Unit(at, count, level, sum(records[at : at + count]))
        at += count


def _level(units: list[Unit], known: set[tuple[int, int, int]], level: int) -> Iterator[Unit]:
    """The units, summed up where there is a summary of this level or should be one."""
    there = {start: count for start, count, of in known if of == level}
    # The newest units wait until they are summed up at the level below.
    ripe = max((i + 1 for i, unit in enumerate(units) if unit.level >= level - 1), default=0)
    waiting: list[Unit] = []
    at = 0
    while at < ripe:
        if units[at].level >= level:
            yield from _summed(waiting, level, len(waiting) > 1)
            waiting = []
            yield units[at]
            at += 1
            continue
        # One is there already, or this unit alone is too large for one: it ends what is being collected.
        end = units[at].start + there.get(units[at].start, 0)
        many = next((i for i in range(at, len(units)) if units[i].start >= end), len(units)) - at
        size = many if many and units[at + many - 1].end == end else 0
        if size or units[at].records > MOST:
            yield from _summed(waiting, level, len(waiting) > 1)
            waiting = []
            yield from _summed(units[at : at + max(size, 1)], level, size > 0)
        # Collect up to FAN units, or as many as can be merged in memory.
        else:
            if len(waiting) == FAN or sum(u.records for u in waiting) + units[at].records > MOST:
                yield from _summed(waiting, level, len(waiting) > 1)
                waiting = []
            waiting.append(units[at])
        at += max(size, 1)
    yield from _summed(waiting, level, len(waiting) == FAN)
    yield from units[ripe:]


def _summed(units: list[Unit], level: int, together: bool) -> Iterator[Unit]:
    if together:
        yield Unit(units[0].start, sum(u.count for u in units), level, sum(u.records for u in units))
    else:
        yield from units


def sum_up(pool: Pool, dataset: Dataset, grown: int = 1) -> None:
    """Write some summaries that the dataset lacks, and delete what sums up nothing any more.

    Not at each call: the longer the timeline, the more runs come between two looks at all of it. `grown`: how many came
    since the last call.
    """
    count = pool.runs.count(dataset.key)
    # With 1000 runs every 4th receive looks, with 10,000 every 32nd.
    step = max(FAN // 4, min(count >> 8, 2 * FAN), 1)
    if count // step == (count - grown) // step:
        return
    with suppress(ZkeepError, OSError), reading(pool):
        history = history_of(pool, dataset)
        runs = [run for run in history.runs if dataset.origin is None or run.txg > dataset.origin[1]]
        # The names are read once: they are many, and all that is written here sums up these runs.
        texts = _names(pool, dataset)
        have = matching(texts, runs, history.checked[dataset.key])
        _write(pool, dataset, history, runs, have, AT_ONCE + AT_ONCE * grown // FAN)
        for text in set(texts) - {str(name) for _, _, name in have}:
            pool.store.delete(text)
        pool.runs.recent.names.clear()


def _valid(pool: Pool, dataset: Dataset, runs: list[Run]) -> set[str]:
    return {str(name) for _, _, name in matching(_names(pool, dataset), runs)}


def _names(pool: Pool, dataset: Dataset) -> list[str]:
    return pool.store.names(f"{FOLDER}/{dataset.key}")


def _write(pool: Pool, dataset: Dataset, history: History, runs: list[Run], have: list[Place], most: int) -> None:
    """Write missing summaries, low levels first: those of one level are made of those of the level below."""
    for unit in islice(missing(runs, have), most):
        summed = runs[unit.start : unit.end]
        with history.timeline(pool.store, pool.runs.recent) as timeline:
            # The runs merged into one table, with the holes that only the merged increment has.
            raw = bool(dataset.doc["raw"]) and all(Feature(run.doc["features"]) & Feature.RAW for run in summed)
            before = [run for run in timeline.runs if run.txg < summed[0].txg]
            table = concat(tables(timeline, RewriteJob(summed, summed, before, [], raw), Made()))
            numbers = sp.unique(np.concatenate([rows["segment"] for rows in table.records()]))
            ids = [timeline.segment_id(int(number)) for number in numbers]
            content = encode(_placed(table, numbers), ids)
        pool.store.put(str(SummaryName.of(dataset.key, unit.level, summed)), content)
        pool.runs.recent.names.clear()


def _placed(table: Table, numbers: np.ndarray[tuple[int], np.dtype[np.uint32]]) -> Table:
    """The table with the places of segments in `numbers` in place of their numbers."""
    parts = {}
    for name in ("ranges", "objects", "blocks", "spills"):
        rows = getattr(table, name).copy()
        rows["segment"] = np.searchsorted(numbers, rows["segment"])
        parts[name] = rows
    return Table(**parts, holes=table.holes, died=table.died, freed=table.freed)


def forget(pool: Pool, dataset: Dataset) -> None:
    """Delete all that sums up a dataset's runs."""
    for text in _names(pool, dataset):
        pool.store.delete(text)
    pool.runs.recent.names.clear()


def slim(pool: Pool, room: int) -> None:
    """Delete summaries that match no runs any more; and all, if the others take more than `room` bytes."""
    valid = {name for d in pool.tree().by_id.values() for name in _valid(pool, d, own_runs(pool, d))}
    sizes = {}
    for text in pool.store.names(FOLDER):
        with suppress(FileNotFoundError):
            sizes[text] = pool.store.size(text)
    # They are a cache: if they take more than what is allowed, all go, and come back as they are needed.
    left = sum(size for text, size in sizes.items() if text in valid)
    for text in sizes:
        if text not in valid or left > room:
            pool.store.delete(text)
    pool.runs.recent.names.clear()


def faults(pool: Pool) -> Iterator[tuple[str, str]]:
    """Verify all summaries of a pool: the names of those that are damaged, and what is wrong; they are deleted."""
    for text in pool.store.names(FOLDER):
        try:
            with pool.store.open(text) as blob:
                Summary(_given(blob), text, lambda _: 0).check()
        except FileNotFoundError:
            continue
        except Damaged as error:
            if not pool.catalog.read_only:
                pool.store.delete(text)
            yield text, str(error).removeprefix(f"{text}: ")


def _given(blob: Blob) -> Callable[[], Blob]:
    return lambda: blob
