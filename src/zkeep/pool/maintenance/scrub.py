"""Verifying a pool without a key: every stored byte, every row of the catalog, and that they fit together."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from zkeep.clock import seconds_now
from zkeep.errors import Damaged, TryAgain, ZkeepError
from zkeep.format.nvlist import BadNvlist
from zkeep.pool.datasets.begin import Opening
from zkeep.pool.datasets.history import own_runs
from zkeep.pool.datasets.lifecycle import SCRUB, SCRUB_RUNNING
from zkeep.pool.datasets.model import Dataset, Pool, Snapshot
from zkeep.pool.datasets.orphans import reading
from zkeep.pool.datasets.summaries import faults
from zkeep.pool.maintenance import affected
from zkeep.pool.maintenance.check_segment import Flaw, SegmentReport, check_segment
from zkeep.pool.maintenance.scrub_state import CANCEL, Notes, alone
from zkeep.pool.store.catalog import WAIT, Catalog
from zkeep.pool.store.files import LocalStore
from zkeep.pool.store.port import segment_name
from zkeep.pool.timeline.segment import Segment
from zkeep.pool.timeline.timeline import Run
from zkeep.pool.types import Doc

Progress = Callable[[int, int], object]
"Called with the bytes done, and the total."
PAUSE = 0.5
"Seconds between two checks for a request to stop."
MOST = 1000
"How many damaged records of one segment are reported one by one; the rest is reported as a whole."


@dataclass(frozen=True)
class Finding:
    """Something that is not what was stored. `snapshots`: those it affects, neighbours as `a/b@first%last`."""

    where: str
    byte: int
    what: str
    snapshots: tuple[str, ...] = ()

    def __str__(self) -> str:
        place = f"{self.where}: byte {self.byte}" if self.byte >= 0 else self.where
        return f"{place}: {self.what}; hurts {', '.join(self.snapshots) or 'no snapshot'}"


@dataclass
class ScrubReport:
    errors: list[Finding] = field(default_factory=list)
    damaged: set[int] | None = field(default_factory=set)
    "The ids of the datasets that errors concern; None: they may concern any."
    bytes: int = 0
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return not self.errors


def scrub(pool: Pool, progress: Progress | None = None) -> ScrubReport:
    """Verify a whole pool. The report lists what is damaged.

    Raises:
        TryAgain: the pool is busy, another scrub is running, or this one was cancelled.
    """
    with alone(pool):
        return _scrub(pool, progress)


def _scrub(pool: Pool, progress: Progress | None) -> ScrubReport:
    started = time.monotonic()
    report = ScrubReport()
    notes = Notes(pool)
    notes.begin()
    # 1. The catalog: its rows, the journal, and whether both agree. 2. Segments and what documents say of them.
    for line in [] if pool.catalog.read_only else pool.catalog.verify():
        report.errors.append(Finding(line, -1, "what it says is in doubt"))
        report.damaged = None
    try:
        with reading(pool):
            # Damaged: what a clone began with is not there, or is a clone of itself.
            for dataset in pool.tree().by_id.values():
                for _ in pool.origins(dataset):
                    pass
            _Scrub(pool, report, progress, notes).all()
        report.errors += [Finding(name, -1, f"{what}; it was only a shortcut") for name, what in faults(pool)]
    except TryAgain:
        raise
    except ZkeepError as error:
        report.errors.append(Finding("catalog", -1, str(error)))
        report.damaged = None
    report.seconds = time.monotonic() - started
    _note(pool, report)
    return report


def _note(pool: Pool, report: ScrubReport) -> None:
    """Keep the outcome for `zkeep pool status`."""
    if pool.catalog.read_only:
        return
    errors = [str(error) for error in report.errors]
    doc = {"errors": errors, "bytes": report.bytes, "seconds": report.seconds, "finished": seconds_now()}
    doc["damaged"] = None if report.damaged is None else sorted(report.damaged)
    try:
        with pool.transaction() as t:
            t.put(SCRUB, "", doc)
            for key in (SCRUB_RUNNING, CANCEL):
                if t.get(SCRUB, key):
                    t.delete(SCRUB, key)
    except (ZkeepError, OSError):
        if report.clean:
            raise


@dataclass(frozen=True)
class _Job:
    dataset: Dataset
    run: Run
    segment_id: str


_Look = tuple[int, SegmentReport | None]


class _StoppedError(Exception):
    """Ends a worker whose result is not needed any more."""


class _Scrub:
    def __init__(self, pool: Pool, report: ScrubReport, progress: Progress | None, notes: Notes) -> None:
        self._pool = pool
        self._report = report
        self._progress = progress
        self._notes = notes
        self._lock = threading.Lock()
        self._stopped = False
        self._total = 0

    def all(self) -> None:
        jobs: list[_Job] = []
        with self._pool.catalog.reading():
            for dataset in self._pool.tree().by_id.values():
                runs = own_runs(self._pool, dataset)
                self._begins(dataset, {run.txg for run in runs})
                jobs += [_Job(dataset, run, segment_id) for run in runs for segment_id in run.segments]
                self._total += sum(int(run.doc["file_bytes"]) for run in runs)
                for run in runs:
                    if not run.segments and (run.doc["bytes"] or run.doc["file_bytes"]):
                        where = f"catalog: run of txg {run.txg} of {dataset.name}"
                        self._find(dataset, where, -1, "it has lost its segments")
        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
            # Workers read segments in any order; results are used in the order of runs, so that reports are the same
            # each time.
            looks = [(job, threads.submit(self._look, job)) for job in jobs]
            try:
                results = ((job, self._result(look)) for job, look in looks)
                for _, group in groupby(results, lambda result: (result[0].dataset.id, result[0].run.txg)):
                    self._run(list(group))
            except BaseException:
                self._stopped = True  # a thread stops at its next tick
                threads.shutdown(cancel_futures=True)
                raise

    def _result(self, look: Future[_Look]) -> _Look:
        """The result of a worker; while waiting for it, note the progress."""
        while True:
            self._notes.update(self._report.bytes, self._total)
            if wait([look], timeout=PAUSE).done:
                return look.result()

    def _find(
        self, dataset: Dataset, where: str, byte: int, what: str, snapshots: Iterable[Snapshot] = ()
    ) -> None:
        hurt = list(snapshots)
        self._report.errors.append(Finding(where, byte, what, tuple(affected.names(self._pool, hurt))))
        if self._report.damaged is not None:
            self._report.damaged |= {dataset.id, *(snapshot.dataset.id for snapshot in hurt)}

    # Documents

    def _begins(self, dataset: Dataset, txgs: set[int]) -> None:
        for snapshot in self._pool.snapshots(dataset):
            doc = self._pool.catalog.get("begin", snapshot.key)
            fault = _begin_fault(doc, snapshot)
            if fault:
                self._find(dataset, f"catalog: begin {snapshot.key}", -1, fault, [snapshot])
            if snapshot.txg not in txgs:
                self._find(dataset, f"catalog: run {snapshot.key}", -1, "it is missing", [snapshot])

    # Segments

    def _look(self, job: _Job) -> _Look:
        """Run in a worker: the file's size and the report; None if the file is missing."""
        name = segment_name(job.segment_id)
        try:
            blob = self._pool.store.open(name)
        except FileNotFoundError:
            return 0, None
        counted = 0

        def tick(done: int) -> None:
            nonlocal counted
            counted += done
            self._tick(done)

        with blob:
            found = check_segment(Segment(lambda: blob, name), tick)
            self._tick(max(0, blob.size - counted))  # what lies before and behind the body
            return blob.size, found

    def _tick(self, done: int) -> None:
        if self._stopped:
            raise _StoppedError
        with self._lock:
            self._report.bytes += done
            if self._progress:
                self._progress(self._report.bytes, self._total)

    def _run(self, results: list[tuple[_Job, _Look]]) -> None:
        """Report the flaws of one run's segments, and compare their sums with its document."""
        job = results[0][0]
        sums = {"bytes": 0, "logical": 0, "records": 0, "file_bytes": 0}
        sound = True
        for each, (size, found) in results:
            if found is None:
                what = "the segment is missing"
                hurt = affected.since(self._pool, each.dataset, each.run.txg)
                self._find(each.dataset, segment_name(each.segment_id), 0, what, hurt)
                sound = False
                continue
            sound = sound and not found.flaws
            self._flaws(each, found.flaws)
            amounts = (found.stored, found.logical, found.records, size)
            for name, amount in zip(sums, amounts, strict=True):
                sums[name] += amount
        # Figures can be compared only where every segment could be read.
        if sound:
            for name, amount in sums.items():
                if int(job.run.doc[name]) != amount:
                    what = f"its {name} are {job.run.doc[name]} where its segments have {amount}"
                    self._find(job.dataset, f"catalog: run of txg {job.run.txg} of {job.dataset.name}", -1, what)

    def _flaws(self, job: _Job, flaws: list[Flaw]) -> None:
        if len(flaws) > MOST:
            rest = Flaw(flaws[MOST].at, f"{len(flaws) - MOST} more records are damaged from here on")
            flaws = [*flaws[:MOST], rest]
        run = self._pool, job.dataset, job.run, job.segment_id
        found = [(flaw, affected.affected_snapshots(*run, flaw)) for flaw in flaws]
        for _, same in groupby(found, lambda pair: (pair[0].table, pair[0].what, [s.key for s in pair[1]])):
            # A bad sector hits many records alike: one line for all that hurt the same snapshots.
            alike = list(same)
            (flaw, snapshots), count = alike[0], len(alike)
            what = _described(flaw) + (f", and {count - 1} more up to byte {alike[-1][0].at}" if count > 1 else "")
            self._find(job.dataset, segment_name(job.segment_id), flaw.at, what, snapshots)


