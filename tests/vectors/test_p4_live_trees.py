"""P4: a pool from elsewhere has a tree that is authentic and that no filesystem wrote; it is mounted read-write."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sealedkit import FILE, FIRST, FOLDER, KEY, ROOT, Entries, sealing
from sealing import Thing, folder
from test_p4_hostile_trees import bonus, empty, tree

from zkeep.format.compress_writer import compressor
from zkeep.format.objtypes import ObjectType
from zkeep.format.records import Feature
from zkeep.live.dataset import LiveDataset
from zkeep.live.files import EXCHANGE, KEEP_SIZE, PUNCH_HOLE
from zkeep.names import DatasetName
from zkeep.pool.datasets.model import Pool
from zkeep.pool.transfer.receive import ReceiveOptions, receive
from zkeep.snapshot.changes import Block
from zkeep.snapshot.commit import MADE_HERE, NewSnapshot
from zkeep.tree.filesystem import BadTree

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "live"))
from livekit import ByPath

NEW = NewSnapshot(DatasetName("v/x").snapshot("head"), compressor("lz4"), Feature(0))


@contextmanager
def live(tmp_path: Path, *things: Thing, root: Entries) -> Iterator[ByPath]:
    """The tree, mounted without FUSE: the pool says that it was made here."""
    sealing.seal(tmp_path / "stream", KEY, tree(root, *things))
    with Pool.create(tmp_path / "pool", "v", {}) as pool:
        with (tmp_path / "stream").open("rb") as source:
            receive(pool, source, "v/x", ReceiveOptions())
        with pool.transaction() as t:
            (snapshot,) = pool.snapshots(pool.dataset(DatasetName("v/x")))
            pool.update_snapshot(t, snapshot, **{MADE_HERE: True})
        with LiveDataset(pool, NEW, 131072, lambda wrapped: KEY) as dataset:
            yield ByPath(dataset)


def inner(number: int, parent: int, *entries: tuple[bytes, int, int]) -> Thing:
    return folder(number, parent, list(entries))


A, B = FIRST, FIRST + 1


@pytest.mark.parametrize(
    ("things", "path"),
    [
        ([inner(A, ROOT, (b"up", ROOT, FOLDER))], b"a/up"),
        ([inner(A, ROOT, (b"a", A, FOLDER))], b"a/a"),
        ([inner(A, ROOT, (b"b", B, FOLDER)), inner(B, A, (b"a", A, FOLDER))], b"a/b/a"),
        ([inner(A, B), inner(B, A)], b"a"),
        ([inner(A, A)], b"a"),
    ],
)
def test_p4_a_mounted_folder_lies_in_one_place(things: list[Thing], path: bytes, tmp_path: Path) -> None:
    root: Entries = [(b"a", A, FOLDER), (b"file", FIRST + 9, FILE)]
    root += [(b"b", B, FOLDER)] if len(things) > 1 and path == b"a" else []
    with live(tmp_path, *things, empty(FIRST + 9), root=root) as files:
        assert files.lookup(path.rpartition(b"/")[0]).is_folder
        for work in (
            lambda: files.lookup(path),
            lambda: files.rename(b"file", path + b"/x"),
            lambda: files.rmdir(path),
            lambda: files.rename(path, b"other"),
        ):
            with pytest.raises(BadTree, match="lies elsewhere, too"):
                work()
        files.rename(b"file", b"other")


def test_p4_the_root_lies_in_nothing(tmp_path: Path) -> None:
    with live(tmp_path, root=[(b"up", ROOT, FOLDER)]) as files, pytest.raises(BadTree, match="lies elsewhere, too"):
        files.lookup(b"up")


def large(size: int, last: int) -> Thing:
    """A file that says that it is large; its last block is there."""
    return Thing(A, ObjectType.PLAIN_FILE, 512, last, [Block(last, bytes(512), sealing.OFF)], bonus(0o100644, size))


@pytest.mark.parametrize("other", [(b"b", A, FOLDER), (b"b", A, FILE)])
def test_p4_a_folder_has_one_name(other: tuple[bytes, int, int], tmp_path: Path) -> None:
    root: Entries = [(b"a", A, FOLDER), other]
    with live(tmp_path, inner(A, ROOT), root=root) as files, pytest.raises(BadTree, match="lies elsewhere, too"):
        files.dataset.folders.entries(files.dataset.root)


def test_honest_folders_may_move_and_change_places(tmp_path: Path) -> None:
    with live(tmp_path, inner(A, ROOT), inner(B, ROOT), root=[(b"a", A, FOLDER), (b"b", B, FOLDER)]) as files:
        files.rename(b"a", b"b", EXCHANGE)
        files.rename(b"a", b"b/c")
        files.rename(b"b/c", b"d")
        assert [files.lookup(name).number for name in (b"b", b"d")] == [A, B]


@pytest.mark.parametrize(("size", "links"), [(0, 1), (1, 1), ((1 << 64) - 1, (1 << 64) - 1)])
def test_p4_counts_that_are_wrong_keep_nothing_from_being_committed(size: int, links: int, tmp_path: Path) -> None:
    entries = [(b"d", 8, (FOLDER << 60 | B).to_bytes(8, "big")), (b"f", 8, (FILE << 60 | B + 1).to_bytes(8, "big"))]
    blocks = sealing.fat(entries)
    written = [Block(number, block, sealing.OFF) for number, block in enumerate(blocks)]
    odd = Thing(A, ObjectType.DIRECTORY, len(blocks[0]), len(blocks) - 1, written, bonus(0o40755, size, ROOT, links))
    file = empty(B + 1, links=links, parent=A)
    with live(tmp_path, odd, inner(B, A), file, root=[(b"a", A, FOLDER)]) as files:
        files.make(b"a/new", 0o040755, (0, 0))
        files.dataset.commit()
        opened = files.lookup(b"a/f")
        files.open(opened)
        for folder_path in (b"a/new", b"a/d"):
            files.rmdir(folder_path)
        files.unlink(b"a/f")
        files.dataset.commit()
        files.release(opened)
        files.dataset.commit()
        assert files.dataset.folders.entries(files.lookup(b"a")) == {}


@pytest.mark.parametrize("size", [1 << 63, (1 << 64) - 1])
def test_p4_a_file_that_is_too_large_keeps_nothing_from_being_committed(size: int, tmp_path: Path) -> None:
    with live(tmp_path, empty(A, size=size), root=[(b"a", A, FILE)]) as files:
        files.make(b"new", 0o100644, (0, 0))
        with pytest.raises(BadTree, match=f"a file of {size} bytes"):
            files.lookup(b"a")
        files.dataset.commit()


def test_p4_a_hole_costs_what_is_stored(tmp_path: Path) -> None:
    size, mode = 1 << 52, PUNCH_HOLE | KEEP_SIZE
    with live(tmp_path, large(size, (size >> 9) - 1), root=[(b"a", A, FILE)]) as files:
        inode = files.lookup(b"a")
        files.allocate(inode, mode, 0, size)
        assert len(inode.blocks) == 1
        files.dataset.commit()
        assert list(files.dataset.contents.stored(inode, 0)) == []
