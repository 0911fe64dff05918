"""Compaction returns space: runs that no snapshot or bookmark separates are merged, records that nothing needs dropped.

Destroying a snapshot deletes documents. Compaction makes the disk follow in steps, each of which is whole or did not
happen: new segments are written under a txg that a document (kind `compact`) registers before the first byte; one
transaction puts the new run in the place of the old ones and takes the registration away; then the old files go, when
no one reads. What a crash leaves behind, sweep() finds: files that no run names, of registrations whose lock is free.

Nothing that anyone can ask a remaining snapshot changes: neither a byte of a stream from any remaining snapshot or
bookmark, nor a figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zkeep.errors import Damaged, TryAgain, ZkeepError
from zkeep.format.records import Feature
from zkeep.pool.datasets import summaries
from zkeep.pool.datasets.history import history_of
from zkeep.pool.datasets.model import Dataset, Pool, dataset_key, txg_key
from zkeep.pool.datasets.orphans import READERS, discard, reading, undo
from zkeep.pool.store.catalog import Transaction
from zkeep.pool.store.port import segment_name
from zkeep.pool.timeline import tiers
from zkeep.pool.timeline.rewrite import Job, Made, rewrite, shed, slices_of
from zkeep.pool.timeline.timeline import Run, Timeline
from zkeep.pool.types import MAX_UINT64, Doc

Progress = Callable[[int], object]

STEP = 256 << 20
"""A budget for compaction that runs while a user waits."""


@dataclass
class Report:
    """What a compaction did. `skipped`: one line for each step that failed."""

    merged: int = 0
    trimmed: int = 0
    written: int = 0
    freed: int = 0
    skipped: list[str] = field(default_factory=list)


def compact(
    pool: Pool, dataset: Dataset | None = None, *, budget: int | None = None, progress: Progress | None = None
) -> Report:
    """Return the space of what was destroyed.

    Of one dataset: only what pays for itself. Of the whole pool: until its files take at most a tenth more than what
    they hold, leftovers of crashes included. `budget`: bytes to write at most. `progress` is called with the bytes
    written so far. Busy datasets are skipped.
    """
    work = _Work(pool, Report(), budget, progress)
    if dataset is not None:
        work.dataset(dataset)
        return work.report
    sweep(pool)
    for one in pool.tree().by_id.values():
        work.dataset(one)
    for level in tiers.LEVELS:
        for one in pool.tree().by_id.values():
            if _figures(pool).excess > 0:
                work.dataset(one, level)
    sweep(pool)
    summaries.slim(pool, _figures(pool).room)
    pool.catalog.shrink()
    return work.report


def _figures(pool: Pool) -> tiers.Figures:
    disk = live = 0
    for dataset in pool.tree().by_id.values():
        for group in _groups(pool, dataset):
            disk += sum(int(part.doc["file_bytes"]) for part in group)
            live += sum(part.live for part in group)
    return tiers.Figures(disk, live)


def _groups(pool: Pool, dataset: Dataset) -> list[tiers.Group]:
    runs = [doc for _, doc in pool.catalog.scan("run", dataset.key + "/")]
    origins = [c.origin[1] for c in pool.tree().clones(dataset) if c.origin]
    needed = [*origins, *(s.txg for s in pool.snapshots(dataset))]
    return list(tiers.groups(runs, pool.pins(dataset), needed))


class _ChangedError(Exception):
    """Another process changed the runs of a step; nothing was done."""


@dataclass
class _Work:
    pool: Pool
    report: Report
    budget: int | None
    progress: Progress | None

    @property
    def left(self) -> int:
        return MAX_UINT64 if self.budget is None else self.budget - self.report.written

    def dataset(self, dataset: Dataset, wasted: float = tiers.WASTED) -> None:
        """Do everything that is worthwhile, step by step, until the budget is used up."""
        with suppress(TryAgain), self.pool.store.lock(f"compact-{dataset.id}"):
            refused: set[int] = set()
            while self._step(dataset, wasted, refused):
                pass

    def _step(self, dataset: Dataset, wasted: float, refused: set[int]) -> bool:
        """Do the first thing that can be done. `refused`: txgs of runs that could not be touched."""
        with self.pool.catalog.reading():
            groups = _groups(self.pool, dataset)
            history = history_of(self.pool, dataset).runs
        for group in groups:
            for parts in tiers.merges(group):
                cost = sum(part.live for part in parts)
                if cost <= self.left and not refused & {p.txg for p in parts}:
                    return self._try(dataset, history, parts, refused, wasted, merging=True)
        single = [part for group in groups for part in group]
        for part in tiers.trims(single, wasted):
            if part.txg not in refused and self.left > 0:
                return self._try(dataset, history, [part], refused, wasted, merging=False)
        return False

    def _try(
        self,
        dataset: Dataset,
        history: list[Run],
        parts: tiers.Group,
        refused: set[int],
        wasted: float,
        *,
        merging: bool,
    ) -> bool:
        """Do one step; returns whether there may be more to do. A step that fails is noted and skipped."""
        try:
            with reading(self.pool), Timeline(self.pool.store, history) as timeline:
                step = _Step(self.pool, dataset, timeline, parts, _is_raw(dataset, parts))
                chosen = step.all_segments() if merging else step.wasteful(wasted, self.left)
                if not chosen:
                    refused |= {p.txg for p in parts}
                    return True
                freed = step.run(chosen)
        except (_ChangedError, TryAgain, Damaged) as error:
            refused |= {p.txg for p in parts}
            txgs = ", ".join(str(part.txg) for part in parts)
            self.report.skipped.append(f"{dataset.name}: runs of txg {txgs}: {error}")
            return True
        self._count(step, freed, merging=merging)
        discard(self.pool, step.dropped)
        if not merging:  # what it still has beside records, its holes, would not become less
            refused |= {p.txg for p in parts}
        return True

    def _count(self, step: _Step, freed: int, *, merging: bool) -> None:
        self.report.written += step.made.file_bytes
        self.report.freed += freed
        if merging:
            self.report.merged += len(step.group)
        else:
            self.report.trimmed += 1
        if self.progress:
            self.progress(self.report.written)


def _is_raw(dataset: Dataset, parts: tiers.Group) -> bool:
    return bool(dataset.doc["raw"]) and all(Feature(part.doc["features"]) & Feature.RAW for part in parts)


class _Step:
    """One replacement of runs by one run."""

    def __init__(self, pool: Pool, dataset: Dataset, timeline: Timeline, parts: tiers.Group, raw: bool) -> None:
        by_txg = {run.txg: run for run in timeline.runs}
        self.group = [by_txg[part.txg] for part in parts]
        self.made = Made()
        self.dropped: list[str] = []
        self._kills: dict[int, list[int]] = {}
        self._pool = pool
        self._dataset = dataset
        self._timeline = timeline
        self._raw = raw
        self._later = [by_txg[int(doc["txg"])] for doc in parts[-1].later]
        self._before = [run for run in timeline.runs if run.txg < self.group[0].txg]
        self._wasted = parts[0].wasted

    # What to rewrite

    def all_segments(self) -> list[str]:
        orders = {s.big_endian for run in self.group for s in self._timeline.segments(run)}
        return [s for run in self.group for s in run.segments] if len(orders) < 2 else []

    def wasteful(self, wasted: float, most: int) -> list[str]:
        """The segments of a single run of which most is garbage; they may hold `most` live bytes together."""
        run = self.group[0]
        live = self._survey(run)
        shares = {}
        for segment_id, segment in zip(run.segments, self._timeline.segments(run), strict=True):
            start, end = segment.body
            shares[segment_id] = 1 - live.get(segment.number, 0) / max(end - start, 1)
        numbers = {i: s.number for i, s in zip(run.segments, self._timeline.segments(run), strict=True)}
        chosen, cost = [], 0
        for segment_id in sorted(run.segments, key=lambda i: -shares[i]):
            cost += live.get(numbers[segment_id], 0)
            if shares[segment_id] < min(wasted, self._wasted) / 2 or cost > most:
                break
            chosen.append(segment_id)
        return [segment_id for segment_id in run.segments if segment_id in chosen]

    def _survey(self, run: Run) -> dict[int, int]:
        """The bytes of needed records in each segment, by its number."""
        if not self._later:
            return {s.number: int(s.footer["stored"]) for s in self._timeline.segments(run)}
        found: dict[int, int] = {}
        for table, objects in slices_of(self._timeline, [run], self._later):
            kept = shed(self._timeline, table, objects, self._later)
            for rows in kept.records():
                for number in np.unique(rows["segment"]):
                    size = int(rows["size"][rows["segment"] == number].sum(dtype=np.uint64))
                    found[int(number)] = found.get(int(number), 0) + size
        return found

    # Doing it

    def run(self, chosen: list[str]) -> int:
        """Write and commit; returns the bytes of files that are needed no more.

        Raises:
            Damaged: a record or a table is not what was stored, or figures do not add up; nothing was changed.
            _ChangedError, TryAgain: another process is working on the same runs; nothing was changed.
        """
        with self._pool.transaction() as t:
            txg = t.next_txg()
            key = f"{txg:020d}"
            t.put("compact", key, {"txg": txg, "dataset": self._dataset.id})
        try:
            segments = self._write(chosen, txg)
            self._check(chosen)
            self._kills = self._shares()
            with self._pool.transaction() as t:
                self._replace(t, segments)
                t.delete("compact", key)
        except BaseException:
            with suppress(ZkeepError, OSError):
                undo(self._pool, "compact", key, self.made.segments)
            raise
        self.dropped = chosen
        return sum(self._sizes(chosen)) - self.made.file_bytes

    def _sizes(self, chosen: Iterable[str]) -> list[int]:
        wanted = set(chosen)
        return [s.blob.size for run in self.group for i, s in self._named(run) if i in wanted]

    def _named(self, run: Run) -> Iterator[tuple[str, Any]]:
        yield from zip(run.segments, self._timeline.segments(run), strict=True)

    def _write(self, chosen: list[str], txg: int) -> list[str]:
        """Returns the ids of the new run's segments, in key order."""
        if len(chosen) == sum(len(run.segments) for run in self.group):
            self._rewrite(self.group, txg)
            return self.made.segments
        run, wanted = self.group[0], set(chosen)
        kept: list[str] = []
        stretch: list[str] = []
        for segment_id in [*run.segments, ""]:
            if segment_id in wanted:
                stretch.append(segment_id)
                continue
            if stretch:
                done = len(self.made.segments)
                self._rewrite([Run(run.txg, tuple(stretch), run.doc)], txg)
                kept += self.made.segments[done:]
                stretch = []
            kept += [segment_id] if segment_id else []
        return kept

    def _rewrite(self, chosen: list[Run], txg: int) -> None:
        job = Job(self.group, chosen, self._before, self._later, self._raw)
        rewrite(self._pool.store, self._timeline, job, txg, self.made)

    def _check(self, chosen: list[str]) -> None:
        """Compare what was written with the catalog's sums."""
        wanted = set(chosen)
        stored = sum(int(s.footer["stored"]) for run in self.group for i, s in self._named(run) if i in wanted)
        inner = sum(amount[0] for amount in self._inner())
        killed = sum(amount[0] for amount in self.made.kills.values())
        left = stored - inner - killed
        if self.made.bytes != left:
            raise Damaged(f"{self.made.bytes} bytes of records are left where the figures say {left}")

    def _shares(self) -> dict[int, list[int]]:
        """How much of what each later run killed is dropped now, by its txg.

        Which of them killed a row cannot always be seen any more, because what killed it may be trimmed itself; nor
        does it matter, because no snapshot lies between them.
        """
        left = [sum(amount[i] for amount in self.made.kills.values()) for i in (0, 1)]
        txgs, shares = {str(run.txg) for run in self.group}, {}
        for run in self._later:
            mine = [amount for txg, amount in run.doc["dead"].items() if txg in txgs]
            share = [min(left[i], sum(amount[i] for amount in mine)) for i in (0, 1)]
            left = [left[i] - share[i] for i in (0, 1)]
            shares[run.txg] = share
        if any(left):
            raise Damaged(f"{left[0]} bytes of records more were killed than the figures say")
        return shares

    def _inner(self) -> Iterator[list[int]]:
        """What runs of the group killed of one another."""
        txgs = {str(run.txg) for run in self.group}
        for run in self.group:
            yield from (amount for txg, amount in run.doc["dead"].items() if txg in txgs)

    # The transaction

    def _replace(self, t: Transaction, segments: list[str]) -> None:
        for run in (*self.group, *self._later):
            if t.get("run", txg_key(self._dataset.id, run.txg)) != run.doc:
                raise _ChangedError("they were changed meanwhile")
        family = self._family()
        self._rename_in_receives(t, family)
        for dataset_id in family:
            self._rename_in_runs(t, dataset_id)
        for run in self.group:
            t.delete("run", txg_key(self._dataset.id, run.txg))
        t.put("run", txg_key(self._dataset.id, self.group[-1].txg), self._document(segments))

    def _family(self) -> list[int]:
        """The dataset, and all whose past its runs are."""
        tree, found = self._pool.tree(), [self._dataset.id]
        for dataset_id in found:
            found += [c.id for c in tree.clones(self._pool.by_id(dataset_id))]
        return found

    def _document(self, segments: list[str]) -> Doc:
        first, last = self.group[0].doc, self.group[-1].doc
        inner, killed = list(self._inner()), list(self.made.kills.values())
        new = set(self.made.segments)
        old = [(i, s) for run in self.group for i, s in self._named(run) if i in segments and i not in new]
        bytes_, logical = (
            sum(int(run.doc[name]) for run in self.group) - sum(a[i] for a in inner) - sum(a[i] for a in killed)
            for i, name in enumerate(("bytes", "logical"))
        )
        features = 0
        for run in self.group:
            features |= int(run.doc["features"])
        return {
            **last,
            "whole": False,
            "from_txg": first["from_txg"],
            "fromguid": first["fromguid"],
            "features": features,
            "segments": segments,
            "bytes": bytes_,
            "logical": logical,
            "records": self.made.records + sum(int(s.footer["records"]) for _, s in old),
            "file_bytes": self.made.file_bytes + sum(s.blob.size for _, s in old),
            "extra": int(last.get("extra", 0)) if old else 0,
            "dead": self._dead(),
        }

    def _dead(self) -> dict[str, list[int]]:
        """What the group killed of runs before it."""
        txgs = {str(run.txg) for run in self.group}
        found: dict[str, list[int]] = {}
        for run in self.group:
            for txg, (stored, logical) in run.doc["dead"].items():
                if txg not in txgs:
                    amount = found.setdefault(txg, [0, 0])
                    amount[0] += stored
                    amount[1] += logical
        return found

    def _renamed(self, dead: dict[str, list[int]], kills: list[int]) -> dict[str, list[int]] | None:
        """`dead` of a later run, with the group under its new name; None if it says nothing of the group."""
        txgs = {str(run.txg) for run in self.group}
        mine = [amount for txg, amount in dead.items() if txg in txgs]
        if not mine:
            return None
        rest = {txg: amount for txg, amount in dead.items() if txg not in txgs}
        total = [sum(a[i] for a in mine) - kills[i] for i in (0, 1)]
        if any(total):
            rest[str(self.group[-1].txg)] = total
        return rest

    def _rename_in_runs(self, t: Transaction, dataset_id: int) -> None:
        own = {run.txg for run in self.group} if dataset_id == self._dataset.id else set()
        for key, doc in t.scan("run", dataset_key(dataset_id) + "/"):
            if doc["txg"] in own or doc["txg"] < self.group[0].txg:
                continue
            kills = self._kills.get(doc["txg"], [0, 0]) if own else [0, 0]
            dead = self._renamed(doc["dead"], kills)
            if dead is not None:
                t.put("run", key, {**doc, "dead": dead})

    def _rename_in_receives(self, t: Transaction, family: list[int]) -> None:
        """A receive that is interrupted names old runs, too; one that is under way must not be disturbed."""
        for key, doc in t.scan("receive"):
            source = doc.get("source")
            if not source or source[0] not in family:
                continue
            with _idle(self._pool, doc):
                dead = self._renamed(doc["tally"]["dead"], [0, 0])
                if dead is not None:
                    t.put("receive", key, {**doc, "tally": {**doc["tally"], "dead": dead}})


