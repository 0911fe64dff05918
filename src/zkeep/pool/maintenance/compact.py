"""Compaction returns space: runs that no snapshot or bookmark separates are merged, records that nothing needs dropped.
So are payloads of a metadata-only dataset that were confirmed to be stored elsewhere (datasets/contents.py).

Destroying a snapshot deletes documents. Compaction makes the disk follow in steps, each of which is whole or did not
happen: new segments are written under a txg that a document (kind `compact`) registers before the first byte; one
transaction puts the new run in the place of the old ones and takes the registration away; then the old files go, when
no one reads. What a crash leaves behind, sweep() finds: files that no run names, of registrations whose lock is free.

Beside such payloads, nothing that anyone can ask a remaining snapshot changes: neither a byte of a stream from any
remaining snapshot or bookmark, nor a figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field

from zkeep.errors import Damaged, TryAgain
from zkeep.names import MAX_UINT64
from zkeep.pool.datasets import contents, destroy, summaries
from zkeep.pool.datasets.history import history_of, past_of
from zkeep.pool.datasets.model import Dataset, Pool, Snapshot
from zkeep.pool.datasets.orphans import READERS, discard, reading
from zkeep.pool.datasets.partial import receives
from zkeep.pool.datasets.room import free_bytes
from zkeep.pool.maintenance.step import ChangedError, CompactionStep, is_raw
from zkeep.pool.store.disk import FULL
from zkeep.pool.store.port import segment_name
from zkeep.pool.timeline import tiers
from zkeep.pool.timeline.timeline import Run, Timeline
from zkeep.pool.types import Doc

Progress = Callable[[int], object]

_MERGING, _TRIMMING, _DROPPING = "merging", "trimming", "dropping"
STEP = 256 << 20
"A budget for compaction that runs while a user waits."


@dataclass
class CompactReport:
    """What a compaction did. `skipped`: one line for each step that failed."""

    merged: int = 0
    trimmed: int = 0
    written: int = 0
    freed: int = 0
    dropped: int = 0
    "Bytes of payloads that are stored elsewhere and are not here any more."
    skipped: list[str] = field(default_factory=list)
    lacking: int = 0
    "Bytes that the disk must have free for what was left undone because it is full; 0: nothing was."


def compact(
    pool: Pool, dataset: Dataset | None = None, *, budget: int | None = None, progress: Progress | None = None
) -> CompactReport:
    """Return the space of what was destroyed.

    Of one dataset: only what pays for itself. Of the whole pool: until its files take at most a tenth more than what
    they hold, leftovers of crashes included. `budget`: bytes to write at most. `progress` is called with the bytes
    written so far. Busy datasets are skipped.
    """
    work = _Compaction(pool, CompactReport(), budget, progress)
    if dataset is not None:
        work.dataset(dataset)
        return work.report
    # What dead processes left goes first. Then every dataset, and with less garbage in a run as reason enough, as long
    # as the pool as a whole has too much of it.
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


def drop_contents(pool: Pool, snapshot: Snapshot, *, progress: Progress | None = None) -> CompactReport:
    """Drop the contents of a snapshot and of all before it: they are stored elsewhere.

    Call it when a receiver has listed the snapshot's guid; a stream that was written proves nothing. Interrupted, or
    while a receive builds on the dataset, what is left to be dropped waits for the next compaction.

    Raises:
        Refused: the snapshot is a part of one that is being made, or not encrypted.
    """
    with pool.transaction() as t:
        contents.confirm(pool, t, snapshot)
    return compact(pool, pool.by_id(snapshot.dataset.id), progress=progress)


def _figures(pool: Pool) -> tiers.Figures:
    disk = live = 0
    for dataset in pool.tree().by_id.values():
        for group in _groups(pool, dataset):
            disk += sum(int(part.doc["file_bytes"]) for part in group)
            live += sum(part.live for part in group)
    return tiers.Figures(disk, live)


def _groups(pool: Pool, dataset: Dataset) -> list[tiers.Group]:
    runs = [run.doc for run in pool.runs.of(dataset.key).runs]
    origins = [c.origin[1] for c in pool.tree().clones(dataset) if c.origin]
    needed = [*origins, *pool.snapshot_txgs(dataset)]
    return list(tiers.groups(runs, pool.pins(dataset), needed))


@dataclass
class _Compaction:
    pool: Pool
    report: CompactReport
    budget: int | None
    progress: Progress | None
    _too_large: int = 0

    @property
    def left(self) -> int:
        """What may still be copied; what is dropped had to be read, too."""
        return MAX_UINT64 if self.budget is None else self.budget - self.report.written - self.report.dropped

    @property
    def room(self) -> int:
        """What a step may write: on a full disk the small ones go first, and what they free makes room for others."""
        return min(self.left, free_bytes(self.pool))

    def dataset(self, dataset: Dataset, wasted: float = tiers.WASTED) -> None:
        """Do everything that is worthwhile, step by step, until the budget is used up."""
        with suppress(TryAgain), self.pool.store.lock(f"compact-{dataset.id}"):
            self._forget(dataset)
            refused: set[int] = set()
            while True:
                self._too_large = 0
                if not self._step(dataset, wasted, refused):
                    break
            # Only what the last round found too large is left undone.
            self.report.lacking = max(self.report.lacking, self._too_large)

    def _fits(self, cost: int) -> bool:
        """Whether so many bytes may be written now; what only the disk has no room for is noted."""
        if self.room < cost <= self.left:
            self._too_large = max(self._too_large, cost)
        return cost <= self.room

    def _forget(self, dataset: Dataset) -> None:
        """Drop the runs of a dataset that has nothing left that needs them."""
        if past_of(self.pool, dataset) or not self.pool.runs.count(dataset.key):
            return
        size = sum(int(run.doc["file_bytes"]) for run in self.pool.runs.of(dataset.key).runs)
        with self.pool.transaction() as t:
            segments = destroy.drop_unneeded(self.pool, t, dataset)
        self.report.freed += size if segments else 0
        discard(self.pool, segments)

    def _step(self, dataset: Dataset, wasted: float, refused: set[int]) -> bool:
        """Do the first thing that can be done. `refused`: txgs of runs that could not be touched."""
        with self.pool.catalog.reading():
            groups = _groups(self.pool, dataset)
            history = history_of(self.pool, dataset).runs
            droppable = contents.droppable(self.pool, dataset) - refused
        # Contents that are stored elsewhere go first: they need not be copied then.
        single = [part for group in groups for part in group]
        for part in single:
            if part.txg in droppable and int(part.doc["bytes"]) <= self.left:
                return self._try(dataset, history, [part], refused, wasted, _DROPPING)
        # Then runs between which no snapshot is left become one.
        for group in groups:
            for parts in tiers.merges(group, self.left):
                if not refused & {p.txg for p in parts} and self._fits(sum(part.live for part in parts)):
                    return self._try(dataset, history, parts, refused, wasted, _MERGING)
        # Last, single runs of which much is garbage.
        for part in tiers.trims(single, wasted):
            if part.txg not in refused and self.left > 0:
                return self._try(dataset, history, [part], refused, wasted, _TRIMMING)
        return False

    def _try(
        self,
        dataset: Dataset,
        history: list[Run],
        parts: tiers.Group,
        refused: set[int],
        wasted: float,
        kind: str,
    ) -> bool:
        """Do one step; returns whether there may be more to do. A step that fails is noted and skipped."""
        try:
            with reading(self.pool), Timeline(self.pool.store, history) as timeline:
                raw = is_raw(dataset, parts)
                # Readers keep what they read: the old files go when nobody reads.
                step = CompactionStep(self.pool, dataset, timeline, parts, raw, drops=kind == _DROPPING)
                chosen = step.wasteful(wasted, self.room) if kind == _TRIMMING else step.all_segments()
                if not chosen:
                    refused |= {p.txg for p in parts}
                    if kind == _TRIMMING and self.room < min(parts[0].live, self.left):
                        self.report.lacking = max(self.report.lacking, parts[0].live)
                    return True
                freed = step.run(chosen)
        except (ChangedError, TryAgain, Damaged) as error:
            refused |= {p.txg for p in parts}
            txgs = ", ".join(str(part.txg) for part in parts)
            self.report.skipped.append(f"{dataset.name}: runs of txg {txgs}: {error}")
            return True
        except OSError as error:
            if error.errno not in FULL:
                raise
            # Others filled the disk meanwhile, or a quota of its file system is used up.
            refused |= {p.txg for p in parts}
            self.report.lacking = max(self.report.lacking, sum(part.live for part in parts), 1)
            return True
        self._count(step, freed, kind)
        discard(self.pool, step.dropped)
        if kind == _TRIMMING:  # what it still has beside records, its holes, would not become less
            refused |= {p.txg for p in parts}
        return True

    def _count(self, step: CompactionStep, freed: int, kind: str) -> None:
        self.report.written += step.made.file_bytes
        self.report.freed += freed
        if kind == _MERGING:
            self.report.merged += len(step.group)
        elif kind == _TRIMMING:
            self.report.trimmed += 1
        else:
            self.report.dropped += step.made.dropped[0]
        if self.progress:
            self.progress(self.report.written)


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
        owners = {int(doc["txg"]): ("receive", key, doc) for key, doc in receives(pool.catalog)}
        lost = set(pool.catalog.keys("receive")) - {key for _, key, _ in owners.values()}
        owners |= {int(doc["txg"]): ("compact", key, doc) for key, doc in pool.catalog.scan("compact")}
    freed = 0
    # A txg has an owner if a document registers it: then its lock says whether the process lives. Files of no owner
    # that
    # no run names are orphans.
    with suppress(TryAgain), pool.store.lock(READERS):
        for txg, owner in owners.items():
            with suppress(TryAgain), _abandoned(pool, *owner) as kept:
                freed += _remove(pool, [i for i in files if _txg(i) == txg and i not in named | kept])
                _remove_drafts(pool, [i for i in drafts if _txg(i) == txg])
        freed += _remove(pool, [i for i in files if _txg(i) not in owners and i not in named])
        _remove_drafts(pool, [i for i in drafts if _txg(i) not in owners])
        # No receive is under way, as none reads: so a malformed document is of one that ended. Where a dataset has it,
        # it is left for those who look what became of that.
        _forget(pool, [key for key in lost if not key.isdecimal()])
    return freed


def _forget(pool: Pool, receives: list[str]) -> None:
    if receives:
        with pool.transaction() as t:
            for key in receives:
                t.delete("receive", key)
                t.delete("reserve", key)


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
    # A receive under way holds `readers`, which the caller has to itself.
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


__all__ = ["STEP", "CompactReport", "compact", "drop_contents", "sweep"]
