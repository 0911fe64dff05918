"""What the tree asks of whoever holds the objects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from zkeep.format.dnode import Dnode

Content = bytes | bytearray | memoryview


class Objects(Protocol):
    """The objects of one snapshot. Whatever it gives is authentic, or was not encrypted."""

    def dnode(self, number: int) -> Dnode:
        """With its bonus buffer open. Raises a ZkeepError if there is none."""
        ...

    def spill_of(self, number: int) -> bytes | None: ...

    def read_block(self, number: int, block: int) -> bytes:
        """One whole block; zeros where it is a hole."""
        ...

    def data(self, number: int, start: int, end: int) -> Iterator[tuple[int, Content]]:
        """The blocks that meet [start, end), whole and ascending, with their offsets; holes are left out."""
        ...
