"""zkeep pool get, and the columns of pool list: what replication tools ask a pool."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zkeep.cli.main import run
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.registry import Registry


@pytest.fixture
def guid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ZKEEP_DEBUG", raising=False)
    with Pool.create(tmp_path / "vault", "vault") as pool:
        found = str(pool.doc["guid"])
    Registry(tmp_path / "home").add("vault", tmp_path / "vault")
    return found


@pytest.fixture
def ask(guid: str, capsys: pytest.CaptureFixture[str]) -> object:
    def call(line: str, status: int = 0) -> str:
        assert run(["pool", *line.split()]) == status
        out, err = capsys.readouterr()
        return err if status else out

    return call


def test_all_as_tools_read_it(ask, guid: str) -> None:  # type: ignore[no-untyped-def]
    rows = [line.split("\t") for line in ask("get -H -p all vault").splitlines()]
    assert {len(row) for row in rows} == {4}
    values = {row[1]: row[2] for row in rows}
    assert (values["guid"], values["health"], values["capacity"]) == (guid, "ONLINE", "0")
    assert int(values["size"]) - int(values["free"]) == int(values["allocated"])
    assert values["feature@extensible_dataset"] == "active"
    pairs = dict(line.split("\t") for line in ask("get -Hp -o property,value all vault").splitlines())
    assert pairs.keys() == values.keys()
    assert "name" not in pairs


@pytest.mark.parametrize("line", ["get -o value -H {} vault", "get -H -p -o value {} vault", "get -Hp {} -o value"])
def test_one_feature(ask, line: str) -> None:  # type: ignore[no-untyped-def]
    assert ask(line.format("feature@extensible_dataset")) == "active\n"
    assert ask(line.format("feature@draid")) == "disabled\n"
    assert ask(line.format("org.example:note")) == "-\n"


def test_for_a_person(ask, guid: str) -> None:  # type: ignore[no-untyped-def]
    head, first, second = ask("get guid,dedup vault").splitlines()
    assert head.split() == ["NAME", "PROPERTY", "VALUE", "SOURCE"]
    assert (first.split(), second.split()) == (["vault", "guid", guid, "-"], ["vault", "dedupratio", "1.00x", "-"])


def test_json(ask, guid: str) -> None:  # type: ignore[no-untyped-def]
    found = json.loads(ask("get -j size,guid vault"))
    assert found["output_version"]["command"] == "zpool get"
    assert found["pools"]["vault"]["properties"]["guid"]["value"] == guid


def test_columns_of_list(ask) -> None:  # type: ignore[no-untyped-def]
    name, size, alloc, free, frag, dedup, health = (
        ask("list -Hp -o name,size,alloc,free,frag,dedup,health").rstrip("\n").split("\t")
    )
    assert (name, frag, dedup, health) == ("vault", "0", "1.00", "ONLINE")
    assert int(size) == int(alloc) + int(free)
    assert ask("list -o name,frag,dedup").splitlines() == ["NAME   FRAG  DEDUP", "vault    0%  1.00x"]


@pytest.mark.parametrize("line", ["get nonsense vault", "get feature@none vault", "list -o nonsense", "get -o x all"])
def test_what_there_is_not(ask, line: str) -> None:  # type: ignore[no-untyped-def]
    assert "invalid" in ask(line, 2)


def test_a_pool_that_is_not_there(ask) -> None:  # type: ignore[no-untyped-def]
    assert "no such pool" in ask("get all nosuch", 1)


def test_a_pool_whose_folder_is_gone(ask, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "vault").rename(tmp_path / "away")
    assert ask("get -H -o value health,size,guid,free vault") == "UNAVAIL\n-\n-\n-\n"
