"""P4: documents of a pool from elsewhere are compared with what one of their kind is when they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from receivekit import cut, kept, receiving, stream, take, take_chain
from zkeep.cli.main import run
from zkeep.errors import Damaged
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool, dataset_key
from zkeep.pool.datasets.registry import Registry
from zkeep.pool.maintenance.scrub import scrub
from zkeep.pool.store.shapes import OPTIONAL, REQUIRED, fault
from zkeep.pool.timeline.ingest import Tally

KEYED = ("pool", "dataset", "snapshot", "bookmark", "begin", "run", "receive", "reserve", "compact")
WRONG = (None, "\x1b", -1, 1 << 64, 0.5, True, [], [1], ["../../x-1"], {}, {"x": [1]}, "../x", "9" * 5000)
CALLS = {
    "pool": (["rename", "v/a", "v/z"],),
    "dataset": (["list", "-r", "v"], ["send", "-w", "v/a@s1"], ["destroy", "-nvr", "v/a"], ["pool", "compact", "v"]),
    "snapshot": (["get", "all", "v/a@s1"], ["send", "-nvw", "v/a@s2"], ["destroy", "v/a@s2"], ["list", "-rt", "all"]),
    "bookmark": (["list", "-t", "bookmark"], ["destroy", "v/a#b"]),
    "begin": (["send", "-w", "v/a@s2"], ["pool", "scrub", "v"]),
    "run": (["get", "used", "v/a"], ["send", "-w", "v/a@s2"], ["pool", "compact", "v"], ["pool", "scrub", "v"]),
    "receive": (["pool", "scrub", "v"],),
    "reserve": (["get", "available", "v/a"],),
    "compact": (["pool", "compact", "v"],),
}
"""What reads documents of each kind."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pool `v` with documents of every kind."""
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path))
    monkeypatch.delenv("ZKEEP_DEBUG", raising=False)
    with Pool.create(tmp_path / "pool", "v", {"quota": str(1 << 40)}) as pool:
        take_chain(pool, target="v/a")
        dataset = pool.dataset(DatasetName("v/a"))
        with pool.transaction() as t:
            pool.add_bookmark(t, pool.snapshots(dataset)[0], "b")
            t.put("receive", dataset.key, receiving(99) | {"token": "1-2-3-4"})
            t.put("reserve", dataset.key, {"dataset": dataset.id, "bytes": 5})
            t.put("compact", f"{98:020d}", {"txg": 98, "dataset": dataset.id})
    Registry(tmp_path).add("v", tmp_path / "pool")
    return tmp_path


def change(home: Path, kind: str, key: str, document: dict[str, Any]) -> None:
    """A document as a pool's maker would write it: it proves itself."""
    with Pool.open(home / "pool") as pool, pool.transaction() as t:
        t.put(kind, key, document)


def last(home: Path, kind: str) -> tuple[str, dict[str, Any]]:
    with Pool.open(home / "pool") as pool:
        found = pool.catalog.last(kind)
        assert found is not None
        return found


