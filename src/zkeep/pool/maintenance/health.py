"""How a pool and its datasets do: what is late, damaged, unwritable, full or was not verified for long.

Ages count from when a snapshot was received here, as for retention; of a backup's dataset, whose snapshots are made
here, from when one arrived where they are sent. Nothing that lasts is written, so it works on a
disk that is read-only. What a dataset should be is said by its properties `max_age` and `max_scrub_age`, set here or
above it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from zkeep.names import DatasetName, printable
from zkeep.pool.datasets import no_room, sent
from zkeep.pool.datasets.lifecycle import SCRUB
from zkeep.pool.datasets.model import CLOCK, Dataset, Pool
from zkeep.pool.datasets.partial import is_malformed, receives
from zkeep.pool.datasets.pruning import SKEW, clock_fault
from zkeep.pool.datasets.retention import BadRetention, parse_age, span
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance import verified
from zkeep.pool.maintenance.scrub_state import found_damage
from zkeep.pool.store.disk import write_fault

Kind = Literal["late", "damaged", "unwritable", "full", "unverified", "clock"]
FULL = 5
"Percent of a disk, or of a quota, that is free when it counts as full."


@dataclass(frozen=True, slots=True)
class HealthProblem:
    kind: Kind
    text: str
    "What is wrong, for a person; numbers in it may change from one call to the next."


@dataclass(frozen=True, slots=True)
class PartialReceive:
    """An unfinished receive."""

    started: int | None
    "None: an older zkeep began it."
    bytes: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """The last snapshot of a backup that arrived at its destination."""

    to: str
    "The destination, as it is named to `zkeep backup`."
    newest: str | None
    "The snapshot's name; None: none ever arrived."
    at: int | None


@dataclass(frozen=True)
class DatasetHealth:
    name: str
    newest: str | None
    "The newest snapshot's name."
    received_at: int | None
    "When that came to be here: received, or taken."
    is_made_here: bool
    "Whether it was taken here."
    arrival: Arrival | None
    "None: it is not sent anywhere by a backup."
    max_age: int | None
    partial: PartialReceive | None
    quota: int
    "0: none."
    quota_used: int
    verified_at: int | None = None
    "When any snapshot of it was last verified with the key."
    not_authentic: list[str] = field(default_factory=list)
    "Snapshots that were not."
    problems: list[HealthProblem] = field(default_factory=list)


@dataclass(frozen=True)
class PoolHealth:
    name: str
    size: int = 0
    "Bytes of the disk."
    free: int = 0
    scrubbed_at: int | None = None
    scrub_errors: int = 0
    datasets: list[DatasetHealth] = field(default_factory=list)
    problems: list[HealthProblem] = field(default_factory=list)
    "Problems of the pool itself."

    def all_problems(self) -> Iterator[HealthProblem]:
        yield from self.problems
        for dataset in self.datasets:
            yield from dataset.problems


def status(pools: Iterable[PoolHealth]) -> int:
    """The exit status: 0 fine, 1 something is late, full, unwritable or unverified, 3 damaged."""
    kinds = {problem.kind for pool in pools for problem in pool.all_problems()}
    return 3 if "damaged" in kinds else 1 if kinds else 0


def examine(pool: Pool, now: int, names: Iterable[DatasetName] = ()) -> PoolHealth:
    """Look at a pool; of its datasets, at those named and what lies below them, or at all."""
    view = View(pool)
    # One look at each kind of document, then one dataset after the other.
    chosen = {d.id: d for name in names for d in pool.tree().within(pool.dataset(name))} or view.tree.by_id
    ordered = sorted(chosen.values(), key=lambda dataset: dataset.name.text)
    partials = {key: doc for key, doc in receives(pool.catalog) if key.isdecimal()}
    disk = os.statvfs(pool.path)
    scrub = pool.catalog.get(SCRUB, "") or {}
    found = PoolHealth(
        name=pool.name,
        size=disk.f_blocks * disk.f_frsize,
        free=disk.f_bavail * disk.f_frsize,
        scrubbed_at=_time(scrub.get("finished")),
        scrub_errors=len(scrub.get("errors", [])),
        datasets=[_dataset(view, dataset, now, partials.get(dataset.key)) for dataset in ordered],
    )
    found.problems.extend(_pool_problems(view, found, now))
    return found


def _time(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _age_limit(view: View, dataset: Dataset, name: str) -> int | None:
    try:
        return parse_age(view.policy(dataset, name))
    except BadRetention:
        return None


def _dataset(view: View, dataset: Dataset, now: int, receive: dict[str, object] | None) -> DatasetHealth:
    newest = view.pool.newest_snapshot(dataset)
    quota = int(view.policy(dataset, "quota"))
    verified_at, not_authentic = verified.last(view.pool, dataset)
    tally = (receive or {}).get("tally")
    tally = tally if isinstance(tally, dict) else None
    found = DatasetHealth(
        name=dataset.name.text,
        newest=newest.doc["name"] if newest else None,
        received_at=newest.received_at if newest else None,
        is_made_here=newest is not None and newest.is_made_here,
        arrival=_arrival(view.pool, dataset),
        max_age=_age_limit(view, dataset, "max_age"),
        partial=PartialReceive(_time(receive.get("started")), int(tally["bytes"])) if receive and tally else None,
        quota=quota,
        quota_used=view.charged(dataset) + view.reserved(dataset) if quota else 0,
        verified_at=verified_at,
        not_authentic=not_authentic,
    )
    found.problems.extend(_dataset_problems(view, dataset, found, now))
    return found


def _arrival(pool: Pool, dataset: Dataset) -> Arrival | None:
    to = sent.destination(dataset)
    last = sent.last_arrived(pool, dataset, to) if to is not None else None
    return Arrival(to, last.name if last else None, last.noted_at if last else None) if to is not None else None


def _dataset_problems(view: View, dataset: Dataset, found: DatasetHealth, now: int) -> Iterator[HealthProblem]:
    if found.max_age is not None and (why := _late(view, dataset, found, now)):
        yield HealthProblem("late", why)
    if found_damage(view.pool, dataset):
        yield HealthProblem("damaged", "the last scrub found damage in it")
    if is_malformed(view.pool.catalog, dataset):
        way = f"give it up with 'zkeep receive -A {dataset.name}'"
        yield HealthProblem("damaged", f"its partial receive is not what was stored: {way}")
    if found.not_authentic:
        yield HealthProblem("damaged", f"verify of @{found.not_authentic[0]} failed: damaged, or not authentic")
    if found.quota and (found.quota - found.quota_used) * 100 < found.quota * FULL:
        yield HealthProblem("full", f"{found.quota_used * 100 // found.quota} % of its quota is used")
    for name, at in no_room.lacking(view.pool, dataset, now):
        what = "the last snapshot" if name == dataset.name else f"a snapshot of {name}"
        yield HealthProblem("full", f"there was no room for {what}, {span(max(now - at, 0))} ago")


def _late(view: View, dataset: Dataset, found: DatasetHealth, now: int) -> str:
    """Why it is late; empty if it is not. A dataset that was just made has as long as any other."""
    limit = found.max_age or 0
    if found.arrival is not None:
        return _late_elsewhere(view, dataset, found.arrival, limit, now)
    if found.newest is None:
        # A place to receive below has no snapshots of its own; its children are judged by themselves.
        if len(view.tree.within(dataset, 1)) > 1 or -SKEW <= now - int(dataset.doc["creation"]) <= limit:
            return ""
        return "nothing was ever received"
    if found.received_at is None:
        return "the time of its newest snapshot is unknown"
    age = now - found.received_at
    # Of a clock that was ahead: taken for young, it would be fine for as long as that was.
    if age < -SKEW and not _clock_fault(view.pool, now):
        return f"the newest snapshot was received {span(-age)} from now, by a clock that was wrong"
    return f"the newest snapshot is {span(age)} old, and may be {span(limit)}" if age > limit else ""


def _late_elsewhere(view: View, dataset: Dataset, last: Arrival, limit: int, now: int) -> str:
    """Why what is sent from here is late at its destination: a snapshot that never left is no backup."""
    to = printable(last.to)
    age = now - (last.at if last.at is not None else int(dataset.doc["creation"]))
    if -SKEW <= age <= limit or (age < 0 and _clock_fault(view.pool, now)):
        return ""
    if last.at is None:
        return f"no snapshot ever arrived at {to}"
    if age < 0:
        return f"the last snapshot arrived at {to} {span(-age)} from now, by a clock that was wrong"
    return f"the last snapshot arrived at {to} {span(age)} ago, and {span(limit)} are allowed"


def _pool_problems(view: View, found: PoolHealth, now: int) -> Iterator[HealthProblem]:
    pool = view.pool
    if found.scrub_errors:
        errors = f"{found.scrub_errors} error" + "s" * (found.scrub_errors != 1)
        yield HealthProblem("damaged", f"the last scrub found {errors}")
    if why := write_fault(pool.path):
        yield HealthProblem("unwritable", f"nothing can be written to its disk: {why}; the system's log says more")
    if found.free * 100 < found.size * FULL:
        yield HealthProblem("full", f"{found.free * 100 // max(found.size, 1)} % of the disk is free")
    limit = _age_limit(view, pool.dataset(DatasetName(pool.name)), "max_scrub_age")
    since = found.scrubbed_at if found.scrubbed_at is not None else int(pool.doc.get("created", 0))
    fault = _clock_fault(pool, now)
    if limit is not None and now - since < -SKEW and not fault:
        which = "made" if found.scrubbed_at is None else "scrubbed"
        yield HealthProblem("unverified", f"it was {which} {span(since - now)} from now, by a clock that was wrong")
    elif limit is not None and now - since > limit:
        what = "it was never scrubbed" if found.scrubbed_at is None else f"the last scrub was {span(now - since)} ago"
        yield HealthProblem("unverified", what)
    if fault:
        yield HealthProblem("clock", f"the clock is in doubt: {fault}")


def _clock_fault(pool: Pool, now: int) -> str | None:
    """Why the clock is in doubt now; then that is the problem, and not what is ahead of it."""
    return clock_fault(now, (pool.catalog.get(CLOCK, "") or {}).get("seen"))
