"""When a backup runs by itself: units of systemd, or a line of cron, as text; and what is read back from them.

The first line of each is a comment with all that was asked for, as JSON: that is what `zkeep schedule` lists.

Source: systemd.timer(5), systemd.service(5) on quoting and on `%` and `$`, systemd.time(7), crontab(5).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from zkeep.backup import cron_times
from zkeep.errors import WrongUsage
from zkeep.names import shown

MARK = "# zkeep schedule: "
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_TIME = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])")
_ON_CALENDAR = re.compile(r"(?:([A-Z][a-z]{2}) )?\*-\*-\* ([0-9]{2}|\*):([0-9]{2}):00", re.ASCII)
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")


@dataclass(frozen=True)
class When:
    """How often. `kind`: hourly, daily, weekly or calendar; `minute` and on: None where they do not count.

    `text`: what was given to --calendar.
    """

    kind: str
    minute: int = 0
    hour: int = 0
    day: int = 0
    text: str = ""

    @property
    def on_calendar(self) -> str:
        """The time as systemd writes it."""
        if self.kind == "hourly":
            return f"*-*-* *:{self.minute:02d}:00"
        if self.kind == "calendar":
            return self.text
        return f"{DAYS[self.day] + ' ' if self.kind == 'weekly' else ''}*-*-* {self.hour:02d}:{self.minute:02d}:00"

    @property
    def cron(self) -> str:
        """The time as cron writes it.

        Raises:
            WrongUsage: it is an expression of systemd.
        """
        if self.kind == "hourly":
            return f"{self.minute} * * * *"
        if self.kind == "calendar":
            if cron_times.parse(self.text).next_after(datetime.now()) is None:
                raise WrongUsage(f"--calendar {shown(self.text)}: that time never comes")
            return self.text
        return f"{self.minute} {self.hour} * * {self.day + 1 if self.kind == 'weekly' else '*'}"

    @property
    def due(self) -> str | None:
        """The time as `zkeep backup --due` takes it; None where cron's own fields are enough or all there is."""
        if self.kind not in ("daily", "weekly"):
            return None
        return f"{DAYS[self.day] + ' ' if self.kind == 'weekly' else ''}{self.hour:02d}:{self.minute:02d}"

    def last_before(self, now: datetime) -> datetime:
        """The last time, daily or weekly, at which a run was to begin.

        Times of the clock are compared as moments: in the night in which it goes back an hour, one comes twice, and
        the first is meant. One that is skipped in spring is an hour later.
        """
        at = now.replace(hour=self.hour, minute=self.minute, second=0, microsecond=0, fold=0)
        while at.timestamp() > now.timestamp() or not self._is_on(at):
            at -= timedelta(days=1)
        return at

    def next_after(self, now: datetime) -> datetime | None:
        """The next run, without the delay; None if only systemd or cron knows."""
        if self.kind == "calendar":
            return None
        if self.kind == "hourly":
            ahead = (self.minute - now.minute - 1) % 60 + 1
            return datetime.fromtimestamp(now.replace(second=0, microsecond=0).timestamp() + 60 * ahead)
        at = now.replace(hour=self.hour, minute=self.minute, second=0, microsecond=0, fold=0)
        while at.timestamp() <= now.timestamp() or not self._is_on(at):
            at += timedelta(days=1)
        return datetime.fromtimestamp(at.timestamp())

    def next_by_cron(self, now: datetime, *, is_due: bool) -> datetime | None:
        """The next run by a line of cron: where it is overdue (`is_due`), as soon as the line looks again."""
        if self.kind == "calendar":
            return cron_times.parse(self.text).next_after(now)
        return When("hourly", self.minute).next_after(now) if is_due else self.next_after(now)

    def _is_on(self, at: datetime) -> bool:
        return self.kind != "weekly" or at.weekday() == self.day


def read_when(text: str) -> When:
    """Parse what on_calendar() made; what it did not make is an expression that was given."""
    match = _ON_CALENDAR.fullmatch(text)
    if match is None or (match[1] is not None and (match[1] not in DAYS or match[2] == "*")):
        return When("calendar", text=text)
    if match[2] == "*":
        return When("hourly", int(match[3]))
    if match[1] is None:
        return When("daily", int(match[3]), int(match[2]))
    return When("weekly", int(match[3]), int(match[2]), DAYS.index(match[1]))


def parse_when(hourly: bool, daily: str | None, weekly: str | None, calendar: str | None, jitter: int) -> When:
    """What exactly one of the options says. `jitter`: a number that spreads the hourly runs of many machines.

    Raises:
        WrongUsage: it makes no sense.
    """
    if [hourly, daily is not None, weekly is not None, calendar is not None].count(True) != 1:
        raise WrongUsage("say when: one of --hourly, --daily HH:MM, --weekly 'DAY HH:MM' and --calendar SPEC")
    if hourly:
        return When("hourly", minute=jitter % 60)
    if calendar is not None:
        if not calendar.strip() or not calendar.isprintable() or not calendar.isascii():
            raise WrongUsage(f"--calendar takes an expression of systemd.time(7), not {shown(calendar)}")
        return When("calendar", text=calendar.strip())
    day = 0
    text = daily if daily is not None else str(weekly)
    if weekly is not None:
        name, _, text = text.partition(" ")
        found = [at for at, known in enumerate(DAYS) if name[:3].lower() == known.lower()]
        if not found or not _is_day(name):
            raise WrongUsage(f"--weekly takes a day and a time, like 'Sun 03:00', not {shown(weekly)}")
        day, text = found[0], text or "02:30"
    match = _TIME.fullmatch(text)
    if match is None:
        raise WrongUsage(f"a time is HH:MM, like 02:30, not {shown(text)}")
    return When("weekly" if weekly is not None else "daily", int(match[2]), int(match[1]), day)


