"""What is held of an object whose dnode is authentic."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from zkeep.crypto.mactree import POINTER, MacTree
from zkeep.format.dnode import Dnode

Array = npt.NDArray[Any]

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
        ("pad", "u1"),
        ("salt", "V8"),
        ("iv", "V12"),
        ("pointer", POINTER),
    ]
)
"""A block: where its record lies, how it is sealed and compressed, and what its block pointer says."""

NO_LEAVES = np.empty(0, LEAF)


class Verified(NamedTuple):
    """An object whose dnode is authentic. `spill`: its spill block's leaf (an array of one, or none).

    Of an object without indirect blocks `flat` are all its leaves; else `tree` has the MACs of their groups.
    """

    dnode: Dnode
    tree: MacTree | None
    roots: bytes
    spill: Array
    flat: Array | None = None

    def opened(self, bonus: bytes) -> Verified:
        """The same with its bonus buffer open."""
        return Verified(Dnode(*self.dnode[:-1], bonus), *self[1:])
