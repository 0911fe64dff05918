"""An object whose dnode is authentic, and the rows that stand for its blocks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from zkeep.crypto.mactree import HOLE, POINTER, MacTree
from zkeep.format.dnode import Dnode
from zkeep.pool.timeline.spans import Array

LEAF = np.dtype(
    [
        ("object", "<u8"),
        ("offset", "<u8"),
        ("pos", "<u8"),
        ("check", "<u8"),
        ("size", "<u4"),
        ("segment", "<u4"),
        ("logical", "<u4"),
        ("kind", "u1"),
        ("compression", "u1"),
        ("type", "u1"),
        ("bare", "u1"),
        ("salt", "V8"),
        ("iv", "V12"),
        ("pointer", POINTER),
    ]
)
"""A leaf is one block: where its record lies, how it is encrypted and compressed, and its block pointer's fields.

`pos`, `size`, `segment`: the place of the record. `check`: its stored checksum. `kind`: its record type. `logical`:
bytes after decompression. `bare`: 1 if the payload was dropped, because it is stored elsewhere. `pointer`: what is
authenticated of the block pointer, the block's MAC among it.
"""

NO_LEAVES = np.empty(0, LEAF)


class VerifiedObject(NamedTuple):
    """An object whose dnode is authentic.

    `roots`: the dnode's own pointers, 32 authenticated bytes each. `spill`: the leaf of its spill block, an array of
    one or none. `flat`: all leaves of an object without indirect blocks; of another one, `tree` has the MAC of each
    indirect block of level 1. A stream that is not raw has neither. `unplaced`: MACs are known, but not where the
    records of its blocks lie: `flat` is empty, and the leaf in `spill` has a pointer only; BlockReader finds the rest.
    """

    dnode: Dnode
    tree: MacTree | None
    roots: bytes
    spill: Array
    flat: Array | None = None
    unplaced: bool = False

    def with_bonus(self, bonus: bytes) -> VerifiedObject:
        """The same object with its bonus buffer decrypted."""
        return VerifiedObject(Dnode(*self.dnode[:-1], bonus), *self[1:])

    @property
    def block_count(self) -> int:
        """How many blocks it has, without holes and its spill block. Only an object of a raw stream knows."""
        if self.tree is not None:
            return sum(self.tree.counts.values())
        return sum(self.roots[at : at + len(HOLE)] != HOLE for at in range(0, len(self.roots), len(HOLE)))

    def without_places(self) -> VerifiedObject:
        """The same object, without what compaction changes: where its records lie."""
        flat = NO_LEAVES if self.tree is None else None
        spill = unplaced_spill(self.spill["pointer"].tobytes())
        return VerifiedObject(self.dnode, self.tree, self.roots, spill, flat, unplaced=True)


def with_type(spill: Array, bonustype: int) -> Array:
    """Change the leaf of a spill block: its pointer has the dnode's bonus type as its type, bits 48 to 55."""
    spill["pointer"]["prop"] &= ~np.uint64(0xFF << 48)
    spill["pointer"]["prop"] |= np.uint64(bonustype << 48)
    return spill


def unplaced_spill(pointer: bytes) -> Array:
    """The leaf of a spill block (empty: of none) of which only the pointer is known."""
    if not pointer:
        return NO_LEAVES  # of most objects: nothing need be made
    spill = np.zeros(len(pointer) // POINTER.itemsize, LEAF)
    spill["pointer"] = np.frombuffer(pointer, POINTER)
    return spill
