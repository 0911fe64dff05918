"""What the tree asks of whoever holds the objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from zkeep.format.dnode import Dnode

Content = bytes | bytearray | memoryview


class Bonus(NamedTuple):
    """What an object's dnode says of the file that it is: open, and of which type; more may be in a spill block."""

    type: int
    has_spill: bool
    content: bytes


class Objects(Protocol):
    """The objects of one snapshot. Whatever it gives is authentic, or was not encrypted."""

    def dnode(self, number: int) -> Dnode:
        """With its bonus buffer open. Raises a ZkeepError if there is none."""
        ...

    def bonus(self, number: int) -> Bonus:
        """Of its dnode. Raises a ZkeepError if there is none."""
        ...

    def spill_of(self, number: int) -> bytes | None: ...

    def read_block(self, number: int, block: int) -> bytes:
        """One whole block; zeros where it is a hole."""
        ...

    def data(self, number: int, start: int, end: int) -> Iterator[tuple[int, Content]]:
        """The blocks that meet [start, end), whole and ascending, with their offsets; holes are left out."""
        ...

    def expect(self, numbers: Iterable[int]) -> None:
        """The data of these objects, in ascending order, will be asked for next: small ones may be got together."""
        ...

    def rest(self) -> None:
        """End the threads that it works with, until it needs them again: a process with threads must not fork."""
        ...
