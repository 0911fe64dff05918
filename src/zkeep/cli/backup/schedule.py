"""zkeep schedule."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path as FilePath
from typing import Any

import click

from zkeep.backup import timers
from zkeep.backup.local import SOURCE, Job, digest
from zkeep.backup.places import Path, parse_destination, parse_source
from zkeep.backup.timers import Entry, When
from zkeep.cli.backup import due
from zkeep.cli.backup.ping import check_url
from zkeep.cli.backup.wanted import Wanted, passing_options, ssh_words
from zkeep.cli.common import text
from zkeep.cli.common.own_path import own_path
from zkeep.cli.common.pools import opened, registry
from zkeep.cli.common.snapshot_from import FromOptions
from zkeep.errors import Refused, TryAgain, WrongUsage, ZkeepError
from zkeep.names import printable, shown
from zkeep.pool.datasets import properties
from zkeep.pool.datasets.sent import DESTINATION
from zkeep.pool.store.disk import make_folder

RUNNING, SYSTEM_UNITS = "/run/systemd/system", "/etc/systemd/system"
"What is there where systemd runs; the units of the system's administrator."
ENDINGS = ("service", "timer")
SECONDS = 60
"How long systemctl and crontab may take."
NOT_RUN = 127
"The status of a program that could not be run."
MULTIPLE = {"ssh_options": "--ssh-option", "locations": "-L"}
PATHS = ("sshkey", "exclude_from")


@click.command("schedule")
@click.option("--hourly", is_flag=True, help="Every hour.")
@click.option("--daily", metavar="HH:MM", help="Every day at this time.")
@click.option("--weekly", metavar="'DAY HH:MM'", help="Every week, as 'Sun 03:00'.")
@click.option("--calendar", metavar="SPEC", help="As systemd.time(7) has it; with cron, its five fields.")
@click.option("--cron", "cron", is_flag=True, help="With cron, even where there is systemd.")
@click.option("--remove", "remove", is_flag=True, help="Do it no more. The backups stay.")
@passing_options
@click.argument("source", required=False, metavar="[SRC")
@click.argument("destination", required=False, metavar="DEST]")
def schedule_verb(
    *,
    hourly: bool,
    daily: str | None,
    weekly: str | None,
    calendar: str | None,
    cron: bool,
    remove: bool,
    source: str | None,
    destination: str | None,
    **passed: Any,
) -> None:
    """Let a backup run by itself, list those that do, or remove one.

    With systemd, a timer is made that also catches up on what was missed while the machine was off: as root for the
    system, else for this user ('loginctl enable-linger' lets it run while you are not logged in). Elsewhere it is a
    line of this user's crontab, which looks every hour whether a daily or weekly backup is due. The other options are
    those of 'zkeep backup'. That has to be run once before where the first time asks for a key: for all but an
    encrypted dataset. SRC and DEST may be left out if only one backup was made here.

    \b
        zkeep schedule ~/Documents ssh://box/vault/me --daily 02:30
        zkeep schedule --hourly --ping https://hc.example.org/uuid /srv ssh://box/vault/srv
        zkeep schedule
        zkeep schedule --remove ~/Documents ssh://box/vault/me
    """
    place: ScheduleStore = Systemd() if not cron and Systemd.is_there() else Cron()
    makes = bool(hourly or daily or weekly or calendar)
    if source is None and not (remove or makes):
        _list()
        return
    if source is None or destination is None:
        source, destination = _only_one(source, remove=remove)
    job = Job(parse_source(source, registry().pools()), parse_destination(destination))
    name = timers.unit_name(job.base(), digest(job)[:8])
    if remove:
        _remove(job, name)
        return
    when = timers.parse_when(hourly, daily, weekly, calendar, int(digest(job)[:8], 16))
    _check_ready(job, passed)
    words = (own_path(), "backup", *_words(passed), str(job.source), str(job.destination))
    due.begin_with(job, datetime.now())
    place.add(Entry(name, str(job.source), str(job.destination), _describe(when), words), when)
    _say_next(place, when, name)


def _only_one(source: str | None, *, remove: bool) -> tuple[str, str]:
    """SRC and DEST of the backup that is meant: the only one that was made here, or the only one of SRC.

    Raises:
        WrongUsage: there are none or several; or it is to be removed, for which both are to be named.
    """
    missing = "name the backup: SRC DEST" if source is None else "name where it goes: SRC DEST"
    made = [] if remove else _made_here()
    if source is not None:
        wanted = str(parse_source(source, registry().pools()))
        made = [pair for pair in made if pair[0] == wanted]
    if len(made) != 1:
        more = ", ..." if len(made) > 3 else ""
        known = ", ".join(shlex.join(pair) for pair in made[:3])
        raise WrongUsage(f"{missing}" + (f"; made here were {printable(known)}{more}" if made else ""))
    return made[0]


def _made_here() -> list[tuple[str, str]]:
    """SRC and DEST of all backups of folders that were made by this machine."""
    found = set()
    for name in registry().pools():
        with suppress(ZkeepError, OSError), opened(name) as pool:
            for dataset in pool.tree().by_name.values():
                pair = tuple(str(dataset.doc["local"].get(key)) for key in (SOURCE, DESTINATION))
                if {SOURCE, DESTINATION} <= dataset.doc["local"].keys():
                    found.add((pair[0], pair[1]))
    return sorted(found)


def _describe(when: When) -> str:
    return when.text if when.kind == "calendar" else when.on_calendar


def _check_ready(job: Job, passed: dict[str, Any]) -> None:
    """Nothing can be confirmed at night: the backup must have run once, and its options must make sense.

    Raises:
        Refused, WrongUsage: it has not; they do not.
    """
    check_url(passed["url"])
    if passed["retention"] is not None:
        properties.check("retention", passed["retention"])
    if not isinstance(job.source, Path):
        from zkeep.cli.backup.dataset import check_unattended

        ssh = ssh_words(passed["ssh_options"], passed["sshkey"])
        excluding = {name: passed[name] for name in passed.keys() & set(FromOptions.__dataclass_fields__)}
        plain = Wanted(job, True, False, False, False, None, None, passed["recursive"], ssh, (), excluding)
        check_unattended(plain)
        return
    from zkeep.cli.backup.folder import find_dataset

    if passed["recursive"]:
        raise WrongUsage("-r goes with a dataset: a folder is backed up with all that is in it")
    if find_dataset(job) is None:
        way = f"zkeep backup {shown(str(job.source))} {job.destination}"
        raise Refused(f"cannot schedule the backup of {job.source}: it was never made; run it once here: {way}")


def _words(passed: dict[str, Any]) -> list[str]:
    """The options as they were given, with paths that hold in any folder."""
    words: list[str] = []
    for name, value in passed.items():
        option = {"url": "--ping", **MULTIPLE}.get(name, "-r" if name == "recursive" else f"--{name.replace('_', '-')}")
        if isinstance(value, bool):
            words += [option] if value else []
        elif isinstance(value, str):
            words += [option, os.path.abspath(os.path.expanduser(value)) if name in PATHS else value]
        elif value is not None:
            words += [word for each in value for word in (option, os.path.abspath(each) if name in PATHS else each)]
    return words


def environment() -> dict[str, str]:
    """What a run needs of this one."""
    return {"ZKEEP_HOME": os.path.abspath(registry().home)}  # which other variables may have decided, too


def _say_next(place: ScheduleStore, when: When, name: str) -> None:
    at = place.next_run(when)
    click.echo(f"made {place.describe(name)}")
    click.echo(f"next run: {at or 'as the calendar says'}" + place.delay(when))
    for line in place.hints(when):
        click.echo(line)


def _list() -> None:
    rows = [
        [entry.source, entry.destination, entry.when, place.next_of(entry), place.kind]
        for place in (Systemd(), Cron())
        for entry in place.entries()
    ]
    if rows:
        head = ["SRC", "DEST", "WHEN", "NEXT", "BY"]
        click.echo(text.table(head, [[text.safe(cell) for cell in row] for row in rows], [False] * 5), nl=False)
    else:
        click.echo("no backups are scheduled", err=True)


def _remove(job: Job, name: str) -> None:
    for place in (Systemd(), Cron()):
        if any(entry.name == name for entry in place.entries()):
            place.remove(name)
            click.echo(f"removed {place.describe(name)}")
            return
    why = "there is none; 'zkeep schedule' lists those that are"
    raise Refused(f"cannot remove the schedule of {job.source} to {job.destination}: {why}")


_MINUTE = re.compile(r"(?:[A-Z][a-z]{2} )?[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}", re.ASCII)


def _minute(said: str) -> str:
    """A time of systemd to the minute, in the local time zone, as systemd prints it."""
    match = _MINUTE.match(said)
    return match[0] if match is not None else said


def _shown(at: datetime) -> str:
    return f"{timers.DAYS[at.weekday()]} {at:%Y-%m-%d %H:%M}"


def _run(words: Sequence[str], given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program of the system; no shell."""
    content = os.fsencode(given or "")
    try:
        done = subprocess.run(words, input=content, capture_output=True, timeout=SECONDS, check=False)  # noqa: S603
        return subprocess.CompletedProcess(words, done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr))
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, NOT_RUN, "", str(error))


