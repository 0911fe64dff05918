"""Objects that are looked for together are those that are looked for one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from capturekit import change_tree, extracted, listing, make_tree
from historykit import KEY

from zkeep.names import SnapshotName
from zkeep.pool.datasets.model import Pool
from zkeep.snapshot import chunks
from zkeep.snapshot.open import OpenSnapshot

Zkeep = Callable[..., int]


def history(zkeep: Zkeep, source: Path) -> None:
    """Four snapshots, the second of them destroyed; of a tree with a file of many blocks, and folders that go."""
    make_tree(source)
    for number in range(40):
        (source / "folders" / "of-8" / f"more-{number}").write_bytes(b"%d" % number)
    for turn in range(4):
        if turn:
            change_tree(source, turn)
        for number in range(turn * 10):
            (source / "folders" / "of-8" / f"more-{number}").unlink(missing_ok=True)
        assert zkeep("snapshot", "--from", str(source), f"v/home@{turn}") == 0
    assert zkeep("destroy", "v/home@1") == 0


@pytest.mark.parametrize("most", [chunks.SCATTERED_ROWS, 30])
def test_objects_are_the_same_however_they_are_found(
    zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """`most`: rows of a block of dnodes beyond which it is not looked for with the others."""
    monkeypatch.setattr(chunks, "GATHERED_BLOCKS", 1)
    monkeypatch.setattr(chunks, "SCATTERED_ROWS", most)
    history(zkeep, tmp_path / "source")
    with Pool.open(tmp_path / "pool", "v") as pool:
        snapshot = pool.snapshot(SnapshotName.parse("v/home@3"))
        with (
            OpenSnapshot(pool, snapshot, lambda wrapped: KEY, scattered=True) as one,
            OpenSnapshot(pool, snapshot, lambda wrapped: KEY) as other,
        ):
            numbers = one.state.numbers().tolist()
            one.expect(number for number in numbers if number % 64 < 32)
            found = one._fine._gathered_blocks
            assert found
            assert (found == {number // 32 for number in numbers if number % 64 < 32}) == (most > 30)
            for number in numbers:
                mine, theirs = one.object(number), other.object(number)
                assert (mine.dnode, mine.roots) == (theirs.dnode, theirs.roots)
                size = (mine.dnode.maxblkid + 1) * mine.dnode.blksz
                assert list(one.data(number, 0, size)) == list(other.data(number, 0, size))


def test_snapshots_that_are_made_with_it_are_the_folder(
    zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "GATHERED_BLOCKS", 1)
    history(zkeep, tmp_path / "source")
    assert zkeep("verify", "v/home@3") == 0
    assert extracted(zkeep, tmp_path, "v/home@3") == listing(tmp_path / "source")


@pytest.mark.parametrize(("name", "bound"), [("GATHERED_FROM", 1), ("GATHERED_ROWS", 1), ("GATHERED_BLOCKS", 1000)])
def test_it_is_not_done_where_it_costs_more(
    zkeep: Zkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, bound: int
) -> None:
    (tmp_path / "source").mkdir()
    for number in range(100):
        (tmp_path / "source" / f"{number}").write_bytes(b"x")
    assert zkeep("snapshot", "--from", str(tmp_path / "source"), "v/home@0") == 0
    monkeypatch.setattr(chunks, "GATHERED_BLOCKS", 1)
    monkeypatch.setattr(chunks, name, bound)
    with Pool.open(tmp_path / "pool", "v") as pool:
        snapshot = pool.snapshot(SnapshotName.parse("v/home@0"))
        with OpenSnapshot(pool, snapshot, lambda wrapped: KEY, scattered=True) as base:
            base.expect(base.state.numbers().tolist())
            assert not base._fine._gathered_blocks
            assert base.object(34).dnode.number == 34
