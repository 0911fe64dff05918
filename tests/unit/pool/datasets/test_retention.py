"""The language of `retention`, and what a policy keeps: a table of cases."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from zkeep.pool.datasets.pruning import EARLIEST, GAP, SKEW, Candidate, Offset, clock_fault, decide
from zkeep.pool.datasets.retention import MOST_TEXT, BadRetention, Policy, canonical, canonical_age, parse, parse_age

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
"A Wednesday."
HOUR, DAY = 3600, 86400


def zone(name: str) -> Offset:
    found = ZoneInfo(name)
    return lambda at: int((datetime.fromtimestamp(at, found).utcoffset() or timedelta()).total_seconds())


def at(text: str, tz: str = "UTC") -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(tz)).timestamp())


def policy(text: str) -> Policy:
    found = parse(text)
    assert found
    return found


def kept(times: list[int], rules: str, now: int, least: int | None = None, tz: str = "UTC") -> list[int]:
    """The places of those that stay."""
    reasons = decide([Candidate(t) for t in times], now, policy(rules), least, zone(tz))
    return [place for place, why in enumerate(reasons) if why]


# The language


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("hourly=24,daily=30,weekly=8,monthly=12,yearly=3", "hourly=24,daily=30,weekly=8,monthly=12,yearly=3"),
        ("yearly=3,hourly=24", "hourly=24,yearly=3"),
        ("hourly = 36\ndaily = 30\nmonthly = 3\nyearly = 0\nfrequently = 0", None),
        (" daily=7 ; weekly=4 ", "daily=7,weekly=4"),
        ("frequent=4", "frequently=4"),
        ("1x1h(keep=all) | 24x1h | 14x1d", "1x1h(keep=all) | 24x1h | 14x1d"),
        ("1x1h(keep=all)|24x1h|14x1d", "1x1h(keep=all) | 24x1h | 14x1d"),
        ("7x1d|4x1w|52x1w", "7x1d | 4x1w | 52x1w"),
        ("3x15m( keep = 2 )", "3x15m(keep=2)"),
        ("none", "none"),
        ("off", "none"),
        ("", "none"),
    ],
)
def test_spellings(typed: str, said: str | None) -> None:
    assert canonical(typed) == (said or "frequently=0,hourly=36,daily=30,monthly=3,yearly=0")
    assert canonical(canonical(typed)) == canonical(typed)


@pytest.mark.parametrize(
    "text",
    [
        "hourly", "hourly=", "=1", "hourly=-1", "hourly=1.5", "hourly=1e3", "hourly=100000", "hourly=" + "9" * 400,
        "hourly=\u0661", "h\u03bfurly=1", "daily=1,daily=2", "frequent=1,frequently=2", "fortnightly=1", "daily=0",
        "hourly=1 | 1x1d", "1x1d | hourly=1", "1x", "x1h", "1x1", "1xh", "0x1h", "1x0h", "1x1M", "1x1d | 1x1h",
        "1x1h(keep=)", "1x1h(keep=0)", "1x1h(keep=some)", "1x1h(keep=all", "1x1h keep=all", "|", "1x1h |", "| 1x1h",
        "99999x99999w", "1x1h|" * 33 + "1x1h", "daily=1 " * MOST_TEXT, "\x1b[2Jdaily=1", "daily=1\0",
    ],
)  # fmt: skip
def test_what_is_no_policy_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(BadRetention) as caught:
        parse(text)
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90m", 5400), ("36h", 36 * HOUR), ("7d", 7 * DAY), ("2w", 14 * DAY), ("1y", 365 * DAY), ("30s", 30)],
)
def test_ages(text: str, seconds: int) -> None:
    assert parse_age(text) == seconds
    assert canonical_age(text) == text


@pytest.mark.parametrize("text", ["7", "d", "-1d", "1.5d", "0d", "7 days", "9" * 400 + "d", "\u0667d", "99999y", "7D"])
def test_what_is_no_age_is_refused(text: str) -> None:
    with pytest.raises(BadRetention):
        parse_age(text)


@pytest.mark.parametrize("text", ["none", "off", "", "0"])
def test_no_age(text: str) -> None:
    assert parse_age(text) is None
    assert canonical_age(text) == "none"


# What is kept


def hours(count: int, now: int) -> list[int]:
    """One each hour, the newest at `now`."""
    return [now - (count - 1 - i) * HOUR for i in range(count)]


NOW = int(NOON.timestamp())
CASES: dict[str, tuple[Callable[[], list[int]], str, list[int]]] = {
    "nothing": (list, "daily=1", []),
    "the newest stays, whatever the rules say": (lambda: [NOW - 2, NOW - 1], "hourly=1", [0, 1]),
    "each hour its first": (lambda: [NOW, NOW + 1, NOW + 2], "hourly=1", [0, 2]),
    "the last hours": (lambda: hours(5, NOW), "hourly=3", [2, 3, 4]),
    "hours without anything do not count": (lambda: [NOW - 900 * HOUR, NOW - 90 * HOUR, NOW], "hourly=3", [0, 1, 2]),
    "days": (lambda: hours(49, NOW), "daily=2", [12, 36, 48]),
    "a week begins on Monday": (
        lambda: [at("2026-11-22T23:59"), at("2026-11-23T00:00"), at("2026-11-25T11:00"), NOW], "weekly=1", [1, 3],
    ),
    "months and years": (
        lambda: [at("2024-12-31T12:00"), at("2025-01-01T12:00"), at("2025-02-01T12:00"), at("2025-02-02T12:00"), NOW],
        "monthly=2,yearly=2", [1, 2, 4],
    ),
    "rules add up": (lambda: hours(30, NOW), "hourly=2,daily=2", [0, 17, 28, 29]),
    "a grid goes on where the term before ended": (lambda: hours(6, NOW), "2x1h | 2x2h", [1, 3, 4, 5]),
    "a grid that keeps all of the last hour": (
        lambda: [NOW - 2 * HOUR, NOW - HOUR - 1, NOW - 1800, NOW - 900, NOW], "1x1h(keep=all) | 1x1h", [0, 2, 3, 4],
    ),
    "a grid that keeps two of each": (lambda: [NOW + i for i in range(5)], "1x1h(keep=2)", [0, 1, 4]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str) -> None:
    times, rules, expected = CASES[name]
    assert kept(times(), rules, NOW + HOUR) == expected


def test_time_alone_prunes_nothing() -> None:
    times = hours(24, NOW)
    assert kept(times, "hourly=24", NOW + 10 * 365 * DAY) == list(range(24))


def test_a_flood_takes_no_place_of_what_is_kept() -> None:
    """Ten thousand snapshots within an hour are one hourly one, and the newest."""
    before = hours(48, NOW)
    flood = [NOW + 1 + i % 1800 for i in range(10_000)]
    rules = "hourly=24,daily=30"
    alone, flooded = kept(before, rules, NOW + HOUR), kept(before + sorted(flood), rules, NOW + HOUR)
    assert flooded == [*alone, 48 + 9999]


def test_a_flood_at_each_full_hour_is_one_a_day() -> None:
    """It uses up hours, as an honest client would; what the longer rules have stays."""
    days = [NOW - i * DAY for i in range(20, 0, -1)]
    flood = [NOW + hour * HOUR + i for hour in range(24) for i in range(50)]
    found = kept(days + flood, "hourly=24,daily=30", NOW + DAY)
    assert found[:20] == list(range(20))
    assert len(found) == 20 + 24 + 1


def test_everything_younger_stays() -> None:
    times = [NOW + i for i in range(10)]
    assert kept(times, "daily=1", NOW + 100, least=94) == [0, 7, 8, 9]


# The local calendar


@pytest.mark.parametrize(("tz", "same_day"), [("UTC", True), ("Europe/Berlin", False), ("America/New_York", True)])
def test_days_are_the_servers(tz: str, same_day: bool) -> None:
    times = [at("2026-11-24T22:30"), at("2026-11-24T23:30"), at("2026-11-25T12:00")]
    assert (1 not in kept(times, "daily=3", NOW, tz=tz)) == same_day


def test_the_hour_that_comes_twice_is_two() -> None:
    """Berlin, 2026-10-25: 02:30 in summer time, and an hour later in winter time."""
    first = at("2026-10-25T00:30")
    times = [first, first + HOUR, first + 2 * HOUR]
    assert kept(times, "hourly=3", NOW, tz="Europe/Berlin") == [0, 1, 2]


def test_a_day_has_23_or_25_hours() -> None:
    for text in ("2026-03-29T00:00", "2026-10-25T00:00"):
        start = at(text, "Europe/Berlin")
        end = at(text.replace("00:00", "23:59"), "Europe/Berlin")
        assert kept([start, end, end + 60], "daily=2", NOW + 365 * DAY, tz="Europe/Berlin") == [0, 2]


# Clocks that are wrong


def test_a_clock_that_ran_ahead_for_a_day() -> None:
    """Snapshots with its times stay, and use up no hour; the others are judged as if they were not there."""
    ahead = [NOW + 14 * 365 * DAY + i * HOUR for i in range(24)]
    times = [*hours(30, NOW), *ahead, *(NOW + (24 + i) * HOUR for i in range(6))]
    found = kept(times, "hourly=10", NOW + 30 * HOUR)
    assert found == [*range(26, 30), *range(30, 54), *range(54, 60)]


def test_a_clock_that_was_never_set() -> None:
    times = [*hours(5, NOW), 10, 20, 30, *(NOW + (i + 2) * HOUR for i in range(3))]
    assert kept(times, "hourly=3", NOW + 5 * HOUR) == [5, 6, 7, 8, 9, 10]


def test_a_clock_that_fell_behind_prunes_nothing() -> None:
    """All times are in the future then."""
    assert kept(hours(50, NOW), "hourly=1", NOW - 365 * DAY) == list(range(50))


def test_a_clock_that_is_set_back_a_little_is_no_reason_for_doubt() -> None:
    times = [NOW, NOW + 600, NOW + 300, NOW + 900]
    reasons = decide([Candidate(t) for t in times], NOW + HOUR, policy("hourly=1"), None, zone("UTC"))
    assert reasons == [("hourly",), (), (), ("newest",)]


def test_what_has_no_time_stays() -> None:
    candidates = [Candidate(None), Candidate(None), Candidate(NOW), Candidate(NOW + 1), Candidate(NOW + 2)]
    reasons = decide(candidates, NOW + 9, policy("daily=1"), None, zone("UTC"))
    assert reasons == [("time unknown",), ("time unknown",), ("daily",), (), ("newest",)]


def test_what_is_pinned_stays_and_represents_its_hour() -> None:
    candidates = [Candidate(NOW, ("held",)), Candidate(NOW + 1), Candidate(NOW + HOUR)]
    reasons = decide(candidates, NOW + 9, policy("hourly=2"), None, zone("UTC"))
    assert reasons == [("held", "hourly"), (), ("newest", "hourly")]


def test_what_does_not_count_represents_nothing() -> None:
    candidates = [Candidate(NOW, ("step",), counts=False), Candidate(NOW + 1), Candidate(NOW + HOUR)]
    reasons = decide(candidates, NOW + 9, policy("hourly=2"), None, zone("UTC"))
    assert reasons == [("step",), ("hourly",), ("newest", "hourly")]


@pytest.mark.parametrize(
    ("now", "known", "right"),
    [
        (NOW, None, True), (NOW, NOW, True), (NOW, NOW + SKEW, True), (NOW, NOW + SKEW + 1, False),
        (NOW + GAP, NOW, True), (NOW + GAP + 1, NOW, False), (10, None, False), (EARLIEST, None, True),
        (1 << 62, None, False), (-5, None, False),
    ],
)  # fmt: skip
def test_clocks(now: int, known: int | None, right: bool) -> None:
    assert (clock_fault(now, known) is None) == right
