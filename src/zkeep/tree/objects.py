"""The port through which the tree reads objects. An opened snapshot implements it, and so do the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

from zkeep.format.dnode import Dnode

Content = bytes | bytearray | memoryview


class Bonus(NamedTuple):
    """An object's bonus buffer, decrypted: a file's attributes. More of them may be in a spill block."""

    type: int
    has_spill: bool
    content: bytes


class Reading(NamedTuple):
    """A stretch of an object that is being read. Until `wait` has returned, its content is not authentic."""

    content: memoryview
    wait: Callable[[], None]


class Objects(Protocol):
    """The objects of one snapshot. Everything it returns is authentic, or was not encrypted."""

    def dnode(self, number: int) -> Dnode:
        """An object's dnode, its bonus buffer decrypted. Raises a ZkeepError if there is no such object."""
        ...

    def bonus(self, number: int) -> Bonus:
        """An object's bonus buffer. Raises a ZkeepError if there is no such object."""
        ...

    def spill_of(self, number: int) -> bytes | None:
        """The content of an object's spill block; None if it has none."""
        ...

    def read_block(self, number: int, block: int) -> bytes:
        """One whole block; zeros where it is a hole."""
        ...

    def data(self, number: int, start: int, end: int) -> Iterator[tuple[int, Content]]:
        """The blocks that meet [start, end), whole and ascending, with their offsets; holes are left out."""
        ...

    def begin_read(self, number: int, start: int, end: int) -> Reading:
        """Begin to read [start, end), holes as zeros. Waiting raises what is wrong with a block."""
        ...

    def expect(self, numbers: Iterable[int]) -> None:
        """Objects of these numbers are going to be asked for: they may be read, or fetched, together."""
        ...

    def prefetch(self, numbers: Iterable[int]) -> None:
        """The data of these objects, in ascending order, will be asked for next: small ones may be read together."""
        ...

    def stop_threads(self) -> None:
        """End its threads; it starts them again when it needs them. A process with threads must not fork."""
        ...
