"""zkeep health and metrics, and telling somebody when health changes."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from zkeep.cli.common import examined
from zkeep.cli.common.pools import opened
from zkeep.cli.health import notify
from zkeep.cli.main import run
from zkeep.errors import TryAgain
from zkeep.names import DatasetName, SnapshotName
from zkeep.pool.datasets.model import Pool, txg_key
from zkeep.pool.maintenance import verified

Shell = Callable[..., str]
DAY = 86400


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZKEEP_WAIT", "0.05")
    fields = os.statvfs(tmp_path)
    roomy = os.statvfs_result((*list(fields)[:2], 1000, 500, 500, *list(fields)[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: roomy)

    def call(*words: str, status: int = 0) -> str:
        assert run(list(words)) == status
        return "".join(capfd.readouterr())

    call("pool", "create", "v", str(tmp_path / "v"))
    add("v/a@1", 1)
    return call


def add(name: str, age: float) -> None:
    """A snapshot that was received `age` days ago."""
    wanted = SnapshotName.parse(name)
    with opened(wanted) as pool, pool.transaction() as t:
        dataset = pool.find(wanted.dataset) or pool.create_dataset(t, wanted.dataset)
        txg = t.next_txg()
        numbers = dict.fromkeys(("file_bytes", "records", "features", "fromguid", "from_txg", "maxblkid"), 0)
        doc = {"txg": txg, "segments": [], "bytes": 100, "logical": 100, "dead": {}, "whole": True, **numbers}
        t.put("run", txg_key(dataset.id, txg), doc)
        pool.add_snapshot(t, dataset, wanted.name, txg, txg * 1000, received_at=int(time.time() - age * DAY))


def kinds(shell: Shell, status: int, *words: str) -> dict[str, list[str]]:
    """The kinds of problems by name; the pool's own under its name."""
    found = json.loads(shell("health", "-j", *words, status=status))["pools"]
    things = {**found, **{name: d for pool in found.values() for name, d in pool["datasets"].items() if "/" in name}}
    return {name: [p["kind"] for p in d["problems"]] for name, d in things.items() if d["problems"]}


def test_all_is_well(shell: Shell) -> None:
    assert kinds(shell, 0) == {}
    assert "v/a: @1 received 24 hours ago" in shell("health", "-v")
    assert shell("health").count("\n") == 1


def test_late_is_what_is_older_than_max_age(shell: Shell) -> None:
    shell("set", "max_age=2d", "v")
    assert kinds(shell, 0) == {}
    shell("set", "max_age=12h", "v")
    assert kinds(shell, 1) == {"v/a": ["late"]}
    assert "  v/a: LATE: the newest snapshot is 24 hours old, and may be 12 hours; @1" in shell("health", status=1)
    assert kinds(shell, 1, "v/a") == {"v/a": ["late"]}
    shell("set", "max_age=none", "v/a")
    assert kinds(shell, 0) == {}


def test_a_place_that_never_received_anything_is_late_when_its_time_is_up(shell: Shell) -> None:
    shell("create", "v/new")
    shell("set", "max_age=2d", "v")
    assert kinds(shell, 0) == {}
    with opened("v") as pool, pool.transaction() as t:
        pool.update_dataset(t, pool.dataset(DatasetName.parse("v/new")), creation=int(time.time()) - 3 * DAY)
    assert kinds(shell, 1) == {"v/new": ["late"]}


