"""The language of the property `retention`, and of ages: text to one typed policy, errors in one line.

Three spellings say the same kind of thing:

    hourly=24,daily=30,weekly=8,monthly=12,yearly=3     the first snapshot of each of the last 24 hours, 30 days, ...
    hourly = 24; daily = 30                             sanoid's names, with its blanks; also frequently (15 minutes)
    1x1h(keep=all) | 24x1h | 14x1d                      zrepl's grid: each term begins where the one before it ends

A period counts only if something was received in it, so that a gap, or a clock that jumps, uses up none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

MOST_TEXT = 1024
"Characters of a policy."
MOST_TERMS = 32
MOST_COUNT = 99_999
NONE = "none"
_DAY = 86400
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": _DAY, "w": 7 * _DAY, "y": 365 * _DAY}
_LONGEST = 1000 * 366 * _DAY
"Seconds of an age or a period: more is a slip."
_NUMBER = r"([0-9]{1,5})"
_NAMED = re.compile(rf"([a-z]{{1,20}})\s*=\s*{_NUMBER}", re.ASCII)
_TERM = re.compile(rf"{_NUMBER}\s*x\s*{_NUMBER}([smhdw])\s*(?:\(\s*keep\s*=\s*(all|[0-9]{{1,5}})\s*\))?", re.ASCII)
_AGE = re.compile(r"([0-9]{1,10})\s*([smhdwy])", re.ASCII)


class BadRetention(ValueError):
    """The text is no policy, or no age; the message says what it should be."""


@dataclass(frozen=True, slots=True)
class Period:
    """A stretch of the calendar: one of the three is not 0."""

    seconds: int = 0
    "Part of a day, counted from local midnight of 1970."
    days: int = 0
    "7: weeks that begin on Monday."
    months: int = 0


@dataclass(frozen=True, slots=True)
class KeepRule:
    """Keep the first `keep` snapshots of each of the last `count` periods in which something was received.

    `keep` None: all that is younger, by `count` periods, than the newest.
    """

    name: str
    count: int
    period: Period
    keep: int | None = 1


@dataclass(frozen=True, slots=True)
class Policy:
    text: str
    "In one spelling, whatever was typed."
    rules: tuple[KeepRule, ...]
    chained: bool = False
    "A grid: each rule is about what is older than the periods of the rules before it."


NAMES: Mapping[str, Period] = {
    "frequently": Period(seconds=900),
    "hourly": Period(seconds=3600),
    "daily": Period(days=1),
    "weekly": Period(days=7),
    "monthly": Period(months=1),
    "yearly": Period(months=12),
}


def parse(text: str) -> Policy | None:
    """The policy that a text says; None for `none`, which prunes nothing.

    Raises:
        BadRetention: it says none, too much, or nothing that is kept.
    """
    text = text.strip()
    if text in (NONE, "off", ""):
        return None
    if len(text) > MOST_TEXT:
        raise BadRetention(f"it has more than {MOST_TEXT} characters")
    policy = _grid(text) if "=" not in text.partition("(")[0] else _named(text)
    if not any(rule.count and rule.keep != 0 for rule in policy.rules):
        raise BadRetention("it keeps nothing; 'none' stops pruning")
    return policy


def _named(text: str) -> Policy:
    """`hourly=24,daily=30`: also with blanks, semicolons and line ends between."""
    counts: dict[str, int] = {}
    for word in re.split(r"[,;\s]+", re.sub(r"\s*=\s*", "=", text)):
        if not word:
            continue
        match = _NAMED.fullmatch(word)
        # sanoid writes `frequently`, some of its users `frequent`.
        name = {"frequent": "frequently"}.get(match[1], match[1]) if match else ""
        if not match or name not in NAMES:
            raise BadRetention(f"must be like hourly=24,daily=30, of {' '.join(NAMES)}, each up to {MOST_COUNT}")
        if name in counts:
            raise BadRetention(f"{name} comes twice")
        counts[name] = int(match[2])
    rules = tuple(KeepRule(name, counts[name], period) for name, period in NAMES.items() if name in counts)
    return Policy(",".join(f"{rule.name}={rule.count}" for rule in rules), rules)


def _grid(text: str) -> Policy:
    """`1x1h(keep=all) | 24x1h`: the lengths of periods grow, as in zrepl."""
    terms = text.split("|")
    if len(terms) > MOST_TERMS:
        raise BadRetention(f"it has more than {MOST_TERMS} terms")
    rules: list[KeepRule] = []
    shortest = 1
    for term in terms:
        match = _TERM.fullmatch(term.strip())
        if not match:
            raise BadRetention("must be like hourly=24,daily=30 or like 1x1h(keep=all) | 24x1h | 14x1d")
        # 24 x 1 h (keep=1): `count` periods of `number` `unit`s each.
        count, number, unit, keep = int(match[1]), int(match[2]), match[3], match[4]
        length = number * _UNITS[unit]
        if not shortest <= length <= _LONGEST or count * length > _LONGEST:
            raise BadRetention("the periods of its terms must have a length, and may not become shorter or too long")
        shortest = length
        period = Period(seconds=length) if length % _DAY else Period(days=length // _DAY)
        name = f"{count}x{number}{unit}" + (f"(keep={keep})" if keep else "")
        rules.append(KeepRule(name, count, period, None if keep == "all" else int(keep or 1)))
    return Policy(" | ".join(rule.name for rule in rules), tuple(rules), chained=True)


def parse_age(text: str) -> int | None:
    """The seconds that `90m`, `36h`, `7d`, `8w` or `1y` means; None for `none`.

    Raises:
        BadRetention: it is no age.
    """
    text = text.strip()
    if text in (NONE, "off", "", "0"):
        return None
    match = _AGE.fullmatch(text)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < seconds <= _LONGEST:
        raise BadRetention("must be an age like 90m, 36h, 7d, 8w or 1y, or none")
    return seconds


def span(seconds: int) -> str:
    """An age in words: `1 second`, `5 minutes`, `36 hours`, `12 days`."""
    for size, name in ((_DAY, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= 2 * size:
            return f"{seconds // size} {name}s"
    return "1 second" if seconds == 1 else f"{max(0, seconds)} seconds"


def canonical(text: str) -> str:
    """How a policy is kept as a property."""
    policy = parse(text)
    return policy.text if policy else NONE


def canonical_age(text: str) -> str:
    """How an age is kept as a property."""
    return NONE if parse_age(text) is None else text.strip()
