"""Years of backups, pruned every day: what stays is exactly what a slow model says.

Clients back up every hour, lose days, lie about times, and flood. The server's clock runs ahead for a while, or stands
in 1970. `ZKEEP_RETENTION=20` plays three years of twenty clients; without, it is fewer.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from zkeep.pool.datasets.pruning import Candidate, clock_fault, decide
from zkeep.pool.datasets.retention import parse

ZONE = ZoneInfo("Europe/Berlin")
COUNTS = {"hourly": 24, "daily": 30, "weekly": 8, "monthly": 12, "yearly": 3}
LABELS = {"hourly": "%Y-%m-%d %H %z", "daily": "%Y-%m-%d", "weekly": "%G-%V", "monthly": "%Y-%m", "yearly": "%Y"}
RULES = ",".join(f"{name}={count}" for name, count in COUNTS.items())
HOUR, DAY = 3600, 86400
START = int(datetime(2026, 1, 1, tzinfo=ZONE).timestamp())
CLIENTS = int(os.environ.get("ZKEEP_RETENTION", "1"))
DAYS = 3 * 365 if CLIENTS > 1 else 500


@dataclass(frozen=True)
class Backup:
    """A snapshot; `truth` is when it was received, `stamp` what the pool noted: nothing, if it doubted its clock."""

    number: int
    truth: int
    stamp: int | None
    held: bool = False

    @property
    def right(self) -> bool:
        return self.stamp == self.truth


def model(backups: list[Backup], now: int, least: int) -> set[int]:
    """What stays, said as in the manual: slowly, with a calendar, and knowing which stamps are wrong."""
    stays = {b.number for b in backups if b.held or not b.right or now - b.truth < least}
    stays |= {b.number for b in backups[-1:]}
    sound = [b for b in backups if b.right]
    for name, count in COUNTS.items():
        labels = [datetime.fromtimestamp(b.truth, ZONE).strftime(LABELS[name]) for b in sound]
        for label in list(dict.fromkeys(labels))[-count:]:
            stays.add(sound[labels.index(label)].number)
    return stays


def offset(at: int) -> int:
    return int((datetime.fromtimestamp(at, ZONE).utcoffset() or timedelta()).total_seconds())


def wrong_clock(chance: random.Random) -> dict[int, int]:
    """By the day of the history, how far the server's clock is off: a few stretches of some days."""
    found: dict[int, int] = {}
    for first in sorted(chance.sample(range(40, DAYS, 60), 3)):
        error = chance.choice([9 * 365 * DAY, -(START + first * DAY) + 1000, 500 * DAY, -5 * 365 * DAY])
        found |= {first + day: error for day in range(chance.randrange(1, 4))}
    return found


def days(chance: random.Random) -> Iterator[tuple[int, list[tuple[int, bool]]]]:
    """Each day, and the true times of what is received in it, with whether an admin holds it."""
    for day in range(DAYS):
        times = [day * DAY + hour * HOUR + chance.randrange(HOUR) for hour in range(24)]
        if chance.random() < 0.2:
            times = chance.sample(times, chance.randrange(3))
        if chance.random() < 0.03:
            flooded = chance.choice(times or [day * DAY])
            times += [flooded + i % 600 for i in range(300)]
        if chance.random() < 0.02:
            times += [day * DAY + hour * HOUR for hour in range(24)]
        yield day, [(START + time, chance.random() < 0.001) for time in sorted(times)]


@pytest.mark.parametrize("seed", range(CLIENTS))
def test_p7_years_keep_exactly_what_the_rules_say(seed: int) -> None:
    chance = random.Random(seed)
    policy = parse(RULES)
    assert policy
    least = chance.choice([0, 3 * DAY])
    off = wrong_clock(chance)
    there: list[Backup] = []
    expected: list[Backup] = []
    known, number, refused = START, 0, 0
    for day, received in days(chance):
        error = off.get(day, 0)
        for time, held in received:
            number += 1
            stamp = None if clock_fault(time + error, known) else time + error
            known = known if stamp is None else stamp
            there.append(Backup(number, time, stamp, held))
            expected.append(there[-1])
        truth = START + (day + 1) * DAY
        now = truth + error
        if clock_fault(now, known):
            assert error, "a clock that is right is no reason to refuse"
            refused += 1
            continue
        assert not error, "a clock that jumped must be noticed"
        known = now
        reasons = decide([Candidate(b.stamp, ("held",) if b.held else ()) for b in there], now, policy, least, offset)
        there = [b for b, why in zip(there, reasons, strict=True) if why]
        stays = model(expected, truth, least)
        expected = [b for b in expected if b.number in stays]
        assert there == expected, f"on day {day}"
    assert refused
    assert len(there) > sum(COUNTS.values()) / 2
