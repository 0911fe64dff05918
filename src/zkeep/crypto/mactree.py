"""The tree of MACs over an object's blocks, rebuilt from its leaves.

    dnode               1 to 3 pointers, covered by the MAC of the block of dnodes
    indirect, level 1+  its MAC: SHA-512 over its pointers, cut to 16 bytes
    leaves, level 0     data blocks, each with the MAC of its encryption (or its HMAC)

Of each pointer 32 bytes are authenticated: the block's shape (blk_prop) and its MAC. A hole is a pointer of zeros, so
that the work is bounded by the blocks that there are, whatever size the object claims.

Source: OpenZFS module/os/linux/zfs/zio_crypt.c zio_crypt_do_indirect_mac_checksum(), zio_crypt_bp_auth_init().
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from zkeep.format.dnode import Dnode, indirect_prop

Pointers = npt.NDArray[np.void]
Numbers = npt.NDArray[np.uint64]

POINTER = np.dtype([("prop", "<u8"), ("mac", "V16"), ("pad", "<u8")])
"The part of a block pointer that is authenticated (blkptr_auth_buf_t)."
HOLE = bytes(POINTER.itemsize)


class OutOfTree(Exception):
    """A block lies beyond the end of the object, or is out of order."""


@dataclass(frozen=True, slots=True)
class TreeShape:
    """The fields of a dnode that give its tree its shape."""

    kind: int
    nlevels: int
    indblkshift: int
    nblkptr: int

    @classmethod
    def of(cls, dnode: Dnode) -> TreeShape:
        return cls(dnode.type, dnode.nlevels, dnode.indblkshift, dnode.nblkptr)

    @property
    def fanout(self) -> int:
        """Bits of a block number for one level: log2 of the pointers in an indirect block."""
        return self.indblkshift - 7


class MacTree:
    """Takes leaves in ascending order, and makes the dnode's own pointers of them.

    It keeps the MACs of level 1 (`first`), so that a part of an object can be checked again later without the rest.
    """

    def __init__(self, shape: TreeShape) -> None:
        self.shape = shape
        self.first: dict[int, bytes] = {}
        "MACs of the indirect blocks of level 1, by number; empty for an object without indirect blocks."
        self.counts: dict[int, int] = {}
        "How many blocks, without holes, each of them points to."
        self._leaves: list[tuple[Numbers, Pointers]] = []
        self._open = -1
        "The indirect block of level 1 whose leaves are being collected."

    def add(self, numbers: Numbers, leaves: Pointers) -> None:
        """Add leaves; `numbers` are block numbers, ascending, larger than all before.

        Raises:
            OutOfTree: they are not.
        """
        if not len(numbers):
            return
        # Blocks come in ascending order, each once: else one block could stand for another.
        previous = int(self._leaves[-1][0][-1]) if self._leaves else -1
        if int(numbers[0]) <= previous or (numbers[1:] <= numbers[:-1]).any():
            raise OutOfTree
        if self.shape.nlevels == 1:
            self._leaves.append((numbers, leaves))
            return
        # Leaves are collected until their indirect block is complete; then only its MAC is kept.
        groups = numbers >> np.uint64(self.shape.fanout)
        for start, end in runs_of(groups):
            # The indirect block before this one is complete when the first leaf of a later one comes.
            group = int(groups[start])
            if group != self._open:
                self._close()
                if group <= self._open:
                    raise OutOfTree
                self._open = group
            self._leaves.append((numbers[start:end], leaves[start:end]))

    def _close(self) -> None:
        if self._leaves:
            numbers = np.concatenate([part for part, _ in self._leaves])
            leaves = np.concatenate([part for _, part in self._leaves])
            self.first[self._open] = self.digest(numbers, leaves)
            self.counts[self._open] = len(numbers)
            self._leaves = []

    def digest(self, numbers: Numbers, pointers: Pointers) -> bytes:
        """The MAC of the indirect block that has these pointers."""
        # pointer, 32 bytes:  | blk_prop | MAC of what it points to | 0 |     a hole: 32 zeros
        # indirect block:     | pointer 0 | pointer 1 | ... | pointer 1023 |  -> SHA-512, 16 bytes
        block = np.zeros(1 << self.shape.fanout, POINTER)
        block[numbers & np.uint64(len(block) - 1)] = pointers
        return hashlib.sha512(block.data).digest()[:16]

    def finish(self) -> bytes:
        """The dnode's pointers, 32 bytes each: what the MAC of its metadnode block covers.

        Raises:
            OutOfTree: a block lies beyond them.
        """
        numbers, pointers = self._top()
        if len(numbers) and int(numbers[-1]) >= self.shape.nblkptr:
            raise OutOfTree
        roots = np.zeros(self.shape.nblkptr, POINTER)
        roots[numbers] = pointers
        return roots.tobytes()

    def _top(self) -> tuple[Numbers, Pointers]:
        if self.shape.nlevels == 1:
            if not self._leaves:
                return np.empty(0, np.uint64), np.empty(0, POINTER)
            numbers = np.concatenate([part for part, _ in self._leaves])
            return numbers, np.concatenate([part for _, part in self._leaves])
        self._close()
        # Pointers to the blocks of one level, then the MACs of the blocks above that hold these pointers, and so on.
        macs = self.first
        for level in range(1, self.shape.nlevels):
            numbers, pointers = np.fromiter(macs, np.uint64, len(macs)), np.zeros(len(macs), POINTER)
            pointers["prop"] = indirect_prop(self.shape.indblkshift, self.shape.kind, level)
            pointers["mac"] = np.frombuffer(b"".join(macs.values()), "V16")
            # The top level's pointers are the dnode's own.
            if level == self.shape.nlevels - 1:
                break
            groups = numbers >> np.uint64(self.shape.fanout)
            macs = {
                int(groups[start]): self.digest(numbers[start:end], pointers[start:end])
                for start, end in runs_of(groups)
            }
        return numbers, pointers


def runs_of(values: Numbers) -> Iterator[tuple[int, int]]:
    """Runs of equal values, each as [start, end)."""
    if not len(values):
        return
    turns = np.flatnonzero(values[1:] != values[:-1]) + 1
    marks = [0, *turns.tolist(), len(values)]
    yield from pairwise(marks)
