"""The pointers in a dnode that is written: what its MAC tree, new blocks and old ones together, comes to.

Blocks below an indirect block of level 1 that has no new ones are not looked at: its MAC is as it was. So the cost is
that of what changed, whatever the size of the object is.
"""

from __future__ import annotations

from array import array

import numpy as np

from zkeep.crypto.mactree import HOLE, POINTER, MacTree, Numbers, Pointers, TreeShape, runs_of
from zkeep.format.dnode import Dnode
from zkeep.snapshot.block_reader import BlockReader
from zkeep.snapshot.known import Known
from zkeep.snapshot.verified import VerifiedObject


class NewLeaves:
    """The pointers of an object's new blocks, packed, as there may be a hundred thousand: numbers ascend."""

    def __init__(self) -> None:
        self._numbers = array("Q")
        self._pointers = bytearray()

    def add(self, number: int, pointer: bytes) -> None:
        self._numbers.append(number)
        self._pointers += pointer

    def __len__(self) -> int:
        return len(self._numbers)

    def columns(self) -> tuple[Numbers, Pointers]:
        return np.frombuffer(self._numbers, np.uint64), np.frombuffer(self._pointers, POINTER)

    def roots(self, count: int) -> bytes | None:
        """The pointers of a dnode with `count` of them if these are all; None: they lie below indirect blocks."""
        if len(self) and self._numbers[-1] >= count:
            return None
        # Most files have one block.
        if len(self) == count:
            return bytes(self._pointers)
        roots = bytearray(HOLE * count)
        for at, number in enumerate(self._numbers):
            roots[number * len(HOLE) : (number + 1) * len(HOLE)] = self._pointers[at * len(HOLE) : (at + 1) * len(HOLE)]
        return bytes(roots)


def roots_of(
    dnode: Dnode, leaves: NewLeaves, held: VerifiedObject | None, blocks: BlockReader | None, known: Known | None = None
) -> tuple[bytes, MacTree | None]:
    """The dnode's own pointers, and the tree of MACs between them and its blocks; None if it has no indirect blocks.

    `leaves`: pointers of new blocks, a hole's is zeros. `held`: the object of the base whose other blocks stay, and
    `blocks` finds them; None if it is a new one. `known` learns of the indirect blocks that are made.
    """
    is_new = held is None or held.dnode.blksz != dnode.blksz
    if is_new and dnode.nlevels == 1 and (roots := leaves.roots(dnode.nblkptr)) is not None:
        return roots, None
    tree = MacTree(TreeShape.of(dnode))
    numbers, pointers = leaves.columns()
    if held is None or blocks is None or is_new:
        tree.add(*_live(numbers, pointers))
        return _finished(tree)
    if not len(leaves) and held.dnode.nlevels == dnode.nlevels and held.dnode.maxblkid == dnode.maxblkid:
        return held.roots, held.tree
    # 1. All old pointers are in the dnode: merge them with the new ones.
    if held.tree is None:
        tree.add(*_merged(*blocks.pointers(held, 0), numbers, pointers))
        return _finished(tree)
    # 2. Only indirect blocks with new children get a new MAC; the others keep the one that they had.
    groups = numbers >> np.uint64(tree.shape.fanout)
    first, tree.counts = dict(held.tree.first), dict(held.tree.counts)
    for start, end in runs_of(groups):
        group = int(groups[start])
        mine = _merged(*blocks.pointers(held, group), numbers[start:end], pointers[start:end])
        first.pop(group, None)
        tree.counts.pop(group, None)
        if len(mine[0]):  # an indirect block without a live child is a hole
            first[group], tree.counts[group] = tree.digest(*mine), len(mine[0])
            if known is not None:
                known.put_group(dnode.number, group, first[group], *mine)
    tree.first = dict(sorted(first.items()))
    return _finished(tree)


def _finished(tree: MacTree) -> tuple[bytes, MacTree | None]:
    return tree.finish(), tree if tree.shape.nlevels > 1 else None


def _merged(
    old: Numbers, old_pointers: Pointers, numbers: Numbers, pointers: Pointers
) -> tuple[Numbers, Pointers]:
    """The live pointers of a range of blocks: the given ones, and old ones that they do not replace."""
    stays = ~np.isin(old, numbers)
    merged = np.concatenate([numbers, old[stays]])
    found = np.concatenate([pointers, old_pointers[stays]])
    order = np.argsort(merged, kind="stable")
    return _live(merged[order], found[order])


def _live(numbers: Numbers, pointers: Pointers) -> tuple[Numbers, Pointers]:
    live = pointers.view("V32").reshape(-1) != np.void(HOLE)
    return numbers[live], pointers[live]