@contextmanager
def _idle(pool: Pool, doc: Doc) -> Iterator[None]:
    """Keep other processes from going on with a receive. TryAgain if it is under way."""
    busy = "a receive that needs them is under way"
    with pool.store.lock(f"receive-{doc['txg']:x}", busy=busy, passing=True):
        yield


# Leftovers


def sweep(pool: Pool) -> int:
    """Remove what interrupted receives and compactions left behind; returns the bytes of the files.

    Files are listed before the documents are read: a process registers its txg before it makes a file, so a file that
    no later document names, and whose registration's lock is free, is an orphan.
    """
    pool.store.sweep()
    files = [name.rpartition("/")[2].removesuffix(".seg") for name in pool.store.names("segments")]
    drafts = pool.store.drafts()
    with pool.catalog.reading():
        named = {s for _, doc in pool.catalog.scan("run") for s in doc["segments"]}
        owners = {int(doc["txg"]): ("receive", key, doc) for key, doc in pool.catalog.scan("receive")}
        owners |= {int(doc["txg"]): ("compact", key, doc) for key, doc in pool.catalog.scan("compact")}
    freed = 0
    with suppress(TryAgain), pool.store.lock(READERS):
        for txg, owner in owners.items():
            with suppress(TryAgain), _abandoned(pool, *owner) as kept:
                freed += _remove(pool, [i for i in files if _txg(i) == txg and i not in named | kept])
                _remove_drafts(pool, [i for i in drafts if _txg(i) == txg])
        freed += _remove(pool, [i for i in files if _txg(i) not in owners and i not in named])
        _remove_drafts(pool, [i for i in drafts if _txg(i) not in owners])
    return freed