def test_damage_full_quota_and_scrubs(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened("v") as pool, pool.transaction() as t:
        t.put("pool", "", {**pool.doc, "created": int(time.time()) - 40 * DAY})
    assert kinds(shell, 1) == {"v": ["unverified"]}
    shell("set", "max_scrub_age=none", "v")
    shell("set", "quota=100", "v/a")
    assert kinds(shell, 1) == {"v/a": ["full"]}
    shell("set", "quota=none", "v/a")
    with opened("v") as pool, pool.transaction() as t:
        damaged = [pool.dataset(DatasetName.parse("v/a")).id]
        t.put("scrub", "", {"errors": ["x"], "damaged": damaged, "finished": int(time.time())})
    assert kinds(shell, 3) == {"v": ["damaged"], "v/a": ["damaged"]}
    few = os.statvfs_result((*list(os.statvfs("/"))[:2], 1000, 500, 49, *list(os.statvfs("/"))[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: few)
    assert kinds(shell, 3)["v"] == ["damaged", "full"]


def test_an_unfinished_receive_is_told(shell: Shell) -> None:
    fields = dict.fromkeys(("txg", "toguid", "fromguid", "features", "object", "offset"), 1)
    tally = {"segments": [], "bytes": 2048, "logical": 0, "records": 0, "file_bytes": 0, "dead": {}}
    begin = {"header": "", "payload": "", "byteorder": "little"}
    doc = {**fields, "resumable": True, "clone": False, "new": False, "snapshot": "s", "toname": "t/a@s"}
    doc |= {"begin": begin, "fields": {}, "snapshot_fields": {}, "tally": tally}
    doc |= dict.fromkeys(("source", "state", "last"))
    with opened("v") as pool, pool.transaction() as t:
        t.put("receive", pool.dataset(DatasetName.parse("v/a")).key, {**doc, "started": int(time.time()) - 3 * DAY})
    assert "unfinished receive of 2K so far, begun 3 days ago" in shell("health", "-v")


def test_a_pool_that_cannot_be_read_is_damaged(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "v" / "POOL").write_text("no pool")
    assert "DAMAGED: it cannot be read" in shell("health", status=3)
    shell("health", "v/a", status=3)
    shell("health", "w", status=1)
    shutil.rmtree(tmp_path / "v")
    assert "UNVERIFIED: it is not there" in shell("health", status=1)


def test_a_pool_that_is_busy_is_not_damaged(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> None:
        raise TryAgain("busy")

    monkeypatch.setattr(examined, "examine", busy)
    assert shell("health", status=5) == "zkeep: busy\n"


def test_documents_of_a_stranger_are_damage_in_one_line(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(*_: object) -> None:
        raise KeyError("bytes\x1b[2J")

    monkeypatch.setattr(examined, "examine", odd)
    said = shell("health", status=3)
    assert said.count("\n") == 2
    assert "\x1b" not in said


def test_many_changes_are_one_notice(shell: Shell, posted: tuple[str, list[dict[str, Any]], list[int]]) -> None:
    url, got, _ = posted
    for number in range(5):
        add(f"v/d{number}@1", 2)
    shell("set", f"notify={url}", "max_age=1h", "v")
    shell("health", "--notify", status=1)
    assert [(each["subject"], len(each["changes"])) for each in got] == [("zkeep: late: v/a and 5 more", 6)]


def test_what_was_told_of_a_dataset_goes_with_it(shell: Shell) -> None:
    shell("set", "max_age=1h", "v")
    shell("health", "--notify", status=1)
    shell("destroy", "-r", "v/a")
    with opened("v") as pool:
        assert not pool.catalog.keys("health")


def test_a_read_only_pool_can_be_looked_at(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pool, "transaction", None)
    assert kinds(shell, 0) == {}
    assert "zkeep_problem" in shell("metrics")


def scrubbed(at: float) -> None:
    """A scrub that found nothing."""
    with opened("v") as pool, pool.transaction() as t:
        t.put("scrub", "", {"errors": [], "damaged": [], "finished": int(at)})


def test_a_clock_that_was_ahead_makes_nothing_fine(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it received, scrubbed and made has ages below 0: not young for a year, but of an unknown age."""
    really = time.time()
    shell("set", "max_age=2d", "v")
    monkeypatch.setattr(time, "time", lambda: really + 300 * DAY)
    add("v/a@2", 0)
    shell("create", "v/new")
    scrubbed(time.time())
    monkeypatch.setattr(time, "time", lambda: really)
    with opened("v") as pool, pool.transaction() as t:
        t.put("clock", "", {"seen": int(really)})  # as 'prune --trust-clock' leaves it
    assert kinds(shell, 1) == {"v": ["unverified"], "v/a": ["late"], "v/new": ["late"]}
    said = shell("health", status=1)
    assert "it was scrubbed 300 days from now, by a clock that was wrong" in said
    assert "the newest snapshot was received 300 days from now, by a clock that was wrong" in said
    # The next ones set it right.
    add("v/a@3", 0)
    scrubbed(really)
    assert kinds(shell, 1) == {"v/new": ["late"]}


def test_a_clock_in_doubt_is_a_problem(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    really = time.time()
    monkeypatch.setattr(time, "time", lambda: really - 3 * DAY)
    assert kinds(shell, 1) == {"v": ["clock"]}


# Metrics


def test_metrics_are_prometheus_text(shell: Shell, tmp_path: Path) -> None:
    shell("set", "max_age=12h", "v")
    lines = shell("metrics").splitlines()
    assert 'zkeep_problem{kind="late",name="v/a"} 1.0' in lines
    assert 'zkeep_pool_size_bytes{pool="v"} ' in "\n".join(lines)
    file = tmp_path / "zkeep.prom"
    file.write_text("old")
    shell("metrics", "-o", str(file))
    assert file.read_text().splitlines()[0].startswith("# HELP zkeep_")
    assert [each.name for each in tmp_path.iterdir() if "prom" in each.name] == ["zkeep.prom"]


@pytest.mark.parametrize("address", ["0.0.0.0:1", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:" + "9" * 400, "[::]:9133"])
def test_it_listens_on_this_machine_only(shell: Shell, address: str) -> None:
    assert shell("metrics", "--listen", address, status=2).count("\n") == 1


# Telling


@pytest.fixture
def posted(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[dict[str, Any]], list[int]]]:
    """A server's URL, what was posted to it, and the statuses that it answers with."""
    got: list[dict[str, Any]] = []
    answers: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status = answers.pop(0) if answers else 200
            self.send_response(status)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(b"x" * 100_000)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    monkeypatch.setenv("no_proxy", "*")
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", got, answers
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_change_is_told_once_and_so_is_its_end(
    shell: Shell, posted: tuple[str, list[dict[str, Any]], list[int]]
) -> None:
    url, got, _ = posted
    shell("set", f"notify={url}", "max_age=12h", "v")
    for _ in range(2):
        shell("health", "--notify", status=1)
    add("v/a@2", 0)
    for _ in range(2):
        shell("health", "--notify")
    assert [(each["subject"], each["event"]) for each in got] == [
        ("zkeep: late: v/a", "late"), ("zkeep: recovered: v/a", "recovered"),
    ]  # fmt: skip


@pytest.mark.parametrize("before", [[], ["set", "notify=none", "v"], ["set", "notify=none", "v/a"]])
def test_who_is_named_later_hears_of_what_there_is(
    shell: Shell, posted: tuple[str, list[dict[str, Any]], list[int]], before: list[str]
) -> None:
    url, got, _ = posted
    shell("set", "max_age=12h", "v")
    if before:
        shell(*before)
    shell("health", "--notify", status=1)  # the timer was there first
    shell("set", f"notify={url}", *before[2:] or "v")
    for _ in range(2):
        shell("health", "--notify", status=1)
    assert [each["subject"] for each in got] == ["zkeep: late: v/a"]


def test_what_ends_while_nobody_is_told_is_over(
    shell: Shell, posted: tuple[str, list[dict[str, Any]], list[int]]
) -> None:
    url, got, _ = posted
    shell("set", f"notify={url}", "max_age=12h", "v")
    shell("health", "--notify", status=1)
    shell("set", "notify=none", "v")
    add("v/a@2", 0)
    shell("health", "--notify")
    shell("set", f"notify={url}", "v")
    shell("health", "--notify")
    assert [each["event"] for each in got] == ["late"]


@pytest.mark.parametrize("status", [302, 404, 500])
def test_what_could_not_be_told_is_told_the_next_time(
    shell: Shell, posted: tuple[str, list[dict[str, Any]], list[int]], status: int
) -> None:
    url, got, answers = posted
    answers.append(status)
    shell("set", f"notify={url}", "max_age=12h", "v")
    assert "zkeep: cannot notify of v: http: " in shell("health", "--notify", status=5)
    shell("health", "--notify", status=1)
    shell("health", "--notify", status=1)
    assert len(got) == 2


def test_a_program_gets_its_words_without_a_shell(shell: Shell, tmp_path: Path) -> None:
    program = tmp_path / "tell"
    program.write_text('#!/bin/sh\nyes | head -c 1000000\nprintf "%s\\n" "$@" > "$0.args"\ncat > "$0.stdin"\n')
    program.chmod(0o755)
    shell("set", f"notify=exec:{program} 'a b' $(id) ;c", "max_age=12h", "v")
    assert "y" not in shell("health", "--notify", status=1).splitlines()
    assert (tmp_path / "tell.args").read_text().splitlines() == ["a b", "$(id)", ";c"]
    assert json.loads((tmp_path / "tell.stdin").read_text())["event"] == "late"


def test_a_program_that_fails_or_hangs_is_one_line(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "SECONDS", 0.05)
    for command in ("/bin/false", "/bin/sleep 60", "/no/such/program"):
        shell("set", f"notify=exec:{command}", "max_age=12h", "v")
        assert "cannot notify of v: exec: " in shell("health", "--notify", status=5)


def test_a_mail_goes_through_sendmail(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "sendmail"
    program.write_text('#!/bin/sh\necho "$@" > "$0.args"\ncat > "$0.mail"\n')
    program.chmod(0o755)
    monkeypatch.setattr(notify, "SENDMAIL", (str(program),))
    shell("set", "notify=mailto:ann@example.org", "max_age=12h", "v")
    shell("health", "--notify", status=1)
    assert (tmp_path / "sendmail.args").read_text() == "-oi -- ann@example.org\n"
    mail = (tmp_path / "sendmail.mail").read_text()
    assert mail.startswith("To: ann@example.org\nSubject: zkeep: late: v/a\n\nv/a: late: the newest snapshot is")


@pytest.mark.parametrize(
    "value",
    [
        "exec:ls", 'exec:/x "', "exec:", "mailto:a b@c", "mailto:-oQ@x", "mailto:a@b\nBcc: c@d", "mailto:a@b?cc=x",
        "https://", "http://[::1", "http://x:99999/", "ftp://x", "file:///etc/passwd", "https://x/\x1b[2J",
        "exec:/" + "a" * 4000, "ann@example.org", "https://h\u00f6st/",
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_in_one_line(shell: Shell, value: str) -> None:
    said = shell("set", f"notify={value}", "v", status=1)
    assert said.count("\n") == 1


def test_what_a_stream_says_of_it_has_no_effect(shell: Shell, tmp_path: Path) -> None:
    with opened("v") as pool, pool.transaction() as t:
        received = {"notify": f"exec:/bin/touch {tmp_path}/touched", "max_age": "1s"}
        pool.update_dataset(t, pool.dataset(DatasetName.parse("v/a")), received=received)
    shell("health", "--notify")
    shell("set", "max_age=1h", "v")
    shell("health", "--notify", status=1)
    assert not (tmp_path / "touched").exists()


def test_a_client_of_a_server_neither_sets_nor_sees_it(shell: Shell) -> None:
    from zkeep.cli.common.pools import confined

    shell("set", "notify=https://example.org/secret", "v")
    assert "secret" in shell("get", "notify", "v/a")
    with confined(DatasetName.parse("v/a")):
        assert "secret" not in shell("get", "notify,all", "v/a")


def test_metrics_are_answered(shell: Shell) -> None:
    from prometheus_client import start_http_server

    from zkeep.cli.health.metrics import _registry

    server, thread = start_http_server(0, "127.0.0.1", _registry([]))
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
        f"http://127.0.0.1:{server.server_port}/metrics"
    ) as answer:
        assert b'zkeep_problem{kind="late",name="v/a"} 0.0' in answer.read()
    server.shutdown()
    thread.join()
    server.server_close()


def test_errors_of_a_scrub_are_counted_in_plain_words(shell: Shell) -> None:
    for number, words in ((1, "found 1 error;"), (2, "found 2 errors;")):
        with opened("v") as pool, pool.transaction() as t:
            t.put("scrub", "", {"end": int(time.time()), "errors": [{}] * number})
        assert f"DAMAGED: the last scrub {words}" in shell("health", status=3)


def test_what_verify_found_is_known(shell: Shell) -> None:
    add("v/a@2", 0)
    with opened("v") as pool:
        bad, good = pool.snapshots(pool.dataset(DatasetName.parse("v/a")))
        verified.note(pool, bad, 1, authentic=False)
        verified.note(pool, good, int(time.time()), authentic=True)
    assert kinds(shell, 3) == {"v/a": ["damaged"]}
    assert "DAMAGED: verify of @1 failed: damaged, or not authentic; @2 received" in shell("health", status=3)
    shell("destroy", "v/a@1")
    assert kinds(shell, 0) == {}
    assert "verified with the key" in shell("health", "-v")
