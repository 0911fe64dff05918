"""Called by the name of zfs, zkeep says what zfs says: replication tools look for these words."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from zkeep.cli.main import run
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.registry import Registry

STREAMS = Path(__file__).parents[2] / "data" / "streams"


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("ZKEEP_DEBUG", raising=False)
    with Pool.create(tmp_path / "vault", "vault") as pool, pool.transaction() as t:
        dataset = pool.create_dataset(t, pool.full("a"))
        for txg, name in enumerate(("mon", "tue"), 100):
            pool.add_snapshot(t, dataset, name, txg, txg)
    Registry(tmp_path / "home").add("vault", tmp_path / "vault")
    monkeypatch.setattr(sys, "argv", ["/usr/sbin/zfs"])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("list vault/none", "cannot open 'vault/none': dataset does not exist"),
        ("list nosuch", "cannot open 'nosuch': dataset does not exist"),
        ("get all vault/a@none", "cannot open 'vault/a@none': dataset does not exist"),
        ("destroy vault/a@none", "could not find any snapshots to destroy; check snapshot names."),
        ("destroy vault/a#none", "bookmark 'vault/a#none' does not exist."),
        ("create vault/a", "cannot create 'vault/a': dataset already exists"),
        ("create vault/no/such", "cannot create 'vault/no/such': parent does not exist"),
        ("rename vault/a vault/no/such", "cannot rename to vault/no/such: parent does not exist"),
        ("promote vault/a", "cannot promote 'vault/a': not a cloned filesystem"),
        ("release x vault/a@mon", "cannot release hold from snapshot 'vault/a@mon': no such tag on this dataset"),
        ("receive -A vault/a", "'vault/a' does not have any resumable receive state to abort"),
        ("umount vault/a", "cannot unmount 'vault/a': not currently mounted"),
        (
            "send -nvt 1-deadbeef-0-00",
            "cannot resume send: resume token is corrupt (incorrect checksum)",
        ),
    ],
)
@pytest.mark.usefixtures("vault")
def test_words(line: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line.split()) == 1
    assert capsys.readouterr().err == f"{says}\n"


@pytest.mark.usefixtures("vault")
def test_holds_and_bookmarks(capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("hold x vault/a@mon", "bookmark vault/a@mon #b"):
        assert run(line.split()) == 0
    for line, says in (
        ("hold x vault/a@mon", "cannot hold snapshot 'vault/a@mon': tag already exists on this dataset"),
        ("bookmark vault/a@mon #b", "cannot create bookmark 'vault/a#b': bookmark exists"),
        (
            "destroy vault/a@mon",
            "cannot destroy snapshot vault/a@mon: it's being held. Run 'zfs holds -r vault/a@mon' to see holders.",
        ),
    ):
        assert run(line.split()) == 1
        assert capsys.readouterr().err == f"{says}\n"


@pytest.mark.usefixtures("vault")
def test_usage_is_told_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["receive"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "usage:"
    assert "\treceive -A <filesystem|volume>" in lines


@pytest.mark.usefixtures("vault")
def test_what_is_busy_is_1_as_zfs_has_no_5(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with Pool.open(tmp_path / "vault") as pool, pool.store.lock("scrub"):
        sys.argv[0] = "zpool"
        assert run(["scrub", "vault"]) == 1
    assert capsys.readouterr().err.startswith("cannot scrub vault: currently scrubbing; use 'z")


@pytest.mark.usefixtures("vault")
def test_by_its_own_name_nothing_changes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["zkeep"])
    assert run(["list", "vault/none"]) == 1
    assert capsys.readouterr().err == "zkeep: cannot open vault/none: dataset does not exist\n"


@pytest.mark.usefixtures("vault")
def test_zpool_speaks_of_pools(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/sbin/zpool"])
    assert run(["get", "-H", "-p", "all", "nosuch"]) == 1
    assert capsys.readouterr().err == "cannot open 'nosuch': no such pool\n"
