"""zfs hold and release of several snapshots: one after the other, as zrepl relies on. zkeep's own: all or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from zkeep.cli.common.pools import opened
from zkeep.cli.main import call, run
from zkeep.names import DatasetName, SnapshotName
from zkeep.pool.datasets.things import txg_key

NAMES = ("v/h@a", "v/h@b", "v/h@c")
Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Output) -> None:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    assert run(["pool", "create", "v", str(tmp_path / "pool")]) == 0
    numbers = dict.fromkeys(("file_bytes", "records", "features", "fromguid", "from_txg", "maxblkid"), 0)
    with opened(DatasetName("v")) as found, found.transaction() as t:
        dataset = found.create_dataset(t, DatasetName("v/h"))
        for name in "abc":
            txg = t.next_txg()
            doc = {"txg": txg, "segments": [], "bytes": 100, "logical": 100, "dead": {}, "whole": True, **numbers}
            t.put("run", txg_key(dataset.id, txg), doc)
            found.add_snapshot(t, dataset, name, txg, txg * 1000)
    assert run(["hold", "t", "v/h@a", "v/h@c"]) == 0
    capfd.readouterr()


def held() -> list[str]:
    with opened(DatasetName("v")) as found:
        return [name for name in NAMES if found.snapshot(SnapshotName.parse(name)).holds]


def test_zfs_releases_what_it_can(capfd: Output) -> None:
    assert call("zfs", ["release", "t", *NAMES]) == 1
    assert capfd.readouterr().err == "cannot release hold from snapshot 'v/h@b': no such tag on this dataset\n"
    assert held() == []


def test_zfs_holds_what_it_can(capfd: Output) -> None:
    assert call("zfs", ["hold", "t", *NAMES, "v/h@none"]) == 1
    says = [f"cannot hold snapshot '{name}': tag already exists on this dataset" for name in ("v/h@a", "v/h@c")]
    assert capfd.readouterr().err.splitlines() == [*says, "cannot open 'v/h@none': dataset does not exist"]
    assert held() == list(NAMES)


@pytest.mark.parametrize("program", ["zfs", "zkeep"])
def test_all_that_succeeds_says_nothing(program: str, capfd: Output) -> None:
    assert call(program, ["release", "t", "v/h@a", "v/h@c"]) == 0
    assert call(program, ["hold", "again", *NAMES]) == 0
    assert capfd.readouterr() == ("", "")
    assert held() == list(NAMES)


@pytest.mark.parametrize("words", [["release", "t", *NAMES], ["hold", "t", "v/h@b", "v/h@a"]])
def test_zkeep_does_all_or_nothing(words: list[str], capfd: Output) -> None:
    assert call("zkeep", words) == 1
    assert capfd.readouterr().err.count("\n") == 1
    assert held() == ["v/h@a", "v/h@c"]
