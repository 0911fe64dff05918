"""When a line of cron runs next, and what is no such line."""

from __future__ import annotations

from datetime import datetime

import pytest

from zkeep.backup import cron_times
from zkeep.errors import WrongUsage

NOW = datetime(2026, 11, 28, 12, 30, 40)  # a Saturday


@pytest.mark.parametrize(
    ("text", "following"),
    [
        ("* * * * *", datetime(2026, 11, 28, 12, 31)),
        ("30 12 * * *", datetime(2026, 11, 29, 12, 30)),
        ("15 3 * * 1-5", datetime(2026, 11, 30, 3, 15)),
        ("*/20 * * * *", datetime(2026, 11, 28, 12, 40)),
        ("10-59/20 11,12 * * *", datetime(2026, 11, 28, 12, 50)),
        ("0 0 1 jan *", datetime(2027, 1, 1)),
        ("0 0 29 2 *", datetime(2028, 2, 29)),
        ("0 5 * * 7", datetime(2026, 11, 29, 5, 0)),
        ("0 5 * * Fri-Sat", datetime(2026, 12, 4, 5, 0)),
        ("0 5 30 * mon", datetime(2026, 11, 30, 5, 0)),
        ("0 5 1 * 0", datetime(2026, 11, 29, 5, 0)),  # either day is enough
        ("0 5 */2 * 2", datetime(2026, 12, 1, 5, 0)),  # both: it begins with a star
        ("@monthly", datetime(2026, 12, 1)),
        ("@hourly", datetime(2026, 11, 28, 13, 0)),
        ("0 0 31 2 *", None),
    ],
)
def test_the_next_time(text: str, following: datetime | None) -> None:
    assert cron_times.parse(text).next_after(NOW) == following


@pytest.mark.parametrize(
    "text",
    [
        *("", "* * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "5-1 * * * *"),
        *("*/0 * * * *", "1, * * * *", "a * * * *", "1/5 * * * *", "* * * * * id", "@reboot", "٣ * * * *"),
        *("-1 * * * *", "1--2 * * * *"),
    ],
)
def test_what_cron_does_not_take(text: str) -> None:
    with pytest.raises(WrongUsage):
        cron_times.parse(text)