def _txg(segment_id: str) -> int:
    try:
        return int(segment_id.partition("-")[0], 16)
    except ValueError:
        return 0


@contextmanager
def _abandoned(pool: Pool, kind: str, key: str, doc: Doc) -> Iterator[set[str]]:
    """Yields the segments that an abandoned registration still needs; deletes it, unless it can be resumed.

    Raises:
        TryAgain: its process is alive.
    """
    # a receive under way holds `readers`, which the caller has to itself
    held = nullcontext() if kind == "receive" else pool.store.lock(f"compact-{doc['dataset']}")
    with held:
        now = pool.catalog.get(kind, key)
        if now is None or now["txg"] != doc["txg"]:
            raise TryAgain("it was finished meanwhile")
        kept = set(now["tally"]["segments"]) if now.get("resumable") else set()
        yield kept
        if not now.get("resumable"):
            with pool.transaction() as t:
                t.delete(kind, key)
                t.delete("reserve", key)


def _remove(pool: Pool, segment_ids: list[str]) -> int:
    freed = 0
    for segment_id in segment_ids:
        name = segment_name(segment_id)
        with suppress(FileNotFoundError):
            freed += pool.store.size(name)
        pool.store.delete(name)
    return freed


def _remove_drafts(pool: Pool, names: list[str]) -> None:
    for name in names:
        pool.store.draft(name).discard()


__all__ = ["STEP", "Report", "compact", "sweep"]