def _described(flaw: Flaw) -> str:
    if flaw.rows is None:
        return flaw.what
    row = flaw.rows[0]
    where = f"object {row['object']}"
    if flaw.table == "blocks":
        where += f", offset {row['offset']}"
    return f"{flaw.what} ({where})"


def _begin_fault(doc: Doc | None, snapshot: Snapshot) -> str:
    if doc is None:
        return "it is missing"
    try:
        opening = Opening.from_doc(doc)
        if opening.begin.toguid != snapshot.guid or opening.begin.payloadlen != len(opening.payload):
            return "it is not the snapshot's"
        opening.nvlist  # noqa: B018 (decoded when it is asked for)
    except (ValueError, KeyError, TypeError, BadNvlist, Damaged) as error:
        return f"it is no BEGIN: {error}"
    return ""


def rebuild_catalog(path: Path, patience: float = WAIT) -> list[Finding]:
    """Rebuild the catalog from the pool's other files, and check that the files that it names exist.

    Raises:
        Damaged: neither the journal nor the index is whole; nothing was changed.
        TryAgain: a scrub is running.
    """
    store = LocalStore(path)
    with store.lock(SCRUB, busy=f"cannot rebuild the catalog of {path}: currently scrubbing"):
        Catalog.rebuild(store, patience).close()
    # What is compacted meanwhile is no loss: the files that the documents of this moment name stay.
    with Pool.open(path, wait=patience) as pool, reading(pool), pool.catalog.reading():
        found = []
        for dataset in pool.tree().by_id.values():
            for run in own_runs(pool, dataset):
                for name in map(segment_name, run.segments):
                    if not pool.store.exists(name):
                        hurt = affected.names(pool, affected.since(pool, dataset, run.txg))
                        found.append(Finding(name, 0, "the segment is missing", tuple(hurt)))
        return found


__all__ = ["Damaged", "Finding", "ScrubReport", "rebuild_catalog", "scrub"]
