"""What extract and verify tell on a terminal."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from zkeep.cli.common.progress import Meter, amount
from zkeep.cli.common.sink import Sink
from zkeep.cli.pool.pool import _report as pool_report
from zkeep.cli.pool.scrub import scan_lines
from zkeep.cli.send import SendProgress as Ticker
from zkeep.names import DatasetName
from zkeep.pool.datasets.lifecycle import Status
from zkeep.pool.datasets.model import Dataset, Snapshot
from zkeep.pool.transfer.send import Leg
from zkeep.restore.files.extract import ExtractProgress


@pytest.mark.parametrize(
    ("total", "progress", "seconds", "line"),
    [
        (10 << 20, ExtractProgress(3, 1 << 20), 1.0, "3 files, 1M of 10M, 1M/s, 0:09 left"),
        (10 << 20, ExtractProgress(3, 1 << 20, 1, 5 << 20), 1.0, "3 files, 1M of 10M, 1M/s, 0:04 left"),
        (1 << 40, ExtractProgress(3, 1 << 30), 10.0, "3 files, 1G of 1T, 102M/s, 2:50:30 left"),
        (0, ExtractProgress(3, 1 << 20), 2.0, "3 files, 1M, 512K/s"),
        (1 << 20, ExtractProgress(3, 2 << 20), 2.0, "3 files, 2M, 1M/s"),
        (1 << 20, ExtractProgress(0, 0), 0.0, "0 files, 0 of 1M, 0/s"),
    ],
)
def test_it_tells_how_much_how_fast_and_how_long_still(
    total: int, progress: ExtractProgress, seconds: float, line: str
) -> None:
    assert Meter(total).line(progress, seconds) == line


@pytest.mark.parametrize(
    ("done", "total", "seconds", "text"),
    [
        (1 << 20, 10 << 20, 1.0, "1M of 10M, 1M/s, 0:09 left"),
        (1 << 20, 0, 2.0, "1M, 512K/s"),
        (2 << 20, 1 << 20, 2.0, "2M, 1M/s"),
        (0, 1 << 20, 0.0, "0 of 1M, 0/s"),
        (1 << 30, 1 << 40, 10.0, "1G of 1T, 102M/s, 2:50:30 left"),
    ],
)
def test_what_is_counted_in_bytes(done: int, total: int, seconds: float, text: str) -> None:
    assert amount(done, total, seconds) == text


class _Written(Sink):
    def __init__(self, *sizes: int) -> None:
        self._sizes = list(sizes)

    @property
    def written(self) -> int:
        return self._sizes.pop(0)


@pytest.mark.parametrize(
    ("parsable", "line"), [(False, "23:59:01   1.50M   v/a@mon"), (True, "23:59:01\t1572864\tv/a@mon")]
)
def test_a_line_of_send_is_that_of_zfs(parsable: bool, line: str) -> None:
    assert Ticker(_Written((3 << 19) + 312), parsable=parsable).line("23:59:01", "v/a@mon", 312) == line


def test_send_says_which_snapshot_and_how_much(capsys: pytest.CaptureFixture[str]) -> None:
    dataset = Dataset(DatasetName("v/a"), {})
    leg = Leg(Snapshot(dataset, {"name": "mon"}), None)
    shows = Ticker(_Written(0, 1 << 20), parsable=False, every=0.0)
    shows.begin(leg)
    told = threading.Event()
    shows.line = lambda *_: told.set() or "a line"  # type: ignore[method-assign,func-returns-value,assignment]
    with shows:
        assert told.wait(60)
    err = capsys.readouterr().err
    assert err.startswith("TIME        SENT   SNAPSHOT v/a@mon\na line\n")


# What pool status says of scrubs


def status(**fields: object) -> Status:
    return Status(name="v", path=Path("/srv/v"), health="ONLINE", **fields)  # type: ignore[arg-type]


DONE = {"bytes": 3 << 20, "seconds": 62.0, "errors": [], "finished": 1_700_000_000}
BEGUN = {"started": 1_700_000_000, "at": 1_700_000_010.0, "done": 10 << 20, "total": 40 << 20}


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def test_a_scrub_in_progress() -> None:
    assert scan_lines(status(begun=BEGUN, scrubbing=True)) == [
        "scrub in progress since Tue Nov 14 22:13:20 2023",
        "10M / 40M scanned at 1M/s",
        "0B repaired, 25.00% done, 00:00:30 to go",
    ]
    assert scan_lines(status(scrubbing=True)) == ["scrub in progress"]
    assert scan_lines(status(begun={**BEGUN, "done": 0}, scrubbing=True))[2].endswith("no estimated completion time")


def test_a_scrub_that_was_interrupted() -> None:
    assert scan_lines(status(begun=BEGUN, scrub=None)) == [
        "scrub canceled or interrupted on Tue Nov 14 22:13:30 2023, 25.00% done",
        "before: none requested",
    ]
    assert scan_lines(status(begun=BEGUN, scrub={**DONE, "finished": 1_700_000_100}))[0].startswith("scrub verified")


def test_a_scrub_that_ended() -> None:
    assert scan_lines(status()) == ["none requested"]
    assert scan_lines(status(scrub=DONE)) == ["scrub verified 3M in 00:01:02 with 0 errors on Tue Nov 14 22:13:20 2023"]


@pytest.mark.parametrize(
    ("health", "trouble", "words"),
    [
        ("DEGRADED", "", "'zkeep pool scrub v'"),
        ("FAULTED", "catalog.sqlite is not what was stored", "'zkeep pool scrub --rebuild-catalog v'"),
        (
            "UNAVAIL",
            "there is no pool in /srv/a-path-that-is-longer-than-any-line-of-eighty-characters-may-be",
            "export",
        ),
    ],
)
def test_status_says_what_is_wrong_and_what_to_do(health: str, trouble: str, words: str) -> None:
    report = pool_report(replace(status(scrub={**DONE, "errors": ["x"]}), health=health, trouble=trouble), False)
    heads = [line.partition(":")[0].strip() for line in report.splitlines() if line[:1] not in ("\t", "")]
    assert heads == ["pool", "state", "status", "action", "scan", "config", "errors"]
    action = " ".join(report.partition("action: ")[2].partition("\n  scan:")[0].split())
    assert words in action
    assert f"status: {trouble}" in report
    assert all(len(line) <= 80 for line in report.splitlines() if trouble not in line or not trouble)


def test_status_of_a_pool_that_is_well_gives_no_advice() -> None:
    assert "action:" not in pool_report(status(scrub=DONE), False)
