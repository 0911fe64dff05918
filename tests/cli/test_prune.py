"""zkeep prune, and pruning after a receive: what goes, what stays whatever the rules say, and what is said."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from zkeep.cli.common.pools import opened
from zkeep.cli.common.pruning import prune_received
from zkeep.cli.main import run
from zkeep.errors import Refused
from zkeep.names import DatasetName, SnapshotName
from zkeep.pool.datasets.model import CLOCK, Pool, txg_key
from zkeep.pool.datasets.view import View
from zkeep.pool.maintenance import prune
from zkeep.pool.maintenance.prune import Clock

CHAIN = Path(__file__).parent.parent / "data" / "opened" / "chains" / "ccm192-lzjb-8k"
Shell = Callable[..., str]
DAY = 86400
NOW = int(time.time()) // DAY * DAY - DAY // 2
"Noon of yesterday, in UTC."


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    """Runs `zkeep WORDS`; what it printed, standard error last."""
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZKEEP_WAIT", "0.05")
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setattr(time, "time", lambda: float(NOW))

    def call(*words: str, status: int = 0) -> str:
        assert run(list(words)) == status
        return "".join(capfd.readouterr())

    call("pool", "create", "v", str(tmp_path / "v"))
    return call


def add(name: str, age: float | None, **fields: object) -> None:
    """A snapshot as a receive left it `age` days ago; None: an older zkeep, which noted no time."""
    wanted = SnapshotName.parse(name)
    with opened(wanted) as pool, pool.transaction() as t:
        dataset = pool.find(wanted.dataset) or pool.create_dataset(t, wanted.dataset)
        txg = t.next_txg()
        numbers = dict.fromkeys(("file_bytes", "records", "features", "fromguid", "from_txg", "maxblkid"), 0)
        run_doc = {"txg": txg, "segments": [], "bytes": 100, "logical": 100, "dead": {}, "whole": True, **numbers}
        t.put("run", txg_key(dataset.id, txg), run_doc)
        received = {} if age is None else {"received_at": NOW - int(age * DAY)}
        guid = int(str(fields.pop("guid", txg * 1000)))
        pool.add_snapshot(t, dataset, wanted.name, txg, guid, **{**received, **fields})
        if age is None:
            found = pool.find_snapshot(wanted)
            assert found
            t.put("snapshot", found.key, {k: v for k, v in found.doc.items() if k != "received_at"})


def days(count: int, name: str = "v/a") -> None:
    for age in range(count, 0, -1):
        add(f"{name}@{age}", age)


def snapshots(shell: Shell, name: str = "v/a") -> list[str]:
    return [line.partition("@")[2] for line in shell("list", "-H", "-t", "snapshot", "-o", "name", name).split()]


def considered(pool: Pool) -> prune.Decision:
    """What a prune of v/a decides now."""
    view, dataset = View(pool), pool.dataset(DatasetName.parse("v/a"))
    policy = prune.policy_of(view, dataset)
    assert policy
    return prune.consider(view, dataset, policy, Clock(NOW, lambda at: 0))


def test_what_is_said_and_what_goes(shell: Shell) -> None:
    days(4)
    shell("set", "retention=daily=2", "v")
    said = ["would destroy v/a@4: no rule of daily=2 keeps it", "would destroy v/a@3: no rule of daily=2 keeps it"]
    assert shell("prune", "-n", "v/a").splitlines() == said
    rest = ["keep v/a@2: daily", "keep v/a@1: newest, daily"]
    assert shell("prune", "-nv", "v").splitlines() == [*said, *rest]
    assert snapshots(shell) == ["4", "3", "2", "1"]
    assert shell("prune", "v") == ""
    assert snapshots(shell) == ["2", "1"]
    assert shell("prune", "-v", "v/a").splitlines() == rest


def test_json_has_every_snapshot(shell: Shell) -> None:
    days(2)
    shell("set", "retention=daily = 1", "v")
    found = json.loads(shell("prune", "-nj", "v"))["datasets"]
    assert found["v"] == {"retention": "daily=1", "snapshots": []}
    first, second = found["v/a"]["snapshots"]
    assert (first["name"], first["kept"], first["rules"]) == ("v/a@2", False, [])
    assert (second["name"], second["rules"], second["received_at"]) == ("v/a@1", ["newest", "daily"], NOW - DAY)


def test_r_and_a_pools_name_mean_what_lies_below(shell: Shell) -> None:
    for name in ("v/a", "v/a/b", "v/c"):
        if name != "v/a/b":
            shell("create", name)
        days(2, name)
    shell("set", "retention=daily=1", "v/a")
    shell("prune", "v/a")
    assert (snapshots(shell), snapshots(shell, "v/a/b")) == (["1"], ["2", "1"])
    shell("prune", "-r", "v/a")
    assert snapshots(shell, "v/a/b") == ["1"]
    shell("set", "retention=daily=1", "v/c")
    shell("prune", "v")
    assert snapshots(shell, "v/c") == ["1"]


@pytest.mark.parametrize("words", [("prune",), ("prune", "v/a@1"), ("prune", "-x", "v")])
def test_wrong_usage(shell: Shell, words: tuple[str, ...]) -> None:
    shell(*words, status=2)


@pytest.mark.parametrize("words", [("v/none",), ("w",), ("v/a",)])
def test_what_is_not_there_or_has_no_retention_is_one_line(shell: Shell, words: tuple[str, ...]) -> None:
    days(2)
    assert shell("prune", *words, status=1).count("\n") == 1
    assert len(snapshots(shell)) == 2


def test_no_retention_in_all_of_a_pool_is_nothing_to_do(shell: Shell) -> None:
    days(2)
    assert shell("prune", "v") == ""
    assert len(snapshots(shell)) == 2


def test_what_stays_whatever_the_rules_say(shell: Shell) -> None:
    days(8)
    shell("set", "retention=daily=1", "v")
    shell("hold", "keep", "v/a@8")
    shell("bookmark", "v/a@7", "v/a#seven")
    with opened("v") as pool, pool.transaction() as t:
        origin, base, running = (pool.snapshot(SnapshotName.parse(f"v/a@{n}")) for n in (6, 5, 4))
        clone = {"dataset": origin.dataset.id, "txg": origin.txg}
        pool.create_dataset(t, DatasetName.parse("v/clone"), origin=clone)
        fields = dict.fromkeys(("txg", "toguid", "fromguid", "features", "object", "offset"), 1)
        empty = {"segments": [], "bytes": 0, "logical": 0, "records": 0, "file_bytes": 0, "dead": {}}
        begin = {"header": "", "payload": "", "byteorder": "little"}
        doc = {**fields, "clone": False, "new": False, "snapshot": "s", "toname": "t/a@s", "begin": begin}
        doc |= {"fields": {}, "snapshot_fields": {}, "tally": empty, "state": None, "last": None}
        there = {"resumable": True, "source": [base.dataset.id, base.txg]}
        t.put("receive", pool.dataset(DatasetName.parse("v/a")).key, {**doc, **there})
        under_way = {"resumable": False, "source": [running.dataset.id, running.txg]}
        t.put("receive", f"txg/{99:020d}", {**doc, **under_way})
    add("v/a@step", 0.5, step=True)
    add("v/a@old", None)
    add("v/a@new", 0.1)
    lines = shell("prune", "-nv", "v/a").splitlines()
    assert lines == [
        "keep v/a@8: held",
        "keep v/a@7: bookmark",
        "keep v/a@6: origin of a clone",
        "keep v/a@5: base of a receive",
        "keep v/a@4: base of a receive",
        "would destroy v/a@3: no rule of daily=1 keeps it",
        "would destroy v/a@2: no rule of daily=1 keeps it",
        "would destroy v/a@1: no rule of daily=1 keeps it",
        "keep v/a@step: step of a snapshot",
        "keep v/a@old: time unknown",
        "keep v/a@new: newest, daily",
    ]
    shell("prune", "v/a")
    assert snapshots(shell) == ["8", "7", "6", "5", "4", "step", "old", "new"]
    assert "v/a#seven" in shell("list", "-t", "bookmark")


def test_a_bookmark_of_the_source_in_the_same_pool_keeps_the_copy(shell: Shell) -> None:
    """The source has only a bookmark: the next increment from it needs the snapshot that was received."""
    add("v/source@1", 2, guid=77)
    shell("bookmark", "v/source@1", "#one")
    shell("destroy", "v/source@1")
    add("v/copy@1", 2, guid=77)
    add("v/copy@2", 1)
    shell("set", "retention=daily=1", "v/copy")
    assert shell("prune", "-nv", "v/copy").splitlines()[0] == "keep v/copy@1: bookmark"


def test_what_is_young_stays(shell: Shell) -> None:
    days(5)
    shell("set", "retention=daily=1", "retention_min=3d", "v")
    shell("prune", "v")
    assert snapshots(shell) == ["2", "1"]


def test_nothing_goes_while_the_last_scrub_found_damage_in_it(shell: Shell) -> None:
    for name in ("v/a", "v/b"):
        days(2, name)
    shell("set", "retention=daily=1", "v")
    with opened("v") as pool, pool.transaction() as t:
        t.put("scrub", "", {"errors": ["a fault"], "damaged": [pool.dataset(DatasetName.parse("v/a")).id]})
    said = shell("prune", "v", status=3)
    assert said.startswith("zkeep: cannot prune v/a: the last scrub found damage in it")
    assert said.count("\n") == 1
    assert (snapshots(shell), snapshots(shell, "v/b")) == (["2", "1"], ["1"])


@pytest.mark.parametrize("doc", [{"errors": ["x"]}, {"errors": ["x"], "damaged": None}])
def test_damage_that_may_be_anywhere_stops_all(shell: Shell, doc: dict[str, object]) -> None:
    days(2)
    shell("set", "retention=daily=1", "v")
    with opened("v") as pool, pool.transaction() as t:
        t.put("scrub", "", doc)
    shell("prune", "v", status=3)
    assert len(snapshots(shell)) == 2


# The clock


@pytest.mark.parametrize(
    ("jump", "word", "left"), [(-2 * DAY, "behind", 3), (5 * 365 * DAY, "ahead of", 2), (-NOW + 5, "never set", 4)]
)
def test_a_clock_that_jumped_prunes_nothing_until_it_is_trusted(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, jump: int, word: str, left: int
) -> None:
    """What is in the future of a clock that is trusted stays all the same."""
    days(4)
    shell("set", "retention=daily=2", "v")
    monkeypatch.setattr(time, "time", lambda: float(NOW + jump))
    said = shell("prune", "v", status=1)
    assert word in said
    assert said.count("\n") == 1
    assert len(snapshots(shell)) == 4
    shell("prune", "--trust-clock", "v")
    assert len(snapshots(shell)) == left


def test_what_a_clock_in_doubt_stamps_has_no_time(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    days(2)
    for jump in (9 * 365 * DAY, -9 * 365 * DAY):
        monkeypatch.setattr(time, "time", lambda jump=jump: float(NOW + jump))
        with opened("v") as pool, pool.transaction() as t:
            dataset, txg = pool.dataset(DatasetName.parse("v/a")), t.next_txg()
            made = pool.add_snapshot(t, dataset, f"x{txg}", txg, txg)
            assert made.received_at is None
            assert (t.get(CLOCK, "") or {})["seen"] == NOW


def test_a_clock_that_is_right_again_prunes_again(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    days(4)
    shell("set", "retention=daily=2", "v")
    monkeypatch.setattr(time, "time", lambda: float(NOW + 9 * 365 * DAY))
    shell("prune", "v", status=1)
    monkeypatch.setattr(time, "time", lambda: float(NOW + 60))
    shell("prune", "v")
    assert snapshots(shell) == ["2", "1"]


@pytest.mark.parametrize("zone", ["Nowhere/Land", "../../etc/passwd", "\x1b[2J", "9" * 400, "Europe/Berlin\0"])
def test_what_is_no_time_zone_is_refused(shell: Shell, monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    days(2)
    shell("set", "retention=daily=1", "v")
    if "\0" not in zone:
        monkeypatch.setenv("TZ", zone)
        assert shell("prune", "v", status=2).count("\n") == 1
        assert len(snapshots(shell)) == 2


@pytest.mark.parametrize("zone", ["Europe/Berlin", ":America/St_Johns", "CET-1CEST,M3.5.0,M10.5.0/3", "", "UTC"])
def test_time_zones(shell: Shell, monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    days(3)
    shell("set", "retention=daily=2", "v")
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    shell("prune", "v")
    assert snapshots(shell) == ["2", "1"]


# The property


@pytest.mark.parametrize("value", ["hourly=", "daily=0", "9" * 400, "1x1h |", "\u200bdaily=1", "daily=1\x1b[2J"])
@pytest.mark.parametrize("name", ["retention", "retention_min"])
def test_a_bad_value_is_refused_in_one_line(shell: Shell, name: str, value: str) -> None:
    said = shell("set", f"{name}={value}", "v", status=1)
    assert said.count("\n") == 1
    assert len(said) < 400


def test_it_is_inherited_cleared_and_shown_with_its_source(shell: Shell) -> None:
    shell("create", "v/a")
    shell("set", "retention=daily=7;weekly=4", "retention_min=2d", "v")
    assert shell("get", "-Ho", "value,source", "retention", "v/a") == "daily=7,weekly=4\tinherited from v\n"
    shell("set", "retention=none", "v/a")
    assert shell("get", "-Ho", "value,source", "retention", "v/a") == "none\tlocal\n"
    shell("inherit", "-r", "retention", "v")
    assert shell("get", "-Ho", "value,source", "retention", "v/a") == "none\tdefault\n"


def test_what_a_stream_says_of_it_has_no_effect(shell: Shell) -> None:
    days(3)
    with opened("v") as pool, pool.transaction() as t:
        pool.update_dataset(t, pool.dataset(DatasetName.parse("v/a")), received={"retention": "daily=1"})
    assert "no retention is set" in shell("prune", "v/a", status=1)
    shell("set", "retention=daily=3", "v")
    shell("prune", "v")
    assert len(snapshots(shell)) == 3


def test_a_document_with_a_policy_that_is_none_is_one_line(shell: Shell) -> None:
    days(2)
    for local in ({"retention": "all"}, {"retention": "daily=1", "retention_min": "long"}):
        with opened("v") as pool, pool.transaction() as t:
            pool.update_dataset(t, pool.dataset(DatasetName.parse("v/a")), local=local)
        assert shell("prune", "v/a", status=1).count("\n") == 1
    assert len(snapshots(shell)) == 2


# Doing it


def test_it_goes_in_steps_each_of_which_is_whole(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed behind the first: the next call does the rest."""
    days(9)
    shell("set", "retention=daily=2", "v")
    monkeypatch.setattr(prune, "STEP", 3)
    with opened("v") as pool:
        view, dataset = View(pool), pool.dataset(DatasetName.parse("v/a"))
        policy = prune.policy_of(view, dataset)
        assert policy
        going = prune.execute(pool, prune.consider(view, dataset, policy, Clock(NOW, lambda at: 0)))
        next(going)
    assert len(snapshots(shell)) == 6
    with opened("v") as pool:
        assert pool.catalog.keys("snapshot") == [s.key for s in pool.snapshots(pool.dataset(DatasetName.parse("v/a")))]
    shell("prune", "v")
    assert snapshots(shell) == ["2", "1"]


