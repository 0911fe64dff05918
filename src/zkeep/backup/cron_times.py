"""The times that five fields of cron name, as crontab(5) has them.

If both the day of the month and the day of the week are restricted, either is enough.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from zkeep.errors import WrongUsage
from zkeep.names import shown

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_NAMED = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
}
_PART = re.compile(r"(?:(\*)|([0-9a-z]+)(?:-([0-9a-z]+))?)(?:/([0-9]{1,3}))?", re.ASCII)
_DAYS_AHEAD = 8 * 366 + 1
"How far it is looked ahead: Feb 29 comes every 4 years, or 8."


@dataclass(frozen=True)
class CronTimes:
    """The minutes, hours and so on at which cron runs a line. Day 0 of the week is Sunday."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool

    def next_after(self, now: datetime) -> datetime | None:
        """The first minute after `now` that matches, in local time; None if there is none in eight years."""
        start = now.replace(second=0, microsecond=0, fold=0)
        first = start + timedelta(minutes=1)
        for ahead in range(_DAYS_AHEAD):
            day = first.replace(hour=0, minute=0) + timedelta(days=ahead)
            if not self._is_on(day):
                continue
            for hour in sorted(self.hours):
                for minute in sorted(self.minutes):
                    if (at := day.replace(hour=hour, minute=minute)) >= first:
                        return at
        return None

    def _is_on(self, day: datetime) -> bool:
        matches = (day.day in self.days, day.isoweekday() % 7 in self.weekdays)
        return day.month in self.months and (any(matches) if self.either_day else all(matches))


def parse(text: str) -> CronTimes:
    """Parse five fields, or `@daily` and the like.

    Raises:
        WrongUsage: cron does not take it.
    """
    fields = _NAMED.get(text.lower(), text).lower().split()
    try:
        minutes, hours, days, months, weekdays = fields
        return CronTimes(
            _values(minutes, 0, 59),
            _values(hours, 0, 23),
            _values(days, 1, 31),
            _values(months, 1, 12, _MONTHS),
            frozenset(value % 7 for value in _values(weekdays, 0, 7, _DAYS)),
            not days.startswith("*") and not weekdays.startswith("*"),
        )
    except ValueError:
        like = "like '30 2 * * 1'"
        raise WrongUsage(f"--calendar takes the five fields of cron here, {like}, not {shown(text)}") from None


def _values(field: str, low: int, high: int, names: tuple[str, ...] = ()) -> frozenset[int]:
    """The values of one field. Raises ValueError: cron does not take it."""
    found: set[int] = set()
    for part in field.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(part)
        star, first, last, step = match.groups()
        if step is not None and last is None and not star:
            raise ValueError(part)  # some crons read 5/10 as 5, others as 5-59/10
        begin = low if star else _number(first, low, high, names)
        end = high if star else begin if last is None else _number(last, low, high, names)
        by = int(step or 1)
        if begin > end or by == 0:
            raise ValueError(part)
        found.update(range(begin, end + 1, by))
    return frozenset(found)


def _number(word: str, low: int, high: int, names: tuple[str, ...]) -> int:
    if word in names:
        return names.index(word) + low
    value = int(word) if word.isdecimal() and len(word) <= 2 else -1
    if not low <= value <= high:
        raise ValueError(word)
    return value
