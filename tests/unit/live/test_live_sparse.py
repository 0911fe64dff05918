"""What stat() says of the room of a file: its holes take none, so that du, cp and tar see that it is sparse."""

from __future__ import annotations

import os
import random
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from livekit import OWNER, RECORD, ByPath, live, mounted

from mountkit import needs_fuse
from zkeep.live.answers import BLOCK, attributes_of
from zkeep.live.files import KEEP_SIZE, PUNCH_HOLE
from zkeep.live.inode import Inode

Zkeep = Callable[..., int]
FAR = 5000


def blocks(files: ByPath, inode: Inode) -> int:
    return attributes_of(files.dataset, inode)[2]


def expected(held: set[int], size: int) -> int:
    return -(-min(len(held) * RECORD, size) // BLOCK)


@pytest.mark.parametrize("seed", range(6))
def test_a_commit_knows_which_blocks_are_holes(zkeep: Zkeep, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    held: set[int] = set()
    with live(tmp_path) as files:
        inode = files.make(b"file", stat.S_IFREG | 0o644, OWNER)
        for _ in range(25):
            first = chance.choice([0, 1, 2, 3, chance.randrange(40), 1023, 1024, FAR])
            count = chance.choice([1, 2, 30])
            touched = set(range(first, first + count))
            size = inode.fields.size
            match chance.choice(["write", "write", "zeros", "punch", "cut"]):
                case "write":
                    files.write(inode, chance.randbytes(count * RECORD), first * RECORD)
                    held |= touched
                case "zeros":
                    files.write(inode, bytes(count * RECORD), first * RECORD)
                    held -= touched
                case "punch":
                    files.allocate(inode, PUNCH_HOLE | KEEP_SIZE, first * RECORD, count * RECORD)
                    held -= touched
                case "cut":
                    files.truncate(inode, first * RECORD)
                    held = {number for number in held if number < first}
            assert blocks(files, inode) <= -(-inode.fields.size // BLOCK)
            if chance.random() < 0.5 or size == 0:
                files.dataset.commit()
                assert blocks(files, inode) == expected(held, inode.fields.size)
        files.dataset.commit()
    with live(tmp_path) as files:
        inode = files.lookup(b"file")
        assert blocks(files, inode) == expected(held, inode.fields.size)


def test_before_a_commit_what_was_written_counts(zkeep: Zkeep, tmp_path: Path) -> None:
    with live(tmp_path) as files:
        inode = files.make(b"file", stat.S_IFREG | 0o644, OWNER)
        files.truncate(inode, 1 << 40)
        assert blocks(files, inode) == 0
        files.write(inode, b"x" * RECORD, 1 << 30)
        assert blocks(files, inode) == RECORD // BLOCK
        files.dataset.commit()
        files.write(inode, b"y" * RECORD, 1 << 31)
        files.allocate(inode, PUNCH_HOLE | KEEP_SIZE, 1 << 30, RECORD)
        assert blocks(files, inode) == RECORD // BLOCK


def test_other_files_have_the_room_of_their_size(zkeep: Zkeep, tmp_path: Path) -> None:
    with live(tmp_path) as files:
        small = files.make(b"small", stat.S_IFREG | 0o644, OWNER)
        files.write(small, b"x" * 700, 0)
        link = files.make(b"link", stat.S_IFLNK | 0o777, OWNER, target=b"target")
        for _ in range(2):
            assert [blocks(files, each) for each in (small, link, files.dataset.root)] == [2, 1, 1]
            files.dataset.commit()


@needs_fuse
def test_copies_of_sparse_files_are_sparse(zkeep: Zkeep, tmp_path: Path) -> None:
    with mounted(tmp_path) as (folder, _):
        with open(folder / "disk", "wb") as file:
            file.truncate(1 << 30)
            file.seek(1 << 29)
            file.write(b"x" * 1000)
            os.fsync(file.fileno())
        assert (folder / "disk").stat().st_blocks == RECORD // BLOCK
        subprocess.run(["tar", "-S", "-cf", tmp_path / "tar", "-C", folder, "disk"], check=True)
        assert (tmp_path / "tar").stat().st_size < 1 << 20