_LONG_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


def _is_day(name: str) -> bool:
    return name.lower() in _LONG_DAYS or name.lower() in (day.lower() for day in DAYS)


@dataclass(frozen=True)
class Entry:
    """One backup that runs by itself. `words`: the command, the program's path first."""

    name: str
    source: str
    destination: str
    when: str
    words: tuple[str, ...] = ()

    @property
    def mark(self) -> str:
        fields = {"name": self.name, "source": self.source, "destination": self.destination, "when": self.when}
        return MARK + json.dumps({**fields, "words": self.words})


def read_mark(line: str) -> Entry | None:
    """The entry of a comment that mark() made; None if it is another comment."""
    if not line.startswith(MARK):
        return None
    try:
        found = json.loads(line[len(MARK) :])
        texts = [found[name] for name in ("name", "source", "destination", "when")]
        words = found["words"]
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(words, list) or not all(isinstance(text, str) for text in [*texts, *words]):
        return None
    name, source, destination, when = texts
    return Entry(name, source, destination, when, tuple(words))


# systemd


def service(entry: Entry, environment: dict[str, str], *, system: bool) -> str:
    """The unit that does one backup; after what can pass (status 5) it tries again until it is done."""
    online = ["Wants=network-online.target", "After=network-online.target"] if system else []
    lines = [
        entry.mark,
        "[Unit]",
        f"Description=zkeep: back up {_described(entry.source)} to {_described(entry.destination)}",
        *online,
        "StartLimitIntervalSec=0",  # no limit: a laptop may be without a network all day
        "",
        "[Service]",
        "Type=oneshot",
        *(f"Environment={quoted(f'{name}={value}', expands=False)}" for name, value in environment.items()),
        "ExecStart=" + " ".join(quoted(word) for word in entry.words),
        "Restart=on-failure",
        "RestartSec=15min",
        "RestartPreventExitStatus=1 2 3 4",
        "Nice=10",
        "IOSchedulingClass=idle",
        "",
    ]
    return "\n".join(lines)


def delay_minutes(when: When) -> int:
    """How much later a timer may begin, so that not all machines begin at once."""
    return 5 if when.kind == "hourly" else 20


def timer(entry: Entry, when: When) -> str:
    """The unit that starts it: also what was missed while the machine was off, and not with all others at once."""
    lines = [
        entry.mark,
        "[Unit]",
        f"Description=zkeep: back up {_described(entry.source)}, by the clock",
        "",
        "[Timer]",
        f"OnCalendar={_specifiers(when.on_calendar)}",
        "Persistent=true",
        f"RandomizedDelaySec={delay_minutes(when)}min",
        "",
        "[Install]",
        "WantedBy=timers.target",
        "",
    ]
    return "\n".join(lines)


def quoted(word: str, *, expands: bool = True) -> str:
    """One word of ExecStart or Environment, whatever is in it. `expands`: `$` begins a variable there; in ExecStart."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    escaped = escaped.replace("$", "$$") if expands else escaped
    escaped = "".join(char if char.isprintable() else _escape(char) for char in _specifiers(escaped))
    return escaped if _PLAIN.fullmatch(escaped) else f'"{escaped}"'


def _escape(char: str) -> str:
    raw = char.encode("utf-8", "surrogateescape")
    return "".join(f"\\x{byte:02x}" for byte in raw)


def _specifiers(text: str) -> str:
    return text.replace("%", "%%")


def _described(text: str) -> str:
    return _specifiers(ascii(text)[1:-1])


# cron


def cron_line(entry: Entry, when: When, environment: dict[str, str]) -> str:
    """A line of a crontab, without its comment. cron reads `%` as the end of a line, quoted or not.

    A daily or weekly backup is looked after every hour, by its own option --due: so none is missed for good.
    """
    at, words = when.cron, entry.words
    if when.due is not None:
        at, words = f"{when.minute} * * * *", (*words[:2], "--due", when.due, *words[2:])
    env = ["env", *(f"{name}={value}" for name, value in environment.items())] if environment else []
    command = shlex.join([*env, *words])
    if not command.isprintable():  # a line feed begins another line, and so may other characters
        raise WrongUsage("cron takes no lines with control characters in them: use systemd, or another name")
    if "\\%" in command:
        raise WrongUsage("cron takes no backslash before a %: use systemd, or another name")
    return f"{at} {command}".replace("%", "\\%")


def entries(crontab: str) -> Iterator[Entry]:
    """The entries of a crontab."""
    for line in crontab.split("\n"):
        if (found := read_mark(line)) is not None:
            yield found


def without(crontab: str, name: str) -> str:
    """A crontab without one entry: its comment, and the line behind that."""
    kept: list[str] = []
    skip = False
    for line in crontab.removesuffix("\n").split("\n") if crontab else ():
        found = read_mark(line)
        if skip or (found is not None and found.name == name):
            skip = not skip
            continue
        kept.append(line)
    return "".join(f"{line}\n" for line in kept)


def added(crontab: str, entry: Entry, line: str) -> str:
    """A crontab with one entry, in place of one of its name."""
    return f"{without(crontab, entry.name)}{entry.mark}\n{line}\n"


def unit_name(base: str, digest: str) -> str:
    """The name of its units, without an ending."""
    return f"zkeep-backup-{re.sub(r'[^A-Za-z0-9_.]+', '-', base)[:60]}-{digest}"
