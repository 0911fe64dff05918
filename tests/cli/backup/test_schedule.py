"""zkeep schedule: what it writes, lists and removes."""

from __future__ import annotations

import re
import shlex
from datetime import datetime, tzinfo
from pathlib import Path

import pytest

from zkeep.backup.local import Job
from zkeep.backup.places import parse_destination, parse_source
from zkeep.cli.backup import due, schedule
from zkeep.cli.main import run

CRONTAB = """#!/bin/sh
if [ "$1" = -l ]; then [ -e {file} ] || {{ echo 'no crontab for me' >&2; exit 1; }}; exec cat {file}; fi
exec cat > {file}
"""


class Machine:
    """A home, systemd's folder of units, and programs that note how they were called."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.units, self.tab, self.calls = folder / "systemd" / "user", folder / "tab", folder / "calls"
        self._capfd = capfd

    def __call__(self, *words: str) -> tuple[int, str, str]:
        status = run(["schedule", *words])
        return (status, *self._capfd.readouterr())


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Machine:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "systemctl").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "calls"}\n')
    (programs / "crontab").write_text(CRONTAB.format(file=tmp_path / "tab"))
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(schedule, "RUNNING", str(tmp_path))
    monkeypatch.setattr(schedule, "SYSTEM_UNITS", str(tmp_path / "systemd" / "user"))
    key = tmp_path / "key"
    key.write_bytes(bytes(32))
    key.chmod(0o600)
    (tmp_path / "docs").mkdir()
    assert run(["pool", "create", "usb", str(tmp_path / "pool")]) == 0
    keys = ["-o", "encryption=on", "-o", "keyformat=raw", "-o", f"keylocation={key.as_uri()}"]
    assert run(["create", *keys, "usb/docs"]) == 0
    assert run(["unload-key", "usb/docs"]) == 0
    capfd.readouterr()
    return Machine(tmp_path, capfd)


def test_units_are_written_listed_and_removed(machine: Machine, tmp_path: Path) -> None:
    docs = str(tmp_path / "docs")
    status, out, err = machine(
        docs, "usb/docs", "--daily", "02:30", "--exclude", "*.o", "--ping", "https://hc.example/1"
    )
    assert (status, err) == (0, "")
    assert "next run: " in out
    service, timer = sorted(machine.units.iterdir())
    (exec_start,) = [line for line in service.read_text().splitlines() if line.startswith("ExecStart=")]
    assert exec_start.endswith(f'backup --exclude "*.o" --ping https://hc.example/1 {docs} usb/docs')
    assert f"Environment=ZKEEP_HOME={tmp_path / 'home'}" in service.read_text()
    assert "OnCalendar=*-*-* 02:30:00\nPersistent=true\nRandomizedDelaySec=" in timer.read_text()
    assert machine.calls.read_text().splitlines()[-1].endswith(f"enable --now {timer.name}")
    assert machine(docs, "usb/docs", "--hourly")[0] == 0  # in its place
    status, out, err = machine()
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [[docs, "usb/docs"]]
    assert machine("--remove", docs, "usb/docs")[0] == 0
    assert list(machine.units.iterdir()) == []
    status, out, err = machine("--remove", docs, "usb/docs")
    assert (status, out) == (1, "")
    assert machine() == (0, "", "no backups are scheduled\n")


def test_a_line_of_cron(machine: Machine, tmp_path: Path) -> None:
    docs = str(tmp_path / "docs")
    machine.tab.write_text("0 5 * * * other\n")
    status, out, _ = machine("--cron", docs, "usb/docs", "--weekly", "Sun 03:00")
    assert (status, "one that is missed at Sun 03:00 begins later" in out) == (0, True)
    other, _, line = machine.tab.read_text().splitlines()
    assert line.startswith("0 * * * * env ZKEEP_HOME=")
    assert line.endswith(f"backup --due 'Sun 03:00' {docs} usb/docs")
    assert machine()[1].split()[-1] == "cron"
    assert machine("--remove", docs, "usb/docs")[0] == 0
    assert machine.tab.read_text() == f"{other}\n"
    status, out, _ = machine("--cron", docs, "usb/docs", "--calendar", "0 3 * * 1-5")
    assert (status, "a time at which this machine is off is missed" in out) == (0, True)
    assert "--due" not in machine.tab.read_text()


@pytest.mark.parametrize("systemd", [True, False])
@pytest.mark.parametrize(
    ("when", "line"),
    [
        (("--daily", "02:30"), r": 30 \* \* \* \* env ZKEEP_HOME=[^ ]+ [^ ]+ backup --due 02:30 [^ ]+/docs usb/docs$"),
        (("--weekly", "Sun 03:00"), r" backup --due 'Sun 03:00' [^ ]+/docs usb/docs$"),
        (("--calendar", "5 4 * * 1"), r": 5 4 \* \* 1 env ZKEEP_HOME=[^ ]+ [^ ]+ backup [^ ]+/docs usb/docs$"),
    ],
)
def test_without_a_scheduler_the_way_out_is_what_another_one_can_run(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: tuple[str, str], line: str, systemd: bool
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    if not systemd:
        monkeypatch.setattr(schedule, "RUNNING", str(tmp_path / "nothing"))
    status, out, err = machine(*(["--cron"] if systemd else []), str(tmp_path / "docs"), "usb/docs", *when)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert ("there is no crontab here; " if systemd else "neither systemd nor crontab here; ") in err
    assert re.search(line, err.rstrip("\n")), err


def test_a_unit_tries_again_until_it_is_done(machine: Machine, tmp_path: Path) -> None:
    """A laptop may be without a network all day: systemd's own limit of starts must not end it."""
    assert machine(str(tmp_path / "docs"), "usb/docs", "--daily", "12:30")[0] == 0
    (service,) = machine.units.glob("*.service")
    unit = service.read_text().splitlines()
    assert {"StartLimitIntervalSec=0", "Restart=on-failure", "RestartSec=15min"} <= set(unit)
    assert "StartLimitBurst" not in service.read_text()


