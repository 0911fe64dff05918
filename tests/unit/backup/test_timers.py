"""Schedules as text: units that systemd takes, lines that cron takes, and what is read back."""

from __future__ import annotations

import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from zkeep.backup import timers
from zkeep.backup.timers import Entry, When, parse_when
from zkeep.errors import WrongUsage

NOW = datetime(2026, 11, 28, 12, 30)  # a Saturday
ODD = ("/usr/bin/env", "backup", "a b", "100% $HOME", "quo\"te's", "back\\slash", "line\nfeed", "\udcff", "", "--x=é")


def entry(*words: str) -> Entry:
    return Entry("zkeep-backup-docs-1", "/home/me/Doc uments%", "ssh://box/vault/me", "daily", words)


@pytest.mark.parametrize(
    ("options", "calendar", "cron", "following"),
    [
        ({"hourly": True, "jitter": 77}, "*-*-* *:17:00", "17 * * * *", datetime(2026, 11, 28, 13, 17)),
        ({"daily": "02:30"}, "*-*-* 02:30:00", "30 2 * * *", datetime(2026, 11, 29, 2, 30)),
        ({"daily": "23:05"}, "*-*-* 23:05:00", "5 23 * * *", datetime(2026, 11, 28, 23, 5)),
        ({"weekly": "Sunday 3:00"}, "Sun *-*-* 03:00:00", "0 3 * * 7", datetime(2026, 11, 29, 3, 0)),
        ({"weekly": "sat"}, "Sat *-*-* 02:30:00", "30 2 * * 6", datetime(2026, 12, 5, 2, 30)),
        ({"calendar": "15 3 * * 1-5"}, "15 3 * * 1-5", "15 3 * * 1-5", None),
    ],
)
def test_when(options: dict[str, object], calendar: str, cron: str, following: datetime | None) -> None:
    defaults = {"hourly": False, "daily": None, "weekly": None, "calendar": None, "jitter": 0}
    when = parse_when(**{**defaults, **options})  # type: ignore[arg-type]
    assert (when.on_calendar, when.cron, when.next_after(NOW)) == (calendar, cron, following)


def test_the_last_time_of_a_backup() -> None:
    for when, last in (
        (When("daily", 30, 12), datetime(2026, 11, 28, 12, 30)),
        (When("daily", 31, 12), datetime(2026, 11, 27, 12, 31)),
        (When("weekly", 0, 3, 6), datetime(2026, 11, 22, 3, 0)),
        (When("weekly", 30, 12, 5), datetime(2026, 11, 28, 12, 30)),
        (When("weekly", 31, 12, 5), datetime(2026, 11, 21, 12, 31)),
    ):
        assert when.last_before(NOW) == last
    assert [When(kind, 5, 7, 6).due for kind in ("daily", "weekly", "hourly")] == ["07:05", "Sun 07:05", None]


@pytest.mark.parametrize(
    "options",
    [
        *({}, {"hourly": True, "daily": "02:30"}, {"daily": "24:00"}, {"daily": "2:3"}, {"daily": ""}),
        {"daily": "٣:30"},
        *({"weekly": "Someday 02:30"}, {"weekly": "Sunset"}, {"weekly": ""}, {"calendar": " "}, {"calendar": "a\nb"}),
    ],
)
def test_when_it_makes_no_sense(options: dict[str, object]) -> None:
    defaults = {"hourly": False, "daily": None, "weekly": None, "calendar": None, "jitter": 0}
    with pytest.raises(WrongUsage):
        parse_when(**{**defaults, **options})  # type: ignore[arg-type]


@pytest.mark.usefixtures("berlin")
def test_when_the_clock_is_changed() -> None:
    """At 2:00 on 2026-03-29 it became 3:00; at 3:00 on 2026-10-25 it became 2:00."""
    daily = When("daily", 30, 2)
    assert daily.next_after(datetime(2026, 3, 29, 1, 0)) == datetime(2026, 3, 29, 3, 30)
    assert daily.last_before(datetime(2026, 3, 29, 3, 29)).day == 28
    assert daily.last_before(datetime(2026, 3, 29, 3, 30)).day == 29
    assert When("hourly", 30).next_after(datetime(2026, 3, 29, 1, 40)) == datetime(2026, 3, 29, 3, 30)
    again = datetime(2026, 10, 25, 2, 10, fold=1)
    assert (daily.last_before(again), daily.last_before(again).fold) == (datetime(2026, 10, 25, 2, 30), 0)
    assert daily.next_after(again) == datetime(2026, 10, 26, 2, 30)
    weekly = When("weekly", 30, 2, 6)
    assert weekly.next_after(again) == datetime(2026, 11, 1, 2, 30)
    hourly = When("hourly", 5).next_after(datetime(2026, 10, 25, 2, 10))
    assert hourly is not None
    assert (hourly, hourly.fold) == (datetime(2026, 10, 25, 2, 5), 1)


