"""What a SnapshotWriter is given: objects to write, and their blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from zkeep.format.objtypes import ObjectType
from zkeep.snapshot.encrypted import Early

Buffer = bytes | bytearray | memoryview
INLINE = 32 << 10
"Bytes of a block that are not worth handing to another thread."
HANDED = 512 << 10
"Bytes of blocks that are handed to a thread together."


class Block(NamedTuple):
    """One block of an object: `content` as long as the object's block size; None: a hole.

    With `compression` the content is already compressed, as it will be stored, in a multiple of 512 bytes.
    With `early` it is being encrypted already.
    """

    number: int
    content: Buffer | None
    compression: int | None = None
    early: Early | None = None


@dataclass(slots=True)
class ObjectChange:
    """An object to be written: its dnode, and the blocks that are new.

    `keep`: blocks of the object of this number in the base stay, but for those given; else the object is a new one.
    `last`: the highest block number that it has, or ever had; -1 if it never had one.
    `spill`: the content of its spill block, None for none; "keep" for the one of the base. It is read when all blocks
    were given, as a stream brings it behind them.
    `slots`: of 512 bytes that its dnode takes. `checksum`, `compress`: fields of a dnode, 0 to go with the dataset.
    """

    number: int
    type: int
    blksz: int
    last: int
    blocks: Iterable[Block] = ()
    bonus: bytes = b""
    bonustype: int = ObjectType.SA
    spill: bytes | str | None = None
    keep: bool = False
    slots: int = 1
    checksum: int = 0
    compress: int = 0


class HoleRun:
    """Joins holes that follow one another, so that a file cut short costs one FREE record."""

    def __init__(self, put: Callable[[int, int], None]) -> None:
        self._put = put
        self._first = self._end = -1

    def add(self, first: int, end: int) -> None:
        # It goes on where the last one ended: one record for both.
        if first == self._end:
            self._end = end
            return
        self.flush()
        self._first, self._end = first, end

    def flush(self) -> None:
        if self._end > self._first:
            self._put(self._first, self._end)
        self._first = self._end = -1


def is_large(block: Block) -> bool:
    """Whether a block is worth handing to another thread."""
    return block.early is None and block.content is not None and len(block.content) > INLINE


def together(blocks: Iterable[Block]) -> Iterator[list[tuple[Block, int]]]:
    """Blocks that one thread gets together, each with how many came before it; one that is not large by itself."""
    found: list[tuple[Block, int]] = []
    size = 0
    for count, block in enumerate(blocks):
        large = is_large(block)
        if found and (not large or size >= HANDED):
            yield found
            found, size = [], 0
        if not large:
            yield [(block, count)]
            continue
        found.append((block, count))
        size += len(block.content or b"")
    if found:
        yield found