@pytest.mark.parametrize("meanwhile", ["hold", "clone"])
def test_what_is_pinned_meanwhile_stays(shell: Shell, meanwhile: str) -> None:
    days(3)
    shell("set", "retention=daily=1", "v")
    with opened("v") as pool:
        decision = considered(pool)
        oldest = pool.snapshot(SnapshotName.parse("v/a@3"))
        with pool.transaction() as t:
            if meanwhile == "hold":
                pool.update_snapshot(t, oldest, holds={"mine": 1})
            else:
                origin = {"dataset": oldest.dataset.id, "txg": oldest.txg}
                pool.create_dataset(t, DatasetName.parse("v/clone"), origin=origin)
        with pytest.raises(Refused):
            list(prune.execute(pool, decision))
        assert pool.find_snapshot(SnapshotName.parse("v/a@3"))


def receive(*names: str, target: str = "v/b") -> str:
    for name in names:
        done = subprocess.run(
            [sys.executable, "-m", "zkeep", "receive", target],
            input=Path(f"{CHAIN}.{name}.zfs").read_bytes(), capture_output=True, check=True, env=dict(os.environ),
        )  # fmt: skip
    return done.stderr.decode()


def test_a_receive_prunes_its_dataset_at_its_end(shell: Shell) -> None:
    days(3)
    shell("set", "retention=yearly=1", "v")
    assert receive("full-s0", "inc-s0-s1", "inc-s1-s2") == ""
    assert snapshots(shell, "v/b") == ["s0", "s2"]
    assert len(snapshots(shell)) == 3, "others are the timer's"