def test_a_time_is_read_back_from_what_is_listed() -> None:
    for when in (When("hourly", 17), When("daily", 30, 2), When("weekly", 5, 23, 6)):
        assert timers.read_when(when.on_calendar) == when
    for text in ("daily", "Mon..Fri *-*-* 02:30:00", "Xxx *-*-* 02:30:00", "Mon *-*-* *:30:00", "15 3 * * 1-5"):
        assert timers.read_when(text) == When("calendar", text=text)


def test_cron_runs_what_is_overdue_as_soon_as_it_looks() -> None:
    daily = When("daily", 20, 2)
    assert daily.next_by_cron(NOW, is_due=False) == datetime(2026, 11, 29, 2, 20)
    assert daily.next_by_cron(NOW, is_due=True) == datetime(2026, 11, 28, 13, 20)
    assert When("calendar", text="0 3 * * *").next_by_cron(NOW, is_due=False) == datetime(2026, 11, 29, 3, 0)


def test_cron_takes_no_expression_of_systemd() -> None:
    for text in ("Mon *-*-* 02:30:00", "daily; id", "* * * * * id", "*/5 * * *", "99 3 * * *", "0 0 31 2 *"):
        with pytest.raises(WrongUsage):
            timers.cron_line(entry("x"), When("calendar", text=text), {})


def test_an_entry_is_read_back_from_its_units() -> None:
    made = entry(*ODD)
    when = When("daily", 30, 2)
    for unit in (timers.service(made, {"ZKEEP_HOME": "/a b"}, system=True), timers.timer(made, when)):
        assert timers.read_mark(unit.split("\n")[0]) == made
    for line in ("# other", timers.MARK + "{", timers.MARK + "[]", timers.MARK + '{"name": 1}', ""):
        assert timers.read_mark(line) is None


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze here")
def test_systemd_takes_the_units_whatever_the_words(tmp_path: Path) -> None:
    made = entry(*(word for word in ODD if word != "\udcff"))
    for system in (False, True):
        folder = tmp_path / str(system)
        folder.mkdir()
        service = folder / f"{made.name}.service"
        service.write_text(timers.service(made, {"ZKEEP_HOME": "/a b%"}, system=system))
        (folder / f"{made.name}.timer").write_text(timers.timer(made, When("weekly", 30, 2, 6)))
        names = [str(path) for path in sorted(folder.iterdir())]
        done = subprocess.run(["systemd-analyze", "verify", *names], check=False, capture_output=True, text=True)
        assert not [line for line in done.stderr.splitlines() if "zkeep" in line]
        assert done.returncode == 0, done.stderr


def test_words_of_a_unit_come_out_as_they_went_in() -> None:
    """Words as systemd reads them: C escapes in double quotes, `$$` and `%%` for `$` and `%`."""
    for word in ODD:
        text = timers.quoted(word).replace("$$", "$").replace("%%", "%")
        if text.startswith('"'):
            text = text[1:-1].encode("latin-1", "backslashreplace").decode("unicode_escape")
            text = (
                text.encode("latin-1", "surrogateescape").decode("utf-8", "surrogateescape") if "\xff" in text else text
            )
        assert text == word


def test_a_crontab_keeps_what_is_not_ours() -> None:
    before = "MAILTO=me\n# a comment\n0 5 * * * other\n"
    first = entry("/bin/zkeep", "backup", "a%b")
    second = Entry("zkeep-backup-other-2", "/srv", "vault/srv", "hourly", ("/bin/zkeep",))
    line = timers.cron_line(first, When("daily", 30, 2), {"ZKEEP_HOME": "/h"})
    assert line == "30 * * * * env ZKEEP_HOME=/h /bin/zkeep backup --due 02:30 a\\%b"
    assert timers.cron_line(first, When("hourly", 7), {}) == "7 * * * * /bin/zkeep backup a\\%b"
    tab = timers.added(timers.added(before, first, line), second, "x")
    assert list(timers.entries(tab)) == [first, second]
    assert list(timers.entries(timers.added(tab, first, line))) == [second, first]
    assert timers.without(timers.without(tab, first.name), second.name) == before


@pytest.mark.parametrize("char", [*"\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029\0\x1b", "\\%"])
def test_no_word_becomes_a_line_of_cron_or_is_read_otherwise(char: str) -> None:
    with pytest.raises(WrongUsage):
        timers.cron_line(entry(f"a{char}* * * * * id"), When("hourly"), {})


def test_lines_of_a_crontab_end_with_line_feeds_alone() -> None:
    made = entry("/bin/zkeep")
    before = f"0 5 * * * a\x0b{made.mark}\n0 6 * * * b\u2028c\r\n\n"
    assert list(timers.entries(before)) == []
    assert timers.without(timers.added(before, made, "x"), made.name) == before
    assert timers.without("", made.name) == ""


def test_a_dollar_is_doubled_only_where_systemd_expands() -> None:
    unit = timers.service(entry("/bin/zkeep", "$HOME"), {"ZKEEP_HOME": "/a$b"}, system=True)
    assert 'Environment="ZKEEP_HOME=/a$b"' in unit
    assert 'ExecStart=/bin/zkeep "$$HOME"' in unit
