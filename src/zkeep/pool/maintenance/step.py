"""One step of a compaction: runs are replaced by one run, in one transaction.

It merges neighbours, trims what later runs killed, or drops the payloads of contents that are stored elsewhere. New
segments are written under a txg of their own, which a document registers; what a step that failed leaves behind is an
orphan. It is refused if anything that it was made from has changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from zkeep.errors import Damaged, TryAgain, ZkeepError
from zkeep.format.records import Feature
from zkeep.pool.datasets import contents
from zkeep.pool.datasets.model import Dataset, Pool, dataset_key, txg_key
from zkeep.pool.datasets.orphans import undo
from zkeep.pool.datasets.partial import receives
from zkeep.pool.store.catalog import Transaction
from zkeep.pool.timeline.copying import Made
from zkeep.pool.timeline.rewrite import Drops, RewriteJob, rewrite, shed, slices_of
from zkeep.pool.timeline.tiers import Group
from zkeep.pool.timeline.timeline import Run, Timeline
from zkeep.pool.types import Doc


class ChangedError(Exception):
    """Another process changed the runs of a step; nothing was done."""


def is_raw(dataset: Dataset, parts: Group) -> bool:
    return bool(dataset.doc["raw"]) and all(Feature(part.doc["features"]) & Feature.RAW for part in parts)


class CompactionStep:
    """One replacement of runs by one run."""

    def __init__(
        self, pool: Pool, dataset: Dataset, timeline: Timeline, parts: Group, raw: bool, *, drops: bool = False
    ) -> None:
        """`drops`: the payloads of file contents go, as far as contents.droppable() allows."""
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
        self._after = [run for run in timeline.runs if run.txg > self.group[-1].txg] if drops else []
        self._drops = Drops(self._after) if drops else None
        self._before = [run for run in timeline.runs if run.txg < self.group[0].txg]
        self._wasted = parts[0].wasted

    # What to rewrite

    def all_segments(self) -> list[str]:
        orders = {s.big_endian for run in self.group for s in self._timeline.segments(run)}
        return [s for run in self.group for s in run.segments] if len(orders) < 2 else []

    def wasteful(self, wasted: float, most: int) -> list[str]:
        """The segments of a single run of which most is garbage; they may hold `most` live bytes together."""
        # The share of each segment that is garbage; then the worst ones, while they are worth their cost.
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
            # Merge with the later runs, slice by slice, and add up what is left in each segment.
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
            ChangedError, TryAgain: another process is working on the same runs; nothing was changed.
        """
        # 1. Register, so that what is written here is known for whose it is if this process dies.
        with self._pool.transaction() as t:
            txg = t.next_txg()
            key = f"{txg:020d}"
            t.put("compact", key, {"txg": txg, "dataset": self._dataset.id})
        try:
            # 2. Write the new segments. Their figures must be those that the catalog's add up to.
            segments = self._write(chosen, txg)
            self._check(chosen)
            self._kills = self._shares()
            # 3. Replace the runs, if nothing has changed them meanwhile; later runs name them in their figures.
            with self._pool.transaction() as t:
                self._replace(t, segments)
                t.delete("compact", key)
        except BaseException:
            with suppress(ZkeepError, OSError):
                undo(self._pool, "compact", key, self.made.segments)
            raise
        self.dropped = chosen
        wanted = set(chosen)
        before = sum(int(s.blob.size) for run in self.group for i, s in self._named(run) if i in wanted)
        return before - self.made.file_bytes

    def _named(self, run: Run) -> Iterator[tuple[str, Any]]:
        yield from zip(run.segments, self._timeline.segments(run), strict=True)

    def _write(self, chosen: list[str], txg: int) -> list[str]:
        """Returns the ids of the new run's segments, in key order."""
        if len(chosen) == sum(len(run.segments) for run in self.group):
            self._rewrite(self.group, txg)
            return self.made.segments
        # Of a single run, neighbouring segments are written together; the others stay between them, in key order.
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
        job = RewriteJob(self.group, chosen, self._before, self._later, self._raw, self._drops)
        rewrite(self._pool.store, self._timeline, job, txg, self.made)

    def _check(self, chosen: list[str]) -> None:
        """Compare what was written with the catalog's sums."""
        wanted = set(chosen)
        stored = sum(int(s.footer["stored"]) for run in self.group for i, s in self._named(run) if i in wanted)
        inner = sum(amount[0] for amount in self._inner())
        killed = sum(amount[0] for amount in self.made.kills.values())
        # stored in the segments - killed within the group - killed by later runs - payloads dropped = what must be
        # left
        left = stored - inner - killed - self.made.dropped[0]
        if self.made.bytes != left:
            raise Damaged(f"{self.made.bytes} bytes of records are left where the figures say {left}")
        for run in self._after:
            lost, most = self.made.lost.get(run.txg, [0, 0]), run.doc["dead"].get(str(self.group[-1].txg), [0, 0])
            if lost[0] > most[0] or lost[1] > most[1]:
                raise Damaged(f"the run of txg {run.txg} killed more of it than the figures say")

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
        # Nothing may have changed since the step was planned: compare document by document.
        for run in (*self.group, *self._later):
            if t.get("run", txg_key(self._dataset.id, run.txg)) != run.doc:
                raise ChangedError("they were changed meanwhile")
        family = self._family()
        if self._drops is not None:
            self._check_drop(t, family)
        self._rename_in_receives(t, family)
        for dataset_id in family:
            self._rename_in_runs(t, dataset_id)
        for run in self.group:
            t.delete("run", txg_key(self._dataset.id, run.txg))
        t.put("run", txg_key(self._dataset.id, self.group[-1].txg), self._document(segments))

    def _check_drop(self, t: Transaction, family: list[int]) -> None:
        """Payloads may go only if all who count them are here: the runs behind, and no receive that builds on them."""
        if any(run.txg not in contents.droppable(self._pool, self._dataset) for run in self.group):
            raise ChangedError("their contents are needed now")
        behind = {key: doc for key, doc in t.scan("run", dataset_key(self._dataset.id) + "/")}
        known = {txg_key(self._dataset.id, run.txg): run.doc for run in (*self.group, *self._after)}
        first = txg_key(self._dataset.id, self.group[0].txg)
        if {key: doc for key, doc in behind.items() if key >= first} != known:
            raise ChangedError("others came meanwhile")
        for _, doc in receives(t):
            if (source := doc.get("source")) and source[0] in family:
                raise TryAgain("a receive that builds on them is not complete; end or abort it first")

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
        # The figures of the new run follow from those of the old ones, and are compared with what was written
        # (_check).
        bytes_, logical = (
            sum(int(run.doc[name]) for run in self.group)
            - sum(a[i] for a in inner)
            - sum(a[i] for a in killed)
            - self.made.dropped[i]
            for i, name in enumerate(("bytes", "logical"))
        )
        features = 0
        for run in self.group:
            features |= int(run.doc["features"])
        is_bare = self._drops is not None or all(contents.are_dropped(run.doc) for run in self.group)
        return {
            **{name: value for name, value in last.items() if name not in contents.FIELDS},
            **contents.fields(self.made.bare + sum(s.bare for _, s in old), complete=is_bare),
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
        # later run: dead {"3": 10, "4": 20, "7": 5}, runs 3 and 4 become one with the txg 4: dead {"4": 30 - kills,
        # "7": 5}
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
            kills = [0, 0]
            if own:
                both = self._kills.get(doc["txg"], [0, 0]), self.made.lost.get(doc["txg"], [0, 0])
                kills = [one + other for one, other in zip(*both, strict=True)]
            dead = self._renamed(doc["dead"], kills)
            if dead is not None:
                t.put("run", key, {**doc, "dead": dead})

    def _rename_in_receives(self, t: Transaction, family: list[int]) -> None:
        """A receive that is interrupted names old runs, too; one that is under way must not be disturbed."""
        for key, doc in receives(t):
            source = doc.get("source")
            if not source or source[0] not in family:
                continue
            # TryAgain if it is under way; while the lock is held, nobody goes on with it.
            busy = "a receive that needs them is under way"
            with self._pool.store.lock(f"receive-{doc['txg']:x}", busy=busy, passing=True):
                dead = self._renamed(doc["tally"]["dead"], [0, 0])
                if dead is not None:
                    t.put("receive", key, {**doc, "tally": {**doc["tally"], "dead": dead}})
