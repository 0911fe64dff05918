"""Whole blocks are encrypted before the commit that stores them, and never stored once they were changed again."""

from __future__ import annotations

import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from livekit import OWNER, RECORD, ByPath, live

from zkeep.crypto.unwrap import first_that_opens
from zkeep.errors import TryAgain
from zkeep.live import contents, dataset
from zkeep.live.inode import Inode
from zkeep.restore.verify import verify
from zkeep.snapshot.open import OpenSnapshot

Zkeep = Callable[..., int]
FILE = b"file"


@pytest.fixture(autouse=True)
def every_block(zkeep: Zkeep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encrypt blocks of any size early."""
    monkeypatch.setattr(contents, "INLINE", 0)


def make(files: ByPath) -> Inode:
    return files.make(FILE, stat.S_IFREG | 0o644, OWNER)


def content_of(files: ByPath) -> bytes:
    return files.read(files.lookup(FILE), 0, 1 << 30)


def stored(tmp_path: Path) -> bytes:
    """The file as a new process finds it, and every MAC of the state verified."""
    with live(tmp_path) as files:
        key = (tmp_path / "key").read_bytes()
        with OpenSnapshot(files.dataset.pool, files.dataset.state, first_that_opens([key])) as opened:
            verify(opened)
        return content_of(files)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_written_over_them(tmp_path: Path, seed: int) -> None:
    chance, model = random.Random(seed), bytearray()
    with live(tmp_path) as files:
        inode = make(files)
        for _ in range(250):
            kind = chance.choice(["blocks"] * 4 + ["bytes"] * 4 + ["cut", "punch", "commit"])
            start, size = chance.randrange(12) * RECORD, chance.randrange(1, 5) * RECORD
            if kind == "bytes":
                start, size = chance.randrange(12 * RECORD), chance.randrange(1, RECORD)
            if kind in ("blocks", "bytes"):
                data = chance.choice([bytes(size), chance.randbytes(size), b"letters " * (size // 8)])
                files.write(inode, data, start)
                model.extend(bytes(max(start - len(model), 0)))
                model[start : start + len(data)] = data
            elif kind == "cut":
                size = chance.randrange(len(model) + 1)
                files.truncate(inode, size)
                del model[size:]
            elif kind == "punch":
                files.allocate(inode, 3, start, size)
                end = min(start + size, len(model))
                model[start:end] = bytes(max(end - start, 0))
            else:
                files.dataset.commit()
            assert files.read(inode, 0, 1 << 30) == model
    assert stored(tmp_path) == model


def test_a_sequential_writer_has_all_but_the_first_block_ahead(tmp_path: Path) -> None:
    """In pieces that do not end where blocks do; a block of zeros becomes a hole."""
    data = random.Random(1).randbytes(5 * RECORD) + bytes(2 * RECORD) + b"x" * RECORD
    with live(tmp_path) as files:
        inode = make(files)
        for at in range(0, len(data), 3000):
            files.write(inode, data[at : at + 3000], at)
        assert set(inode.early) == set(range(1, 8))
        files.dataset.commit()
        assert not inode.early
        held = files.dataset.base.object(inode.number)
        leaves = [leaf for part in files.dataset.base.blocks.leaves(held, 0, 100) for leaf in part]
        assert [int(leaf["offset"]) // RECORD for leaf in leaves] == [0, 1, 2, 3, 4, 7]
        assert len({(leaf["salt"].tobytes(), leaf["iv"].tobytes()) for leaf in leaves}) == len(leaves)
    assert stored(tmp_path) == data


def test_a_commit_that_fails_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(random.Random(2).randbytes(4 * RECORD))
    with live(tmp_path) as files:
        inode = make(files)
        files.write(inode, data, 0)

        def busy(*_: object) -> None:
            raise TryAgain("another process is writing")

        with monkeypatch.context() as patch:
            patch.setattr(dataset, "commit_head", busy)
            with pytest.raises(TryAgain):
                files.dataset.commit()
        files.write(inode, b"changed", 2 * RECORD + 5)
        data[2 * RECORD + 5 : 2 * RECORD + 12] = b"changed"
    assert stored(tmp_path) == data


def test_what_is_dropped_by_a_rollback_is_not_stored(tmp_path: Path) -> None:
    old, new = bytes([1]) * 4 * RECORD, bytes([2]) * 4 * RECORD
    with live(tmp_path) as files:
        make(files)
        files.dataset.commit()
        files.write(files.lookup(FILE), old, 0)
        files.dataset.return_to(files.dataset.state, {})
        files.write(files.lookup(FILE), new[: 3 * RECORD], 0)
    assert stored(tmp_path) == new[: 3 * RECORD]


def test_a_file_that_is_gone_leaves_its_number_without_them(tmp_path: Path) -> None:
    with live(tmp_path) as files:
        files.write(make(files), b"a" * 4 * RECORD, 0)
        files.unlink(FILE)
        files.write(make(files), b"b" * 3 * RECORD, 0)
    assert stored(tmp_path) == b"b" * 3 * RECORD
