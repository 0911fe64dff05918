"""Parts of the answers to FUSE: what stat() tells of a file, and a page of a folder."""

from __future__ import annotations

import os

from zkeep.live.dataset import LiveDataset
from zkeep.live.inode import Inode

BLOCK = 512
SECOND = 1_000_000_000


class Page:
    """Entries of a folder, as many as an answer has room for."""

    def __init__(self, room: int) -> None:
        self.body = bytearray()
        self._room = room

    def has_room(self, size: int) -> bool:
        return len(self.body) + size <= self._room

    def add(self, entry: bytes) -> bool:
        """Whether there was room for it."""
        if not self.has_room(len(entry)):
            return False
        self.body += entry
        return True


def _room_of(dataset: LiveDataset, inode: Inode) -> int:
    """Bytes of a file without its holes, as before compression. What is written over counts twice until the commit."""
    whole = -(-inode.fields.size // inode.block)
    if not inode.is_file or not whole:
        return inode.fields.size
    # None stands for a block that the base has, and that is a hole from now on.
    found = len(inode.blocks) - 2 * list(inode.blocks.values()).count(None)
    if inode.stored and inode.cut:
        if inode.held is None:
            inode.held = dataset.base.object(inode.number).block_count
        found += min(inode.held, inode.cut)
    return min(max(found, 0) * inode.block, inode.fields.size)


def attributes_of(dataset: LiveDataset, inode: Inode) -> tuple[int, ...]:
    """What stat() tells, in the order of the protocol."""
    fields = inode.fields
    size = fields.size
    atime, mtime, ctime = fields.atime, fields.mtime, fields.ctime
    device = os.makedev(fields.rdev >> 20, fields.rdev & 0xFFFFF) & 0xFFFFFFFF if fields.rdev else 0
    return (
        inode.number, size, (_room_of(dataset, inode) + BLOCK - 1) // BLOCK,
        atime // SECOND, mtime // SECOND, ctime // SECOND, atime % SECOND, mtime % SECOND, ctime % SECOND,
        fields.mode, fields.links, fields.uid, fields.gid, device, inode.block, 0,
    )  # fmt: skip
