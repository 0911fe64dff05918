"""A dataset whose last snapshot was destroyed begins again: nothing that is gone stands in its way."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from livekit import OWNER, live

from zkeep.names import DatasetName
from zkeep.pool.datasets import destroy
from zkeep.pool.datasets.model import Pool
from zkeep.pool.datasets.view import View

Zkeep = Callable[..., int]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "file").write_bytes(b"content")
    return folder


def runs(tmp_path: Path) -> int:
    with Pool.open(tmp_path / "pool") as pool:
        return pool.runs.count(pool.dataset(DatasetName.parse("v/home")).key)


def sound(zkeep: Zkeep, tmp_path: Path, snapshot: str) -> bool:
    key = f"file://{tmp_path / 'key'}"
    return zkeep("pool", "scrub", "v") == 0 == zkeep("verify", "-L", key, snapshot) and runs(tmp_path) == 1


def used(tmp_path: Path) -> int:
    with Pool.open(tmp_path / "pool") as pool:
        view = View(pool)
        return view.figures(pool.dataset(DatasetName("v"))).used.stored


def test_what_its_last_snapshot_gives_back_is_said_before(zkeep: Zkeep, tmp_path: Path, source: Path) -> None:
    assert zkeep("snapshot", "--from", str(source), "v/home@a") == 0
    before = used(tmp_path)
    with Pool.open(tmp_path / "pool") as pool:
        view = View(pool)
        plan = destroy.plan_snapshots(view, DatasetName("v/home"), "a", destroy.DestroyOptions())
        said = destroy.reclaims(view, plan)
    assert zkeep("destroy", "v/home@a") == 0
    assert said == before - used(tmp_path) > 0


def test_a_folder_is_stored_again(zkeep: Zkeep, tmp_path: Path, source: Path) -> None:
    for name in ("a", "b"):
        assert zkeep("snapshot", "--from", str(source), f"v/home@{name}") == 0
        assert sound(zkeep, tmp_path, f"v/home@{name}")
        assert zkeep("destroy", f"v/home@{name}") == 0
        assert runs(tmp_path) == 0
        assert not list((tmp_path / "pool").rglob("*.seg"))


@pytest.mark.parametrize("compacts", [False, True])
def test_also_where_the_last_hold_destroyed_it(zkeep: Zkeep, tmp_path: Path, source: Path, compacts: bool) -> None:
    assert zkeep("snapshot", "--from", str(source), "v/home@a") == 0
    assert zkeep("hold", "keep", "v/home@a") == 0
    assert zkeep("destroy", "-d", "v/home@a") == 0
    assert zkeep("release", "keep", "v/home@a") == 0
    if compacts:
        assert zkeep("pool", "compact", "v") == 0
        assert runs(tmp_path) == 0
    assert zkeep("snapshot", "--from", str(source), "v/home@b") == 0
    assert sound(zkeep, tmp_path, "v/home@b")


def test_it_can_be_mounted_and_written_to(zkeep: Zkeep, tmp_path: Path, source: Path) -> None:
    assert zkeep("snapshot", "--from", str(source), "v/home@a") == 0
    assert zkeep("destroy", "v/home@a") == 0
    with live(tmp_path) as files:
        assert not list(files.dataset.folders.entries(files.dataset.root))
        files.write(files.make(b"new", stat.S_IFREG | 0o644, OWNER), b"new", 0)
    assert zkeep("snapshot", "v/home@b") == 0
    assert zkeep("pool", "scrub", "v") == 0
    with live(tmp_path) as files:
        assert list(files.dataset.folders.entries(files.dataset.root)) == [b"new"]


def test_a_bookmark_is_named_and_keeps_what_it_names(
    zkeep: Zkeep, tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zkeep("snapshot", "--from", str(source), "v/home@a") == 0
    assert zkeep("bookmark", "v/home@a", "v/home#kept") == 0
    assert zkeep("destroy", "v/home@a") == 0
    assert runs(tmp_path) == 1
    assert zkeep("snapshot", "--from", str(source), "v/home@b") == 1
    assert "destination has bookmarks (eg. v/home#kept); must destroy them" in capsys.readouterr().err
    assert zkeep("destroy", "v/home#kept") == 0
    assert zkeep("snapshot", "--from", str(source), "v/home@b") == 0
    assert sound(zkeep, tmp_path, "v/home@b")


def test_an_older_snapshot_keeps_its_runs(zkeep: Zkeep, tmp_path: Path, source: Path) -> None:
    assert zkeep("snapshot", "--from", str(source), "v/home@a") == 0
    (source / "file").write_bytes(b"other")
    assert zkeep("snapshot", "--from", str(source), "v/home@b") == 0
    assert zkeep("destroy", "v/home@b") == 0
    assert zkeep("verify", "-L", f"file://{tmp_path / 'key'}", "v/home@a") == 0
    assert zkeep("snapshot", "--from", str(source), "v/home@c") == 0
    assert zkeep("pool", "scrub", "v") == 0
    assert zkeep("verify", "-L", f"file://{tmp_path / 'key'}", "v/home@c") == 0
