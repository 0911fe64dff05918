"""The tree of MACs over an object's blocks."""

from __future__ import annotations

import numpy as np
import pytest

from zkeep.crypto.mactree import HOLE, POINTER, MacTree, OutOfTree, TreeShape

FILE = 19


def shape(nlevels: int) -> TreeShape:
    return TreeShape(FILE, nlevels, indblkshift=17, nblkptr=3)


@pytest.mark.parametrize("nlevels", range(1, 8))
def test_an_object_of_holes_alone_has_hole_pointers(nlevels: int) -> None:
    """A file that was punched empty keeps its levels; the kernel's pointers are zero then."""
    assert MacTree(shape(nlevels)).finish() == bytes(HOLE * 3)


def test_a_block_beyond_the_pointers_is_refused() -> None:
    tree = MacTree(shape(2))
    tree.add(np.array([3 << 10], np.uint64), np.zeros(1, POINTER))
    with pytest.raises(OutOfTree):
        tree.finish()


def test_a_block_that_comes_twice_is_refused() -> None:
    tree = MacTree(shape(3))
    tree.add(np.array([7], np.uint64), np.zeros(1, POINTER))
    with pytest.raises(OutOfTree):
        tree.add(np.array([7], np.uint64), np.zeros(1, POINTER))