def test_a_line_of_cron_catches_up(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The line is run every hour; the machine was off at the time of the backup, or the backup failed."""
    docs = str(tmp_path / "docs")
    (tmp_path / "docs" / "a").write_bytes(b"x")
    now = [datetime(2026, 11, 28, 12, 0)]

    class Then(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return now[0]

    for module in ("zkeep.cli.backup.backup.datetime", "zkeep.cli.backup.schedule.datetime"):
        monkeypatch.setattr(module, Then)
    assert machine("--cron", docs, "usb/docs", "--daily", "02:30")[0] == 0
    line = machine.tab.read_text().splitlines()[-1]
    words = shlex.split(line.partition(" backup ")[2])
    assert words[:2] == ["--due", "02:30"]
    key = ["-L", (tmp_path / "key").as_uri()]

    def snapshots() -> int:
        capfd.readouterr()
        assert run(["list", "-H", "-t", "snapshot", "usb/docs"]) == 0
        return capfd.readouterr().out.count("\n")

    # The first is due at its next time, not at once; then once, however often it is looked after.
    counts = []
    for day, hour in ((28, 13), (29, 1), (29, 7), (29, 8), (30, 2), (30, 3), (30, 4)):
        now[0] = datetime(2026, 11, day, hour, 30)
        assert run(["backup", *key, *words]) == 0
        counts.append(snapshots())
    assert counts == [0, 0, 1, 1, 2, 2, 2]
    # One that fails is tried again.
    now[0] = datetime(2026, 12, 1, 9, 30)
    (tmp_path / "docs").rename(tmp_path / "away")
    assert run(["backup", *key, *words]) == 1
    (tmp_path / "away").rename(tmp_path / "docs")
    now[0] = datetime(2026, 12, 1, 10, 30)
    assert run(["backup", *key, *words]) == 0
    assert snapshots() == 3
    # What a clock noted that was years ahead keeps nothing from being done; nor does a note that is none.
    (noted,) = (tmp_path / "home" / "backups").iterdir()
    for text in ("99999999999\n", "", "\0\n", "9" * 40):
        noted.write_text(text)
        before = snapshots()
        assert run(["backup", *key, *words]) == 0
        assert snapshots() == before + 1
    assert run(["backup", "--due", "noon", docs, "usb/docs"]) == 2


def test_the_list_says_when_each_runs_next(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By systemd, which knows what its own delay adds; by cron, which makes up for what was missed."""

    class Then(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return now

    now = datetime(2026, 11, 28, 12, 0)
    monkeypatch.setattr("zkeep.cli.backup.schedule.datetime", Then)
    docs = str(tmp_path / "docs")

    def following() -> list[str]:
        return [re.split("  +", line)[3] for line in machine()[1].splitlines()[1:]]

    assert "next run: " in machine(docs, "usb/docs", "--hourly")[1]
    program = tmp_path / "bin" / "systemctl"
    for said, shown in (
        ("ActiveState=active 'NextElapseUSecRealtime=Sun 2026-11-29 02:41:07 CET'", "Sun 2026-11-29 02:41"),
        ("ActiveState=active SubState=running NextElapseUSecRealtime=", "now"),
        ("ActiveState=inactive SubState=dead NextElapseUSecRealtime=", "never: its timer is stopped"),
    ):
        program.write_text(f"#!/bin/sh\nprintf '%s\\n' {said}\n")
        assert following() == [shown]
    program.write_text("#!/bin/sh\nexit 1\n")  # no session: the calendar is what is known
    assert re.fullmatch(r"[A-Z][a-z]{2} 20\d\d-\d\d-\d\d \d\d:\d\d", following()[0])
    program.write_text("#!/bin/sh\n")
    assert machine("--remove", docs, "usb/docs")[0] == 0
    for words, at in (
        (("--daily", "02:30"), "Sun 2026-11-29 02:30"),
        (("--weekly", "Fri 02:30"), "Fri 2026-12-04 02:30"),
        (("--calendar", "15 3 * * 1-5"), "Mon 2026-11-30 03:15"),
    ):
        assert f"next run: {at}\n" in machine("--cron", docs, "usb/docs", *words)[1]
        assert following() == [at]
    assert machine("--cron", docs, "usb/docs", "--daily", "02:30")[0] == 0
    now = datetime(2026, 12, 5, 9, 40)  # a week asleep
    assert following() == ["Sat 2026-12-05 10:30"]
    machine.tab.write_text(machine.tab.read_text().replace('"destination": "usb/docs"', '"destination": "//"'))
    assert following() == ["-"]


def test_a_time_that_never_comes_is_refused(machine: Machine, tmp_path: Path) -> None:
    docs = str(tmp_path / "docs")
    for words in (("--calendar", "2020-01-01"), ("--cron", "--calendar", "0 0 31 2 *")):
        status, _, err = machine(docs, "usb/docs", *words)
        assert (status, "that time never comes" in err) == (2, True), err
    assert not machine.units.exists()


@pytest.mark.usefixtures("berlin")
def test_a_backup_is_made_once_where_its_time_comes_twice(machine: Machine, tmp_path: Path) -> None:
    """The clock goes back at 3:00 on 2026-10-25: 2:30 comes again, and what was done then seems to lie ahead."""
    job = Job(parse_source(str(tmp_path / "docs"), []), parse_destination("usb/docs"))
    due.note(job, datetime(2026, 10, 25, 2, 40))
    for again in (datetime(2026, 10, 25, 2, 30, fold=1), datetime(2026, 10, 26, 2, 29)):
        assert not due.is_due(job, due.parse_due("02:30"), again)
    assert due.is_due(job, due.parse_due("02:30"), datetime(2026, 10, 26, 2, 30))


def test_the_only_backup_need_not_be_named(machine: Machine, tmp_path: Path) -> None:
    docs, key = tmp_path / "docs", (tmp_path / "key").as_uri()
    status, _, err = machine("--daily", "02:30")
    assert (status, err.splitlines()[-1]) == (2, "zkeep: name the backup: SRC DEST")
    (docs / "a").write_bytes(b"x")
    assert run(["backup", "-L", key, str(docs), "usb/docs"]) == 0
    for words in ((), (str(docs),)):
        assert machine("--daily", "02:30", *words)[0] == 0
    assert machine()[1].count("\n") == 2
    assert machine("--remove")[0] == 2
    other = tmp_path / "other docs"
    other.mkdir()
    assert run(["create", "usb/more"]) == 0
    assert run(["set", f"zkeep:backup-source={other}", "zkeep:backup-destination=ssh://box/v/o", "usb/more"]) == 0
    status, _, err = machine("--hourly")
    assert (status, f"'{other}' ssh://box/v/o" in err) == (2, True)


def test_what_never_ran_cannot_be_scheduled(machine: Machine, tmp_path: Path) -> None:
    docs = str(tmp_path / "docs")
    status, _, err = machine(docs, "usb/other", "--hourly")
    assert (status, "it was never made; run it once here: zkeep backup" in err) == (1, True)
    for words in ((docs, "usb/docs"), ("--hourly",), (docs, "--hourly"), (docs, "usb/docs", "--daily", "noon")):
        assert machine(*words)[0] == 2
    assert machine(docs, "usb/docs", "--hourly", "--ping", "ftp://x")[0] == 2
    assert machine("-r", docs, "usb/docs", "--hourly")[0] == 2
    assert not machine.units.exists()


def test_a_crontab_that_cannot_be_read_is_not_replaced(machine: Machine, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "crontab"
    program.write_text("#!/bin/sh\n[ $1 = -l ] && { echo 'permission denied' >&2; exit 1; }\ntouch $0.written\n")
    status, _, err = machine("--cron", str(tmp_path / "docs"), "usb/docs", "--hourly")
    assert (status, "cannot read your crontab: permission denied" in err) == (1, True)
    assert not (tmp_path / "bin" / "crontab.written").exists()


def test_a_run_finds_the_same_home(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "home").rename(tmp_path / "data" / "zkeep")
    monkeypatch.delenv("ZKEEP_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert machine(str(tmp_path / "docs"), "usb/docs", "--hourly")[0] == 0
    (service,) = machine.units.glob("*.service")
    assert f"Environment=ZKEEP_HOME={tmp_path / 'data' / 'zkeep'}\n" in service.read_text()


def test_a_timer_that_systemd_does_not_start_is_an_error(machine: Machine, tmp_path: Path) -> None:
    program, docs = tmp_path / "bin" / "systemctl", str(tmp_path / "docs")
    program.write_text("#!/bin/sh\necho 'Failed to enable unit: Access denied' >&2; exit 1\n")
    status, out, err = machine(docs, "usb/docs", "--hourly")
    assert (status, out, "Failed to enable unit: Access denied" in err) == (1, "", True)
    assert list(machine.units.iterdir()) == []
    program.write_text("#!/bin/sh\necho 'Failed to connect to bus: No medium found' >&2; exit 1\n")
    status, out, err = machine(docs, "usb/docs", "--hourly")
    assert (status, "systemd was not reached; then call: systemctl" in out) == (0, True)
    assert len(list(machine.units.iterdir())) == 2


def test_a_crontab_of_any_bytes_stays_as_it_is(machine: Machine, tmp_path: Path) -> None:
    before, docs = b"0 5 * * * a\r\n# \xff \x85\n", str(tmp_path / "docs")
    machine.tab.write_bytes(before)
    assert machine("--cron", docs, "usb/docs", "--hourly")[0] == 0
    assert machine.tab.read_bytes().startswith(before)
    assert machine("--remove", docs, "usb/docs")[0] == 0
    assert machine.tab.read_bytes() == before


def test_a_dataset_is_asked_before_it_is_scheduled(machine: Machine, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "zfs"
    for said, dest, words, expected in (
        ("printf 'tank/a\\taes-256-gcm\\n'", "usb/a", (), ""),
        ("printf 'tank/a\\toff\\n'", "ssh://box/vault/a", (), "its first backup asks for a key; run it once: zkeep"),
        ("printf 'tank/a\\toff\\ntank/a/b\\taes-256-gcm\\n'", "ssh://box/vault/a", ("-r",), "tank/a/b is: name them"),
        ("echo cannot open >&2; exit 1", "usb/a", (), "cannot open"),
        ("printf 'tank/a\\taes-256-gcm\\n'", "usb/a", ("--exclude", "x"), "nothing can be excluded"),
    ):
        program.write_text(f"#!/bin/sh\n{said}\n")
        program.chmod(0o755)
        status, _, err = machine("zfs:tank/a", dest, "--hourly", *words)
        assert (status, expected in err) == (1 if expected else 0, True), err
    assert len(list(machine.units.glob("*.timer"))) == 1
