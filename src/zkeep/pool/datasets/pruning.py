"""Which snapshots of a dataset a retention policy keeps, and by which rule: a pure function.

Ages count from the time at which the pool received a snapshot, never from a time in a stream.

**The first snapshot of a period represents it.** So nothing that arrives later can take the place of what is kept:
a thief with a client's key who sends ten thousand snapshots in an hour adds one to the hourly ones. **Periods count
only if something was received in them**, so the mere passing of time prunes nothing, nor does a clock that runs ahead.

**Clocks can be wrong.** A pool knows the last time that it saw, and notes none for a snapshot while the clock is behind
that or years ahead. Snapshots are received in the order of their txgs, so times that are not in this order, or in the
future, are in doubt, too. A snapshot without a time that can be relied on stays, and uses up no period.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise

from zkeep.pool.datasets.retention import KeepRule, Period, Policy, span

SKEW = 3600
"Seconds that a clock may be set back without a doubt about the times around."
EARLIEST = 1_000_000_000
"A time before this is that of a clock that was never set."
GAP = 400 * 86400
"Seconds by which the clock may be ahead of the last time that the pool knows."
NOTE_EVERY = 3600
"Seconds between two notes of the time in a pool."
Offset = Callable[[int], int]
"Seconds east of UTC that local time is at a time, in seconds since 1970."
Reasons = tuple[str, ...]
_EPOCH = date(1970, 1, 1).toordinal()
_DAY = 86400
_Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A snapshot as far as retention is concerned."""

    received_at: int | None
    "None: the pool noted none, because an older zkeep received it."
    pinned: Reasons = ()
    "Why it stays, whatever the rules say."
    counts: bool = True
    "Whether it can represent a period."


def decide(
    candidates: Sequence[Candidate], now: int, policy: Policy, least_age: int | None, offset: Offset
) -> list[Reasons]:
    """Why each snapshot stays; an empty tuple for one that goes. `candidates`: oldest first, by txg.

    `least_age`: everything younger stays (seconds).
    """
    # 1. What stays whatever the rules say: held ones, origins, the newest, those without a time, young ones.
    times = settled_times(candidates, now)
    reasons = [list(one.pinned) for one in candidates]
    if reasons:
        reasons[-1].append("newest")
    for at, (one, time) in enumerate(zip(candidates, times, strict=True)):
        if time is None:
            reasons[at].append("time unknown" if one.received_at is None else "clock in doubt")
        elif least_age is not None and now - time < least_age:
            reasons[at].append("retention_min")
    # 2. What a rule keeps: the first snapshots of each of its periods.
    counted = [(at, time) for at, time in enumerate(times) if time is not None and candidates[at].counts]
    for at, name in _by_rules(counted, policy, offset):
        reasons[at].append(name)
    return [tuple(each) for each in reasons]


def _by_rules(counted: list[tuple[int, int]], policy: Policy, offset: Offset) -> list[tuple[int, str]]:
    """Place and rule of each snapshot that a rule keeps. `counted`: places and times, oldest first."""
    kept = []
    for rule in policy.rules:
        found, older = _by_rule(counted, rule, offset)
        kept += [(at, rule.name) for at in found]
        if policy.chained:
            counted = counted[:older]
    return kept


def _by_rule(counted: list[tuple[int, int]], rule: KeepRule, offset: Offset) -> tuple[list[int], int]:
    """The places that one rule keeps, and how many snapshots are older than its periods."""
    # keep=all: everything that is younger than so many periods before the newest.
    if rule.keep is None:
        length = rule.period.seconds or rule.period.days * _DAY
        since = counted[-1][1] - rule.count * length if counted else 0
        older = sum(time <= since for _, time in counted)
        return [at for at, _ in counted[older:]], older
    # From the newest to the oldest: each change of the period's number begins one more period.
    kept: list[int] = []
    end, last, periods = len(counted), None, 0
    for place in range(len(counted) - 1, -1, -1):
        key = number(rule.period, counted[place][1], offset)
        if key == last:
            continue
        kept += _first(counted, place + 1, end, rule.keep) if periods else []
        end, last, periods = place + 1, key, periods + 1
        if periods > rule.count:
            return kept, end
    return kept + _first(counted, 0, end, rule.keep), 0


def _first(counted: list[tuple[int, int]], start: int, end: int, keep: int) -> list[int]:
    return [at for at, _ in counted[start : min(end, start + keep)]]


def number(period: Period, time: int, offset: Offset) -> _Key:
    """What all times in one period, and no others, have in common.

    An hour that the clock shows twice, when summer ends, is two; a day is one, however many hours it has.
    """
    # The offset is part of the key, so that the hour that comes twice in autumn counts as two.
    east = offset(time)
    if period.seconds:
        return (time + east) // period.seconds, east
    day = date.fromordinal(_EPOCH + (time + east) // _DAY)
    if period.months:
        return (day.year * 12 + day.month - 1) // period.months, 0
    return (day.toordinal() - 1) // period.days, 0  # day 1 was a Monday


# Times that can be relied on


def settled_times(candidates: Sequence[Candidate], now: int) -> list[int | None]:
    """The time of each snapshot; None where it is unknown, or a wrong clock's."""
    # Snapshots come in ascending order, so their times ascend, too, but for those of a wrong clock. The longest series
    # that ascends is believed.
    places = [at for at, one in enumerate(candidates) if one.received_at is not None]
    noted = [int(candidates[at].received_at or 0) for at in places]
    sound = [i for i, time in enumerate(noted) if EARLIEST <= time <= now + SKEW]
    ascending = [sound[i] for i in _longest_ascent([noted[i] for i in sound])]
    times: list[int | None] = [None] * len(candidates)
    for i in ascending:
        times[places[i]] = noted[i]
    # A clock that was set back a little: the time of the neighbour is as good.
    bounds = [-1, *ascending, len(noted)]
    for before, behind in pairwise(bounds):
        low = noted[before] if before >= 0 else EARLIEST
        high = noted[behind] if behind < len(noted) else now
        for i in range(before + 1, behind):
            if low - SKEW <= noted[i] <= high + SKEW:
                low = max(low, min(noted[i], high))
                times[places[i]] = low
    return times


def _longest_ascent(times: Sequence[int]) -> list[int]:
    """The places of as many times as can be had that do not descend (patience sorting)."""
    tops: list[int] = []  # the smallest last time of an ascent of each length
    ends: list[int] = []  # and its place
    before: list[int] = []
    # times    5 9 6 7 3 8     the longest ascent is 5 6 7 8; 9 and 3 are of a wrong clock
    # tops     after 8: [3, 6, 7, 8]: of all ascents of length n, the smallest last time
    for place, time in enumerate(times):
        at = bisect_right(tops, time)
        before.append(ends[at - 1] if at else -1)
        tops[at : at + 1] = [time]
        ends[at : at + 1] = [place]
    # Walk back from the end of the longest ascent.
    found = []
    place = ends[-1] if ends else -1
    while place >= 0:
        found.append(place)
        place = before[place]
    return found[::-1]


def clock_fault(now: int, known: int | None) -> str | None:
    """Why the server's clock cannot be right; None if it can. `known`: the last time that the pool knows."""
    if not EARLIEST <= now < 250_000_000_000:
        return "it was never set"
    if known is not None and now < known - SKEW:
        return f"it is {span(known - now)} behind the last time that this pool knows"
    if known is not None and now > known + GAP:
        return f"it is {span(now - known)} ahead of the last time that this pool knows"
    return None