def says(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    capfd.readouterr()
    status = run(list(arguments))
    return status, capfd.readouterr().err


def test_p4_what_this_zkeep_writes_has_its_shape(home: Path) -> None:
    with Pool.open(home / "pool") as pool:
        for kind in KEYED:
            assert pool.catalog.scan(kind), kind
        assert pool.catalog.verify() == []


@pytest.mark.parametrize("kind", KEYED)
def test_p4_a_field_that_is_missing_or_wrong_is_told_of(home: Path, kind: str) -> None:
    key, document = last(home, kind)
    assert fault(kind, key, document) is None
    for field, check in REQUIRED[kind].items():
        assert fault(kind, key, {k: v for k, v in document.items() if k != field}) == f"has no {field}"
        for value in WRONG:
            if not check(value):
                assert fault(kind, key, {**document, field: value}) == f"has a {field} that is none"
    for field, check in OPTIONAL.get(kind, {}).items():
        assert fault(kind, key, {k: v for k, v in document.items() if k != field}) is None
        assert not check([[]])


@pytest.mark.parametrize("kind", KEYED)
def test_p4_every_verb_says_in_one_line_that_a_document_is_damaged(
    home: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    key, document = last(home, kind)
    field = next(name for name in reversed(REQUIRED[kind]) if name != "name")
    change(home, kind, key, {name: value for name, value in document.items() if name != field})
    for call in CALLS[kind]:
        status, err = says(capfd, *call)
        assert status == 3, (call, status, err)
        assert f"has no {field}" in err
        assert err.count("\n") == 1 or "scrub" in call
        assert "unexpected" not in err


@pytest.mark.parametrize("name", ["a/../../etc", "/etc", "a//b", "a/", "..", "a\x1b[31m", "a@b", "\ud800", "b" * 300])
def test_p4_a_dataset_is_called_as_zfs_allows(home: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    key, document = last(home, "dataset")
    change(home, "dataset", key, {**document, "name": name})
    status, err = says(capfd, "list", "-r", "v")
    assert (status, err.count("\n")) == (3, 1), err
    assert "\x1b" not in err


@pytest.mark.parametrize("kind", ["dataset", "snapshot", "run"])
def test_p4_a_document_belongs_under_its_key(home: Path, kind: str) -> None:
    key, document = last(home, kind)
    change(home, kind, key[:-1] + "9", document)
    with Pool.open(home / "pool") as pool, pytest.raises(Damaged, match="is not the one of this key"):
        pool.catalog.scan(kind)


def cycle(home: Path) -> None:
    """`v/a` is a clone of its clone `v/c`."""
    with Pool.open(home / "pool") as pool, pool.transaction() as t:
        first = pool.dataset(DatasetName("v/a"))
        last = pool.snapshots(first)[-1]
        made = pool.create_dataset(t, DatasetName("v/c"), origin={"dataset": first.id, "txg": last.txg})
        pool.update_dataset(t, first, origin={"dataset": made.id, "txg": last.txg})


CYCLIC = (
    ["list", "-r", "v"],
    ["send", "-w", "-i", "v/c", "v/a@s2"],
    ["send", "-w", "v/a@s1"],
    ["pool", "scrub", "v"],
    ["destroy", "-nvR", "v/a"],
    ["load-key", "-L", "file:///dev/null", "v/a"],
    ["forget-keys", "-n", "v/a"],
    ["receive", "-c", "v/a@s1"],
)


@pytest.mark.parametrize("call", CYCLIC, ids=" ".join)
def test_p4_clones_of_themselves_end(home: Path, call: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    cycle(home)
    status, err = says(capfd, *call)
    assert status in (1, 3) or "-nvR" in call, (status, err)
    assert "unexpected" not in err
    assert err.count("\n") <= 2, err


@pytest.mark.parametrize("kind", ["snapshot", "run"])
def test_p4_what_hangs_on_a_dataset_that_is_not_there(home: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    key, document = last(home, kind)
    change(home, kind, f"{dataset_key(777)}/{key.partition('/')[2]}", document)
    for call in (["list", "-rt", "all", "v"], ["pool", "scrub", "v"], ["destroy", "-nvr", "v/a"]):
        assert "unexpected" not in says(capfd, *call)[1]


@pytest.mark.parametrize("header", ["", "AAAA", "!", "A" * 416])
def test_p4_a_begin_that_is_none(home: Path, header: str, capfd: pytest.CaptureFixture[str]) -> None:
    key, document = last(home, "begin")
    change(home, "begin", key, {**document, "header" if len(header) < 5 else "payload": header})
    for call in CALLS["begin"]:
        status, err = says(capfd, *call)
        assert "unexpected" not in err, err
    assert status == 3


ELSEWHERE = (
    ["list", "-r", "-t", "all", "v"],
    ["get", "-r", "all", "v"],
    ["get", "receive_resume_token", "v/a"],
    ["snapshot", "v/b@new"],
    ["destroy", "v/a@s2"],
    ["destroy", "-r", "v/b"],
    ["rename", "v/b", "v/c"],
    ["rollback", "-r", "v/a@s1"],
    ["pool", "compact", "v"],
    ["prune", "-r", "v"],
    ["set", "quota=1T", "v/a"],
    ["destroy", "-r", "v/a"],
)


@pytest.fixture
def malformed(home: Path) -> Path:
    """A pool with a partial receive into `v/a` that lacks a field, and one into a dataset that is not there yet."""
    for key in (last(home, "receive")[0], f"txg/{97:020d}"):
        change(home, "receive", key, {"resumable": True})
    with Pool.open(home / "pool") as pool:
        take_chain(pool, "full-s0", target="v/b")
    return home


@pytest.mark.parametrize("call", ELSEWHERE, ids=" ".join)
def test_p3_a_malformed_receive_costs_nothing_else(
    malformed: Path, call: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    status, err = says(capfd, *call)
    assert (status, err) == (0, "") or (call[0] == "snapshot" and "zkeep" in err), err


def test_p3_a_malformed_receive_is_told_of_and_given_up(malformed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["health", "v"]) == 3
    assert "zkeep receive -A v/a" in capfd.readouterr().out
    assert run(["receive", "-A", "v/a"]) == 0
    assert run(["pool", "compact", "v"]) == 0
    with Pool.open(malformed / "pool") as pool:
        assert pool.catalog.keys("receive") == []
        assert pool.catalog.keys("reserve") == []
        assert pool.catalog.verify() == []
        assert scrub(pool).clean
    assert run(["receive", "-A", "v/a"]) == 1


def test_p3_the_next_receive_replaces_a_malformed_one(malformed: Path) -> None:
    said: list[str] = []
    with Pool.open(malformed / "pool") as pool:
        pool.warn = said.append
        with pool.transaction() as t:
            made = pool.create_dataset(t, DatasetName("v/d"))
        change(malformed, "receive", made.key, {"resumable": True})
        cut(pool, stream("full-s0"), 100_000, "v/d")  # without -F: the dataset may have been made for it
        take(pool, stream("full-s0"), "v/d", resumable=True)
        assert kept(pool)["v/d"] == ["s0"]
        assert said == ["v/d: its partial receive is not what was stored, and is given up"]


def test_p3_the_state_of_a_receive_that_nobody_could_read_is_not_kept(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Tally.doc
    monkeypatch.setattr(Tally, "doc", lambda tally: real(tally) | ({"extra": -1} if tally.segments else {}))
    with Pool.open(home / "pool") as pool:
        content = stream("full-s0")
        cut(pool, content, len(content) // 2, "v/d")
        state = pool.catalog.get("receive", pool.dataset(DatasetName("v/d")).key)
        assert state is not None
        assert state["tally"]["segments"] == []
        with pytest.raises(Damaged, match="the state of a receive has a tally that is none: it is not kept"):
            take(pool, content, "v/d", resumable=True)
        monkeypatch.undo()
        take(pool, content, "v/d", resumable=True)
        assert kept(pool)["v/d"] == ["s0"]
