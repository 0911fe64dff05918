"""zkeep health of a machine that sends backups: a snapshot that never arrived anywhere makes nothing fine."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backupkit import Laptop
from zkeep.cli.common.pools import opened
from zkeep.names import DatasetName
from zkeep.pool.datasets import sent
from zkeep.pool.datasets.sent import SENT
from zkeep.pool.types import Doc

DAY = 86400
DOCS = DatasetName.parse("local/docs")


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Laptop:
    made = Laptop(tmp_path, monkeypatch, capfd)
    roomy = os.statvfs_result((4096, 4096, 1 << 30, 1 << 29, 1 << 29, 1000, 500, 500, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: roomy)
    assert made.backup().status == 0
    assert made.run("set", "max_age=36h", "local").status == 0
    assert late(made) == ""
    return made


def late(laptop: Laptop) -> str:
    """What health says of the dataset here; empty if it is fine."""
    done = laptop.run("health", "-j")
    problems = json.loads(done.out)["pools"]["local"]["datasets"][str(DOCS)]["problems"]
    assert done.status == (1 if problems else 0), done
    assert {problem["kind"] for problem in problems} <= {"late"}
    return "".join(problem["text"] for problem in problems)


def line(laptop: Laptop, name: str = str(DOCS)) -> str:
    """The line of a dataset in what health -v prints, without the name of its newest snapshot."""
    lines = laptop.run("health", "-v").out.splitlines()
    return re.sub("@backup-[^ ]*", "@backup", next(text for text in lines if text.startswith(f"  {name}: ")))


def change_record(change: Callable[[Doc], Doc | None]) -> None:
    """Change all that was noted of what was sent; None removes it. The dataset was made five days ago."""
    with opened(DOCS) as pool, pool.transaction() as t:
        for key, doc in list(t.scan(SENT)):
            new = change(doc)
            if new is None:
                t.delete(SENT, key)
            else:
                t.put(SENT, key, new)
        pool.update_dataset(t, pool.dataset(DOCS), creation=int(time.time()) - 5 * DAY)


def arrived(days_ago: float) -> None:
    change_record(lambda doc: {**doc, "at": int(time.time() - days_ago * DAY)})


def test_a_server_that_is_gone(laptop: Laptop) -> None:
    arrived(3)
    ssh = laptop.folder / "bin" / "ssh"
    works = ssh.read_bytes()
    ssh.write_text("#!/bin/sh\nexit 255\n")
    (laptop.source / "b").write_bytes(b"more")
    # A snapshot that was taken here, and did not arrive, is no backup.
    take = ("snapshot", "--from", str(laptop.source), "-L", laptop.key.as_uri())
    assert laptop.run(*take, f"{DOCS}@by-hand").status == 0
    assert laptop.backup().status == 5
    assert late(laptop) == "the last snapshot arrived at ssh://box/vault/me 3 days ago, and 36 hours are allowed"
    ssh.write_bytes(works)
    assert laptop.backup().status == 0
    assert late(laptop) == ""


def test_nothing_ever_arrived(laptop: Laptop) -> None:
    change_record(lambda doc: None)
    assert late(laptop) == "no snapshot ever arrived at ssh://box/vault/me"


def test_it_is_sent_elsewhere_now(laptop: Laptop) -> None:
    # What another place has does not count for this one.
    assert laptop.run("set", "zkeep:backup-destination=ssh://new/vault/me", str(DOCS)).status == 0
    change_record(lambda doc: doc)
    assert late(laptop) == "no snapshot ever arrived at ssh://new/vault/me"


def test_it_arrived_by_a_clock_that_was_ahead(laptop: Laptop) -> None:
    arrived(-300)
    why = "the last snapshot arrived at ssh://box/vault/me 300 days from now, by a clock that was wrong"
    assert late(laptop) == why


def test_what_stays_here_counts_by_its_snapshots(laptop: Laptop) -> None:
    assert laptop.run("set", "zkeep:backup-destination=local/docs", str(DOCS)).status == 0
    change_record(lambda doc: None)
    assert late(laptop) == ""


def test_a_clock_that_was_ahead_once_is_over_with_the_next_backup(
    laptop: Laptop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sent, "seconds_now", lambda: int(time.time()) + 5 * 365 * DAY)
        assert laptop.backup().status == 0
    assert "from now, by a clock that was wrong" in late(laptop)
    assert laptop.backup().status == 0
    assert late(laptop) == ""


def test_what_was_taken_is_not_said_to_be_received(laptop: Laptop) -> None:
    arrived(0)
    said = f"  {DOCS}: @backup taken \\d+ seconds? ago, arrived at ssh://box/vault/me \\d seconds? ago"
    assert re.fullmatch(said, line(laptop))
    # Nothing new arrives: it is the earlier one that did.
    (laptop.folder / "bin" / "ssh").write_text("#!/bin/sh\nexit 255\n")
    assert laptop.run("snapshot", "--from", str(laptop.source), "-L", laptop.key.as_uri(), f"{DOCS}@mine").status == 0
    arrived(3)
    said = f"  {DOCS}: .*@mine taken \\d seconds? ago, @backup arrived at ssh://box/vault/me 3 days ago"
    assert re.fullmatch(said, line(laptop))
    found = json.loads(laptop.run("health", "-j").out)["pools"]["local"]["datasets"][str(DOCS)]
    assert (found["made_here"], found["arrived"]["to"], found["newest"]) == (True, "ssh://box/vault/me", "mine")
    assert re.search(r"zkeep_last_arrival_timestamp_seconds.dataset=.local/docs.. 1\.\d+e", laptop.run("metrics").out)


def test_what_never_arrived_is_said_not_to_have(laptop: Laptop) -> None:
    change_record(lambda doc: None)
    assert re.search(r" \d+ seconds? ago, none arrived at ssh://box/vault/me yet$", line(laptop))


def test_what_stays_here_arrives_nowhere(laptop: Laptop) -> None:
    assert laptop.run("pool", "create", "usb", str(laptop.folder / "usb")).status == 0
    assert laptop.backup(to="usb/docs").status == 0
    assert re.fullmatch(r"  usb/docs: @backup taken \d+ seconds? ago", line(laptop, "usb/docs"))


def test_a_server_says_received(laptop: Laptop) -> None:
    said = laptop.serve("health", "-v").out
    assert re.search(r"vault/me: @backup-[^ ]+ received \d+ seconds? ago$", said, re.MULTILINE)