def _is_out_of_reach(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether systemctl could not ask systemd at all: it is missing, or there is no session, or a container."""
    signs = ("failed to connect", "not been booted with systemd", "host is down", "no medium found")
    return done.returncode == NOT_RUN or any(sign in done.stderr.lower() for sign in signs)


class ScheduleStore:
    """Schedules in one of the two schedulers, systemd or cron."""

    kind = ""

    def entries(self) -> list[Entry]:
        raise NotImplementedError

    def add(self, entry: Entry, when: When) -> None:
        raise NotImplementedError

    def remove(self, name: str) -> None:
        raise NotImplementedError

    def describe(self, name: str) -> str:
        raise NotImplementedError

    def next_run(self, when: When) -> str:
        """The next run that the calendar asks for; "" if that is not known."""
        raise NotImplementedError

    def next_of(self, entry: Entry) -> str:
        """When the scheduler runs this one next, as it says itself; or why it does not, in a word or two."""
        raise NotImplementedError

    def delay(self, when: When) -> str:
        """How much later a run may begin."""
        return ""

    def hints(self, when: When) -> list[str]:
        return []


class Systemd(ScheduleStore):
    """Units of the system for root, else of the user."""

    kind = "systemd"

    def __init__(self) -> None:
        self._system = os.geteuid() == 0
        config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        user = FilePath(config) / "systemd" / "user"
        self.folder = FilePath(SYSTEM_UNITS) if self._system else user
        self._failed: list[str] = []

    @staticmethod
    def is_there() -> bool:
        return os.path.isdir(RUNNING)

    def entries(self) -> list[Entry]:
        found = []
        for path in sorted(self.folder.glob("zkeep-backup-*.timer")):
            if not path.is_file():  # opening a pipe would wait
                continue
            with path.open(encoding="utf-8", errors="replace") as file:
                entry = timers.read_mark(file.readline(1 << 20).rstrip("\n"))
            found += [entry] if entry is not None else []
        return found

    def add(self, entry: Entry, when: When) -> None:
        self._check(when)
        make_folder(self.folder)
        before = self._content(entry.name)
        try:
            unit = timers.service(entry, environment(), system=self._system)
            self._write(f"{entry.name}.service", unit.encode("utf-8", "surrogateescape"))
            self._write(f"{entry.name}.timer", timers.timer(entry, when).encode("utf-8", "surrogateescape"))
            for words in (["daemon-reload"], ["enable", "--now", f"{entry.name}.timer"]):
                done = self._systemctl(*words)
                if done.returncode and not _is_out_of_reach(done):
                    why = " ".join(done.stderr.split()) or f"status {done.returncode}"
                    raise Refused(f"cannot schedule: systemctl {words[0]} failed: {why}")
        except (OSError, Refused):
            self._put_back(before)
            raise

    def _content(self, name: str) -> dict[str, bytes | None]:
        """The units as they are; None for one that is not there."""
        found: dict[str, bytes | None] = {}
        for ending in ENDINGS:
            try:
                found[f"{name}.{ending}"] = (self.folder / f"{name}.{ending}").read_bytes()
            except FileNotFoundError:
                found[f"{name}.{ending}"] = None
        return found

    def _put_back(self, before: dict[str, bytes | None]) -> None:
        """Let the units be as they were.

        Raises:
            TryAgain: that failed, too.
        """
        try:
            for name, content in before.items():
                if content is None:
                    (self.folder / name).unlink(missing_ok=True)
                elif (self.folder / name).read_bytes() != content:
                    self._write(name, content)
        except OSError as error:
            raise TryAgain(f"the schedule is changed in part: run the same again: {error}") from None

    def _check(self, when: When) -> None:
        """Raises WrongUsage: systemd does not take the expression."""
        if when.kind != "calendar" or shutil.which("systemd-analyze") is None:
            return
        done = _run(["systemd-analyze", "calendar", "--", when.text])
        if done.returncode:
            raise WrongUsage(f"--calendar: {' '.join(done.stderr.split()) or 'systemd does not take it'}")
        if "Next elapse: never" in done.stdout:
            raise WrongUsage(f"--calendar {shown(when.text)}: that time never comes")

    def _write(self, name: str, content: bytes) -> None:
        fresh = self.folder / f".{name}.new"
        try:
            fresh.write_bytes(content)
            fresh.replace(self.folder / name)
        finally:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)

    def _systemctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Where it cannot be reached now (no session, a container), the user is told what to call."""
        called = ["systemctl", *([] if self._system else ["--user"]), *words]
        done = _run(called)
        if done.returncode:
            self._failed.append(" ".join(called))
        return done

    def remove(self, name: str) -> None:
        self._systemctl("disable", "--now", f"{name}.timer")
        try:
            # The timer last: by it the same call finds what is left to do.
            for ending in ENDINGS:
                (self.folder / f"{name}.{ending}").unlink(missing_ok=True)
        except OSError as error:
            raise TryAgain(f"it is stopped, and its units are not all removed: run the same again: {error}") from None
        self._systemctl("daemon-reload")

    def describe(self, name: str) -> str:
        return f"{self.folder / name}.timer and .service"

    def delay(self, when: When) -> str:
        return f", and up to {timers.delay_minutes(when)} minutes later"

    def next_run(self, when: When) -> str:
        # systemd itself knows best: it passes over a time that the clock skips in spring.
        for line in _run(["systemd-analyze", "calendar", "--", when.on_calendar]).stdout.splitlines():
            if line.strip().startswith("Next elapse:"):
                return _minute(line.partition(":")[2].strip())
        at = when.next_after(datetime.now())
        return _shown(at) if at is not None else ""

    def next_of(self, entry: Entry) -> str:
        names = ("ActiveState", "SubState", "NextElapseUSecRealtime")
        asked = [f"--property={name}" for name in names]
        done = _run(["systemctl", *([] if self._system else ["--user"]), "show", *asked, "--", f"{entry.name}.timer"])
        said = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
        if done.returncode or not said.get("ActiveState"):
            return self.next_run(timers.read_when(entry.when)) or "-"
        if said["ActiveState"] != "active":
            return "never: its timer is stopped"
        return "now" if said.get("SubState") == "running" else _minute(said.get("NextElapseUSecRealtime", "")) or "-"

    def hints(self, when: When) -> list[str]:
        lines = [f"systemd was not reached; then call: {called}" for called in self._failed]
        name = pwd.getpwuid(os.getuid()).pw_name if not self._system else ""
        if not self._system and not os.path.exists(f"/var/lib/systemd/linger/{name}"):
            lines.append("it runs while you are logged in; also otherwise after: loginctl enable-linger")
        return lines


class Cron(ScheduleStore):
    """The user's crontab."""

    kind = "cron"

    def entries(self) -> list[Entry]:
        return list(timers.entries(self._read()))

    def add(self, entry: Entry, when: When) -> None:
        line = timers.cron_line(entry, when, environment())
        if shutil.which("crontab") is None:
            what = "no crontab" if Systemd.is_there() else "neither systemd nor crontab"
            way = "install cron, or let another scheduler do what this line of a crontab says"
            raise Refused(f"cannot schedule: there is {what} here; {way}: {line}")
        self._write(timers.added(self._read(), entry, line))

    def remove(self, name: str) -> None:
        self._write(timers.without(self._read(), name))

    def describe(self, name: str) -> str:
        return "a line of your crontab"

    def next_run(self, when: When) -> str:
        at = when.next_by_cron(datetime.now(), is_due=False)
        return _shown(at) if at is not None else ""

    def next_of(self, entry: Entry) -> str:
        when, now = timers.read_when(entry.when), datetime.now()
        try:
            job = Job(parse_source(entry.source, registry().pools()), parse_destination(entry.destination))
            at = when.next_by_cron(now, is_due=when.due is not None and due.is_due(job, when, now))
        except ZkeepError:  # the comment was changed by hand
            at = None
        return _shown(at) if at is not None else "-"

    def hints(self, when: When) -> list[str]:
        if when.due is not None:
            return [f"cron looks every hour whether it is due: one that is missed at {when.due} begins later"]
        return ["cron makes up for nothing: a time at which this machine is off is missed"]

    def _read(self) -> str:
        """An empty one where there is none yet: `crontab -l` fails then.

        Raises:
            Refused: there may be one that cannot be read, and must not be replaced.
        """
        if shutil.which("crontab") is None:
            return ""
        done = _run(["crontab", "-l"])
        if done.returncode and "no crontab" not in done.stderr.lower():
            raise Refused(f"cannot read your crontab: {' '.join(done.stderr.split())}")
        return "" if done.returncode else done.stdout

    def _write(self, content: str) -> None:
        done = _run(["crontab", "-"], content)
        if done.returncode:
            raise Refused(f"cannot write your crontab: {' '.join(done.stderr.split())}")