def test_a_prune_that_fails_is_a_warning_behind_a_receive(shell: Shell) -> None:
    receive("full-s0")
    with opened("v") as pool, pool.transaction() as t:
        pool.update_dataset(t, pool.dataset(DatasetName.parse("v")), local={"retention": "\x1b[2J" * 99})
    said = receive("inc-s0-s1")
    assert said.startswith("zkeep: warning: v/b is received")
    assert said.count("\n") == 1
    assert snapshots(shell, "v/b") == ["s0", "s1"]


def test_a_disk_that_fails_behind_a_receive_is_a_warning(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also where it is only looked up what there is to prune."""
    receive("full-s0")

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch, opened("v") as pool:
        patch.setattr(Pool, "find", fails)
        pool.warn = lambda text: print(text, file=sys.stderr)
        prune_received(pool, ["v/b@s0", "v/c@s0"])
    said = capfd.readouterr().err.splitlines()
    assert [line.split(" is received")[0] for line in said] == ["v/b", "v/c"]


def test_the_time_of_receipt_is_the_servers_and_outlives_everything(shell: Shell, tmp_path: Path) -> None:
    receive("full-s0", "inc-s0-s1")
    ask = ("get", "-Hp", "-o", "value", "received_at", "v/b@s0")
    before = int(shell(*ask))
    assert abs(before - time.time()) < 2 * DAY
    shell("rename", "v/b@s0", "@other")
    shell("rename", "v/b", "v/c")
    (tmp_path / "v" / "catalog.sqlite").unlink()
    shell("pool", "scrub", "--rebuild-catalog", "v")
    assert int(shell(*ask[:-1], "v/c@other")) == before


def test_a_pool_on_a_read_only_disk_says_what_would_go(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    days(3)
    shell("set", "retention=daily=1", "v")
    monkeypatch.setattr(Pool, "transaction", None)
    assert len(shell("prune", "-n", "v").splitlines()) == 2


@pytest.fixture
def made(shell: Shell, tmp_path: Path) -> Path:
    """A folder, and an encrypted dataset v/made that keeps two days of it."""
    folder, key = tmp_path / "folder", tmp_path / "key"
    folder.mkdir()
    key.touch(0o600)
    key.write_bytes(bytes(32))
    encrypted = ("-o", "encryption=on", "-o", "keyformat=raw", "-o", f"keylocation=file://{key}")
    shell("create", *encrypted, "-o", "retention=daily=2", "v/made")
    return folder


def taken(shell: Shell, folder: Path, age: int, *words: str, status: int = 0) -> None:
    """A snapshot that was taken some days ago."""
    shell("snapshot", *words, "--from", str(folder), f"v/made@{age}", status=status)
    with opened(SnapshotName.parse(f"v/made@{age}")) as pool, pool.transaction() as t:
        found = pool.snapshot(SnapshotName.parse(f"v/made@{age}"))
        pool.update_snapshot(t, found, received_at=NOW - age * DAY)


def test_a_snapshot_of_a_folder_prunes_its_dataset(shell: Shell, made: Path) -> None:
    for age in (4, 3, 2):
        taken(shell, made, age)
    shell("snapshot", "v/made@now")
    assert snapshots(shell, "v/made") == ["2", "now"]
    shell("snapshot", "-n", "--from", str(made), "v/made@dry")
    assert "dry" not in snapshots(shell, "v/made")


def test_properties_are_set_and_pruning_is_done_where_a_file_could_not_be_read(
    shell: Shell, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age in (4, 3):
        taken(shell, made, age)
    monkeypatch.setattr("zkeep.cli.snapshot.take", _incomplete)
    shell("snapshot", "-o", "org:why=test", "--from", str(made), "v/made@now", status=3)
    assert snapshots(shell, "v/made") == ["3", "now"]
    assert shell("get", "-H", "-o", "value", "org:why", "v/made@now").strip() == "test"


def _incomplete(pool: Pool, name: SnapshotName, *rest: object) -> None:
    from zkeep.capture.snapshot import take_state
    from zkeep.cli.common.open_snapshot import keys_from
    from zkeep.cli.common.snapshot_from import NotAllRead

    key = pool.dataset(name.dataset).doc["local"]["keylocation"]
    take_state(pool, name, keys_from([key]))
    raise NotAllRead(f"{name} was taken, but one file could not be read as it is")

