"""The exit status is true at whichever call fails: verbs that write files, and that encrypt streams.

See test_exit_status.py. Here calls of all rooms fail, not those of the pool alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "badinput"))
from badkit import stamped, taken_apart
from faultkit import DATA, Bench, Verb, called, judge, unload

import keykit
from zkeep.cli.backup import schedule
from zkeep.format.records import RecordType

NEW = "-o encryption=on -o keyformat=raw -o keylocation=file://{place}/new"
PLAIN = "opened/story/plain-blanc-2018.zfs"
LOAD = "load-key -a"
SCHEDULE = "schedule --daily 02:30 {place}/folder vault/plan"
HOURLY = "schedule --hourly {place}/folder vault/plan"
EVERYWHERE = "zkeep."
PROGRAM = """#!/bin/sh
case "$1" in -l) exec cat {out}/tab;; -) exec cat > {out}/tab;; esac
"""
VERBS = {
    "encrypt": Verb("encrypt vault/docs/plain", PLAIN, first=LOAD, random=True),
    "encrypt in steps": Verb(
        "encrypt -o contents=metadata vault/docs/plain",
        "{place}/plain",
        first=LOAD,
        random=True,
        way_out="destroy -r vault/docs/plain",
    ),
    "receive -x encryption": Verb("receive -x encryption vault/docs/plain", PLAIN, first=LOAD, random=True),
    "receive -s -x encryption": Verb(
        "receive -s -x encryption vault/docs/plain", PLAIN, first=LOAD, random=True, stepwise=True
    ),
    "key restore": Verb("key restore -o {place}/out/again {place}/sheet", room=EVERYWHERE),
    "key restore -f": Verb("key restore -f -o {place}/out/key {place}/sheet", room=EVERYWHERE),
    "key sheet": Verb("key sheet -L file://{place}/new -o {place}/out/made vault/docs", room=EVERYWHERE),
    "schedule": Verb(SCHEDULE, room=EVERYWHERE),
    "schedule again": Verb(SCHEDULE, first=HOURLY, room=EVERYWHERE, parts=True),
    "schedule --remove": Verb("schedule --remove {place}/folder vault/plan", first=HOURLY, room=EVERYWHERE, parts=True),
    "schedule --cron": Verb(f"{SCHEDULE} --cron", room=EVERYWHERE),
    "shim": Verb("shim {place}/out/bin", room=EVERYWHERE, parts=True),
    "help --man-pages": Verb("help --man-pages {place}/out/man", room=EVERYWHERE, stepwise=True),
    "set contents": Verb("set contents=metadata vault/docs@first"),
    "release -r": Verb("release -r tag vault/docs@first"),
    "snapshot --from": Verb(
        "snapshot --from {place}/folder -L file://{place}/new vault/docs@more", random=True, room=EVERYWHERE
    ),
    "extract": Verb(
        "extract -C {place}/out/files -L file://{place}/new vault/docs@first", room=EVERYWHERE, stepwise=True
    ),
    "restore": Verb("restore -C {place}/out/files -L file://{place}/new vault/docs", room=EVERYWHERE, stepwise=True),
    "destroy -r": Verb("destroy -r vault/spare", room=EVERYWHERE),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    top = tmp_path_factory.mktemp("template")
    keykit.write(top / "new", bytes(range(32)))
    (top / "folder").mkdir()
    (top / "folder" / "letter").write_text("Dear")
    (top / "folder" / "second").write_bytes(bytes(range(256)) * 300)
    records = taken_apart((DATA / PLAIN).read_bytes())
    if records[1].rtype == RecordType.END:  # a package: of its one snapshot, the records between
        records = records[2:-1]
    (top / "plain").write_bytes(stamped(records))
    (top / "out").mkdir()
    (top / "out" / "key").write_text("another")
    (top / "out" / "tab").write_text("0 5 * * * other\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZKEEP_HOME", str(top / "home"))
        patch.setenv("ZKEEP_AGENT", str(top.with_name("run") / "agent"))
        for line in (
            f"pool create vault {top / 'vault'}",
            f"create {NEW.format(place=top)} vault/docs",
            f"create {NEW.format(place=top)} vault/plan",
            f"key sheet -L file://{top}/new -o {top}/sheet vault/docs",
            f"snapshot --from {top}/folder -L file://{top}/new vault/docs@first",
            "hold tag vault/docs@first",
            "create -p vault/spare/below",
        ):
            assert called(line) == 0, line
    yield top
    unload(top)


@pytest.mark.parametrize("verb", VERBS)
def test_p3_the_exit_status_says_what_is_true_of_files(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], verb: str
) -> None:
    place = tmp_path / "place"
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "systemctl").write_text("#!/bin/sh\n")
    (programs / "crontab").write_text(PROGRAM.format(out=place / "out"))
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place / "out"))
    monkeypatch.setattr(schedule, "RUNNING", str(tmp_path))
    monkeypatch.setattr(schedule, "SYSTEM_UNITS", str(place / "out" / "systemd" / "user"))
    bench = Bench(template, place, VERBS[verb], monkeypatch)
    wrong = judge(bench, VERBS[verb], capfd)
    assert not wrong, "\n".join(wrong)
