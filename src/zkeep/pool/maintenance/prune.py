"""Pruning: what the property `retention` decides about the snapshots of a dataset, and destroying those that go.

The decision is a pure function (`datasets/pruning.py`). Here it gets what it needs from the pool: receive times, and
what pins a snapshot (holds, clones, receives, bookmarks). Destroying goes through `datasets/destroy.py`, a bounded
number of snapshots in each transaction, so that a process that is killed leaves a clean pool, and less to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from zkeep.errors import Damaged, Refused, ZkeepError
from zkeep.names import DatasetName
from zkeep.pool.datasets import destroy
from zkeep.pool.datasets.contents import STEP as PART
from zkeep.pool.datasets.model import CLOCK, Dataset, NotThere, Pool, Snapshot
from zkeep.pool.datasets.partial import receives
from zkeep.pool.datasets.pruning import NOTE_EVERY, Candidate, Offset, Reasons, clock_fault, decide
from zkeep.pool.datasets.retention import BadRetention, Policy, parse, parse_age
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance.scrub_state import found_damage

STEP = 500
"Snapshots that go in one transaction."


class ClockInDoubt(Refused):
    """The server's clock cannot be right, so nothing is pruned."""


@dataclass(frozen=True, slots=True)
class Clock:
    """The time and the time zone, on which decisions depend; the command line asks for them."""

    now: int
    offset: Offset


@dataclass(frozen=True, slots=True)
class Verdict:
    snapshot: Snapshot
    reasons: Reasons
    "Why it stays; empty: it goes."


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to become of a dataset's snapshots, oldest first."""

    dataset: Dataset
    policy: Policy
    verdicts: list[Verdict]
    clock: Clock

    @property
    def gone(self) -> list[Snapshot]:
        return [verdict.snapshot for verdict in self.verdicts if not verdict.reasons]


def policy_of(view: View, dataset: Dataset) -> Policy | None:
    """The policy that is set here, on the dataset or above it. Raises Refused: what is set is none."""
    try:
        return parse(view.policy(dataset, "retention"))
    except BadRetention as error:
        raise Refused(f"cannot prune {dataset.name}: its retention is none: {error}") from None


def consider(view: View, dataset: Dataset, policy: Policy, clock: Clock) -> Decision:
    """Decide about every snapshot of a dataset; changes nothing.

    Raises:
        Damaged: the last scrub found damage in it: nothing is pruned while it may be needed for healing.
    """
    pool = view.pool
    if found_damage(pool, dataset):
        way = f"heal or destroy what is damaged ('zkeep pool status -v {pool.name}' names it), then scrub again"
        raise Damaged(f"cannot prune {dataset.name}: the last scrub found damage in it; {way}")
    snapshots = view.snapshots[dataset.id]
    # The snapshots (dataset's id, txg) that receives build on, partial ones and those under way.
    sources = [doc["source"] for _, doc in receives(pool.catalog)]
    needed = {(int(source[0]), int(source[1])) for source in sources if source}
    candidates = [Candidate(s.received_at, _pins(view, s, needed), not s.doc.get(PART)) for s in snapshots]
    try:
        least_age = parse_age(view.policy(dataset, "retention_min"))
    except BadRetention as error:
        raise Refused(f"cannot prune {dataset.name}: its retention_min is none: {error}") from None
    reasons = decide(candidates, clock.now, policy, least_age, clock.offset)
    # Where its source is only a bookmark in this pool, the next increment from that needs this snapshot.
    verdicts = []
    for s, why in zip(snapshots, reasons, strict=True):
        marked = not why and pool.catalog.lookup("bookmark", "guid", str(s.guid), "")
        verdicts.append(Verdict(s, ("bookmark",) if marked else why))
    return Decision(dataset, policy, verdicts, clock)


def _pins(view: View, snapshot: Snapshot, needed: set[tuple[int, int]]) -> Reasons:
    pins = {
        "held": bool(snapshot.holds),
        "origin of a clone": bool(view.tree.clones(snapshot.dataset, snapshot.txg)),
        "base of a receive": (snapshot.dataset.id, snapshot.txg) in needed,
        "step of a snapshot": bool(snapshot.doc.get(PART)),
    }
    return tuple(name for name, holds in pins.items() if holds)


# The clock


def check_clock(pool: Pool, clock: Clock) -> None:
    """Refuse to prune by a clock that jumped; note the time, in a pool that can be written to.

    Raises:
        ClockInDoubt: the clock is behind, or far ahead of, the last time that the pool knows.
    """
    doc = pool.catalog.get(CLOCK, "")
    known = int(doc["seen"]) if doc and "seen" in doc else None
    if known is None:
        # In a pool that was never pruned, the time when anything was received last.
        newest = [pool.newest_snapshot(dataset) for dataset in pool.tree().by_id.values()]
        known = max((s.received_at for s in newest if s and s.received_at), default=None)
    if fault := clock_fault(clock.now, known):
        way = f"if it is right, 'zkeep prune --trust-clock {pool.name}'"
        raise ClockInDoubt(f"cannot prune {pool.name}: the clock is in doubt: {fault}; {way}")


def note_time(pool: Pool, clock: Clock) -> None:
    """Let the pool know the time, for the next check; a pool that is busy or full does without."""
    doc = pool.catalog.get(CLOCK, "") or {}
    if abs(clock.now - int(doc.get("seen", 0))) >= NOTE_EVERY and not pool.catalog.read_only:
        with suppress(ZkeepError, OSError), pool.transaction() as t:
            t.put(CLOCK, "", {"seen": clock.now})


# Doing it


def datasets(pool: Pool, name: DatasetName, recursive: bool) -> list[Dataset]:
    """The dataset, and what lies below it; of a pool's name always all."""
    found = pool.find(name)
    if found is None:
        raise NotThere(f"cannot open {name}: dataset does not exist")
    return pool.tree().within(found) if recursive or name.parent is None else [found]


def execute(pool: Pool, decision: Decision) -> Iterator[Snapshot]:
    """Destroy what goes, a step in each transaction; yields what is destroyed.

    Within each transaction all is decided again, by what is there then: others may have taken holds, bookmarks or
    clones, set another retention, or found damage. Only what was to go and is to go still goes.

    Raises:
        Refused: something is to stay now; the others are gone.
        Damaged: a scrub found damage meanwhile.
    """
    gone, stays = decision.gone, dict[str, str]()
    for start in range(0, len(gone), STEP):
        plan = destroy.DestroyPlan(snapshots=gone[start : start + STEP])

        def decide_again(plan: destroy.DestroyPlan = plan) -> None:
            going = {snapshot.key for snapshot in _decide_again(pool, decision)}
            stays.update({s.key: str(s.name) for s in plan.snapshots if s.key not in going})
            plan.snapshots = [s for s in plan.snapshots if s.key in going]

        destroy.execute(pool, plan, decide_again=decide_again)
        yield from plan.snapshots
    if stays:
        names = list(stays.values())
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        what = "what keeps them changed meanwhile"
        raise Refused(f"cannot prune {', '.join(names[:3])}{more}: {what}; 'zkeep prune -v' says what keeps them")


def _decide_again(pool: Pool, decision: Decision) -> list[Snapshot]:
    """What is to go by what is there now; nothing where the dataset is gone or has no policy any more."""
    view = View(pool)
    dataset = view.tree.get(decision.dataset.id)
    policy = policy_of(view, dataset) if dataset is not None else None
    if dataset is None or policy is None:
        return []
    return consider(view, dataset, policy, decision.clock).gone
